/** Emulation of the other architecture: a binfmt_misc registration for qemu-user, made and removed by the fleet. */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { execFileSync } from "node:child_process";
import { dirname } from "node:path";
import { kernelArch, type System } from "../nix/system.ts";
import { findQemu, MissingTool } from "./tools.ts";

const binfmt = "/proc/sys/fs/binfmt_misc";

/** All our registrations begin like this, so that those that were there before can be told from them. */
const ours = "nix-builder-fleet-";

/**
 * Says that a fleet mounted binfmt_misc, so that the last one that goes unmounts it. Holds the id of the boot: where /run outlives a
 * reboot, which the mount doesn't, the mark says nothing of the mount that is there then.
 */
const mountedByUs = "/run/nix-builder-fleet/binfmt-mounted";

/**
 * ELF headers by system, as qemu's own `scripts/qemu-binfmt-conf.sh` has them: 64 bit, little endian, executable or shared
 * object, the machine's number.
 */
const elf: Readonly<Record<System, { readonly magic: string; readonly mask: string }>> = {
  "x86_64-linux": elfHeader("3e"),
  "aarch64-linux": elfHeader("b7"),
};

/** How programs of `system` can run here: by a registration of the machine's own, by ours, or not yet. */
export type Emulation = "machine" | "fleet" | "none";

/**
 * Whether programs of `system` run on this machine through binfmt_misc, in a sandbox too (flag F), and who saw to it.
 *
 * @param owner Name of the registration that counts as the fleet's, see `emulationOwner`.
 */
export function emulation(owner: string, system: System): Emulation {
  const handlers = existsSync(binfmt) ? readdirSync(binfmt) : [];
  const usable = handlers.filter((handler) => {
    if (handler === "register" || handler === "status") return false;
    const text = read(`${binfmt}/${handler}`);
    // The last bytes of the magic are the machine's number; type and machine stand at offset 16 of an ELF header.
    return /^enabled/.test(text) && /^flags: .*F/m.test(text) && text.includes(elf[system].magic.slice(-4));
  });
  if (usable.some((handler) => !handler.startsWith(ours))) return "machine";
  return usable.includes(registrationName(owner, system)) ? "fleet" : "none";
}

/**
 * Registers qemu-user for `system` unless the machine runs such programs already. Safe to repeat.
 *
 * @throws MissingTool when there is no static qemu-user, or this isn't root.
 */
export function registerEmulation(owner: string, system: System): void {
  if (emulation(owner, system) !== "none") return;
  const reason = emulationObstacle(owner, system);
  if (reason !== undefined) throw new MissingTool(reason);
  mountBinfmt();
  const { magic, mask } = elf[system];
  const escape = (hex: string): string => hex.replaceAll(/../g, String.raw`\x$&`);
  const interpreter = findQemu(system) ?? "";
  // F: the kernel opens qemu now, so that it is found in a sandbox too.
  const registration = `:${registrationName(owner, system)}:M::${escape(magic)}:${escape(mask)}:${interpreter}:F`;
  try {
    writeFileSync(`${binfmt}/register`, registration);
  } catch (error) {
    // Each emulated builder that starts sees to it, and several start at once: another one may have been faster.
    if (emulation(owner, system) === "none") throw error;
  }
}

/** Why programs of `system` can't be made to run here, in words; `undefined`: they can or do already. */
export function emulationObstacle(owner: string, system: System): string | undefined {
  if (emulation(owner, system) !== "none") return undefined;
  if (findQemu(system) === undefined) return `there is no static qemu-user for it; \`npm run setup\` fetches one`;
  if (process.getuid?.() !== 0)
    // Debian 12's qemu-user-binfmt registers without the flag F; from Debian 13 on, qemu-user-static only depends on it.
    return (
      "only root may register its emulation (binfmt_misc); run as root, or install qemu-user-static (Debian 12, Ubuntu) or " +
      "qemu-user-binfmt (Debian 13 and later)"
    );
  return undefined;
}

/** Removes the fleet's registration, and unmounts binfmt_misc if a fleet mounted it and this was the last one. Safe to repeat. */
export function unregisterEmulation(owner: string, system: System): void {
  // Only root has registered any; what is there is another user's.
  if (process.getuid?.() !== 0) return;
  const registration = `${binfmt}/${registrationName(owner, system)}`;
  if (existsSync(registration)) writeFileSync(registration, "-1");
  if (read(mountedByUs) === bootId() && isMounted()) {
    if (readdirSync(binfmt).some((handler) => handler !== "register" && handler !== "status")) return;
    try {
      execFileSync("umount", [binfmt], { stdio: "pipe" });
    } catch (error) {
      if (isMounted()) throw error; // else another fleet went at the same moment
    }
  }
  rmSync(dirname(mountedByUs), { recursive: true, force: true });
}

function mountBinfmt(): void {
  if (isMounted()) return;
  try {
    execFileSync("mount", ["-t", "binfmt_misc", "binfmt_misc", binfmt], { stdio: "pipe" });
  } catch (error) {
    if (isMounted()) return; // by another one at the same moment
    throw error;
  }
  mkdirSync(dirname(mountedByUs), { recursive: true });
  writeFileSync(mountedByUs, bootId());
}

function isMounted(): boolean {
  return existsSync(`${binfmt}/register`);
}

function bootId(): string {
  return readFileSync("/proc/sys/kernel/random/boot_id", "utf8");
}

/** Empty where there is no such file, or none any more: other fleets come and go. */
function read(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}

function registrationName(owner: string, system: System): string {
  return `${ours}${owner}-${kernelArch(system)}`;
}

function elfHeader(machine: string): { magic: string; mask: string } {
  return {
    magic: `7f454c460201010000000000000000000200${machine}00`,
    mask: "ffffffffffffff00fffffffffffffffffeffffff",
  };
}
