/** Finds the programs that local builders run, on PATH and where set-up puts what PATH doesn't have. */
import { accessSync, constants, existsSync, lstatSync, readFileSync, readlinkSync, realpathSync } from "node:fs";
import { homedir } from "node:os";
import { basename, delimiter, dirname, resolve } from "node:path";
import { spawnSync } from "node:child_process";
import { kernelArch, type System } from "../nix/system.ts";

/** The oldest Nix that is taken, because it is the oldest that was tried (Debian 12 has it); `ssh-ng://` builds since 2.4. */
export const oldestNix = "2.8";

/** Absolute paths of the programs that make and enter a builder's container. */
export interface ContainerTools {
  readonly unshare: string;
  readonly nsenter: string;
  readonly mount: string;
  readonly pivotRoot: string;
  /** Both are needed for a way out to the network; `undefined`: builds have none. */
  readonly ip: string | undefined;
  readonly pasta: string | undefined;
}

/** Absolute paths of the programs that a local builder runs. */
export interface LocalTools {
  readonly sshd: string;
  readonly nixDaemon: string;
  readonly nixStore: string;
  /** Folder in which Nix's programs were found. */
  readonly nix: string;
  /** Static busybox for the builder's system: `/bin/sh` in the sandbox. */
  readonly shell: string;
  readonly container: ContainerTools;
}

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
  return {
    sshd: realpathSync(sshd),
    nix: dirname(nixDaemon),
    nixDaemon: inPlace(nixDaemon),
    nixStore: inPlace(nixStore),
    shell,
    container: findContainerTools(),
  };
}

/** Where a program really is, as profiles are links; its own name stays, as Nix is one program by many names. */
function inPlace(program: string): string {
  const path = `${realpathSync(dirname(program))}/${basename(program)}`;
  const target = lstatSync(path).isSymbolicLink() ? resolve(dirname(path), readlinkSync(path)) : path;
  return target !== path && basename(target) === basename(path) ? inPlace(target) : path;
}

function findContainerTools(): ContainerTools {
  const systemFolders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/run/current-system/sw/bin"];
  const needed = (program: string): string => {
    const path = find(program, systemFolders);
    if (path !== undefined) return inPlace(path);
    throw new MissingTool(
      `${program} is missing: a local builder's container is made with it; install util-linux, which has it`,
    );
  };
  const optional = (program: string): string | undefined => {
    const path = find(program, systemFolders);
    return path === undefined ? undefined : inPlace(path);
  };
  return {
    unshare: needed("unshare"),
    nsenter: needed("nsenter"),
    mount: needed("mount"),
    pivotRoot: needed("pivot_root"),
    ip: optional("ip"),
    pasta: optional("pasta"),
  };
}

/** Why builds on local builders have no network, and what gives them one, in words; `undefined`: they have. */
export function networkObstacle({ ip, pasta }: ContainerTools): string | undefined {
  const missing = [
    ...(pasta === undefined ? ["pasta (package passt)"] : []),
    ...(ip === undefined ? ["ip (package iproute2)"] : []),
  ];
  if (missing.length === 0) return undefined;
  return (
    `builds on this machine's builders have no network, so those that fetch something (fixed-output derivations) fail: ` +
    `${missing.join(" and ")} is missing, without which they would reach every service of this machine; install it, then \`npm run setup\``
  );
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

/** Version of the Nix that local builders would run, for instance `2.8.0`; `undefined`: there is none that runs. */
export function installedNixVersion(): string | undefined {
  const nixDaemon = find("nix-daemon", nixFolders);
  if (nixDaemon === undefined) return undefined;
  return /\d+\.\d+\S*/.exec(spawnSync(nixDaemon, ["--version"], { encoding: "utf8" }).stdout)?.[0];
}
