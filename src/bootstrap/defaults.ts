/** What of a builder's settings follows from its size, where the person sets nothing else. */

/** A machine's size, in MiB. */
export interface Size {
  readonly cpus: number;
  readonly memoryMiB: number;
  /** Size of the file system with the Nix store. */
  readonly diskMiB: number;
  readonly diskFreeMiB: number;
}

/** Settings of a builder. */
export interface SizeDefaults {
  /** Derivations at once, for each client. */
  readonly maxJobs: number;
  /** Nix's `cores`: processors that one derivation is told to use. */
  readonly cores: number;
  /** Weight in Nix's choice of a builder. */
  readonly speedFactor: number;
  /** Nix's `min-free` and `max-free`: below the first, garbage goes until there is the second. In MiB. */
  readonly minFreeMiB: number;
  readonly maxFreeMiB: number;
}

/**
 * Limits of every build, in seconds; 0: none. They stand in the builder's own configuration: over `ssh-ng` a client's `timeout` and
 * `max-silent-time` don't reach it.
 */
export interface BuildLimits {
  /** Nix's `timeout`: of a build as a whole. */
  readonly timeout: number;
  /** Nix's `max-silent-time`: in which a build prints nothing. */
  readonly maxSilentTime: number;
}

/**
 * So that a build that hangs gives its slot back some day, and no sound one is ended: nixpkgs grants its longest build two days
 * (`meta.timeout` of chromium), Hydra two hours of silence unless a build asks for more.
 */
export const defaultBuildLimits: BuildLimits = { timeout: 2 * 24 * 3600, maxSilentTime: 4 * 3600 };

/** Memory that a derivation is reckoned with: compilers of large C++ programs take about 2 GiB for each process. */
const memoryPerJobMiB = 2048;

/**
 * The rules. A NixOS builder sizes itself by them at every start, so they stand in `nixos/builder.nix` too, where a test compares them:
 *
 * - `maxJobs`: one for each CPU, but at least 2 GiB of memory for each.
 * - `cores`: twice the CPUs are given out when all slots are taken, so that half of the slots keep the machine busy.
 * - `speedFactor`: the CPUs. Nix compares jobs ÷ speedFactor, so larger builders get proportionally more. Emulated: 1.
 * - `min-free`: a tenth of the disk, at most 20 GiB, and at most half of what is free now, so that no builder begins by
 *   collecting garbage under its first builds (nix#1970). `max-free`: two and a half times that.
 */
export function defaultsFor(size: Size, emulated = false): SizeDefaults {
  const maxJobs = Math.max(1, Math.min(size.cpus, Math.floor(size.memoryMiB / memoryPerJobMiB)));
  const minFreeMiB = Math.floor(Math.min(size.diskMiB / 10, 20 * 1024, size.diskFreeMiB / 2));
  return {
    maxJobs,
    cores: Math.max(1, Math.ceil((2 * size.cpus) / Math.max(2, maxJobs))),
    speedFactor: emulated ? 1 : Math.max(1, size.cpus),
    minFreeMiB,
    maxFreeMiB: Math.floor(minFreeMiB * 2.5),
  };
}
