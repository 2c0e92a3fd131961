/** Finds the programs that local builders run, on PATH and where set-up puts what PATH doesn't have. */
import { accessSync, constants, existsSync, readFileSync, realpathSync } from "node:fs";
import { homedir } from "node:os";
import { delimiter } from "node:path";
import { spawnSync } from "node:child_process";
import { kernelArch, type System } from "../nix/system.ts";
import type { LocalTools } from "./files.ts";

/** The oldest Nix that is taken, because it is the oldest that was tried (Debian 12 has it); `ssh-ng://` builds since 2.4. */
export const oldestNix = "2.8";

/** Something on this machine is missing or too old; the message says what, why, and what supplies it. */
export class MissingTool extends Error {
  override readonly name = "MissingTool";
}

/**
 * Absolute paths of what a local builder of this system runs.
 *
 * @throws MissingTool when one of them isn't there or Nix is too old.
 */
export function findLocalTools(system: System): LocalTools {
  const nixDaemon = find("nix-daemon", nixFolders);
  const nixStore = find("nix-store", nixFolders);
  if (nixDaemon === undefined || nixStore === undefined) {
    throw new MissingTool("Nix is missing: builders and clients run it; `npm run setup` installs it or says how");
  }
  const sshd = find("sshd", ["/usr/sbin", "/usr/local/sbin", "/run/current-system/sw/bin"]);
  if (sshd === undefined) {
    throw new MissingTool(
      "the OpenSSH server (sshd) is missing: each local builder runs one; `npm run setup` installs it or says how",
    );
  }
  const shell = find(`busybox-${kernelArch(system)}`, []) ?? nativeBusybox(system);
  if (shell === undefined) {
    throw new MissingTool(
      `a static busybox for ${system} is missing: it is /bin/sh in the build sandbox; \`npm run setup\` fetches it`,
    );
  }
  return { sshd: realpathSync(sshd), nixDaemon, nixStore, shell };
}

/**
 * Refuses a Nix that is too old, or doesn't run.
 *
 * @throws MissingTool naming the version found and the oldest that is taken, or what keeps it from running.
 */
export function checkNixVersion(nixDaemon: string): void {
  // Not nix-store: even for its version it makes /nix/var, or fails where it may not.
  const { status, signal, stdout: output, stderr, error } = spawnSync(nixDaemon, ["--version"], { encoding: "utf8" });
  if (error !== undefined || status !== 0) {
    const why = error?.message ?? (stderr.trim() || `it ends with ${signal ?? `exit code ${status ?? "?"}`}`);
    throw new MissingTool(
      `${nixDaemon} doesn't run: ${why}; mend or replace this Nix, \`${nixDaemon} --version\` has to work`,
    );
  }
  const version = /(\d+)\.(\d+)/.exec(output);
  const [oldestMajor = 0, oldestMinor = 0] = oldestNix.split(".").map(Number);
  const major = Number(version?.[1]);
  const minor = Number(version?.[2]);
  if (major > oldestMajor || (major === oldestMajor && minor >= oldestMinor)) return;
  throw new MissingTool(
    `${nixDaemon} is ${output.trim()}, which is too old: ${oldestNix} is the oldest that was tried; install a newer Nix`,
  );
}

/** The static qemu-user that runs programs of `system`; `undefined` where there is none. */
export function findQemu(system: System): string | undefined {
  return find(`qemu-${kernelArch(system)}-static`, ["/usr/bin", "/usr/libexec/qemu-binfmt"]);
}

const nixFolders = ["/nix/var/nix/profiles/default/bin", "/run/current-system/sw/bin"];

/** Where `npm run setup` puts programs that PATH doesn't have: `bin` in `cacheDirectory` of tools/launch.mjs, which is no part of the program. */
export function setupFolder(): string {
  const { XDG_CACHE_HOME: cache, HOME: home } = process.env;
  return `${cache || `${home || homedir()}/.cache`}/nix-builder-fleet/bin`;
}

function find(program: string, furtherFolders: readonly string[]): string | undefined {
  const folders = [setupFolder(), ...(process.env["PATH"] ?? "").split(delimiter), ...furtherFolders];
  return folders.map((folder) => `${folder}/${program}`).find(isExecutable);
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** Debian's busybox-static installs plain /bin/busybox; a dynamic one would find no libraries in the sandbox. */
function nativeBusybox(system: System): string | undefined {
  const path = "/bin/busybox";
  if (!existsSync(path)) return undefined;
  const head = readFileSync(path).subarray(0, 4096);
  const machine =
    head.readUInt16LE(18) === 0x3e ? "x86_64-linux" : head.readUInt16LE(18) === 0xb7 ? "aarch64-linux" : undefined;
  return machine === system && !head.includes("/lib/ld-") && !head.includes("/lib64/ld-") ? path : undefined;
}
