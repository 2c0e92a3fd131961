/** The systems a builder can have, in Nix's own terms. */
import { ownValue } from "../record.ts";

/** Nix systems that a builder of this project can build for natively. */
export const systems = ["x86_64-linux", "aarch64-linux"] as const;

/** A Nix system, for instance `x86_64-linux`. */
export type System = (typeof systems)[number];

/** Node's `process.arch` → the Nix system of this machine when it runs Linux. */
const systemOfNodeArch: Readonly<Record<string, System>> = { x64: "x86_64-linux", arm64: "aarch64-linux" };

/** The machine part of a system as the kernel (`uname -m`) and qemu-user name it: `x86_64` or `aarch64`. */
export function kernelArch(system: System): "x86_64" | "aarch64" {
  return system === "x86_64-linux" ? "x86_64" : "aarch64";
}

/**
 * The system of the machine this runs on.
 *
 * @returns `undefined` where it is neither x86_64 nor Arm (or no Linux): such a machine can be a client, not a builder.
 */
export function systemOfThisMachine(
  arch: string = process.arch,
  platform: string = process.platform,
): System | undefined {
  return platform === "linux" ? ownValue(systemOfNodeArch, arch) : undefined;
}
