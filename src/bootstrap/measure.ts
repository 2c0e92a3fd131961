/** Looks at a machine from the inside: what a remote command runs there, and what it printed. */

/** What was measured. */
export interface Measurement {
  /** `/proc/sys/kernel/random/boot_id`: names this machine since its last boot. */
  readonly bootId: string;
  /** The kernel's own architecture, as `uname -m`. */
  readonly arch: string;
  /** Processors that a build may use. */
  readonly cpus: number;
  /** Memory, in MiB. */
  readonly memoryMiB: number;
}

/** POSIX shell; prints one line of JSON. */
export const measureCommand = [
  `printf '{"bootId":"%s","arch":"%s","cpus":%s,"memoryMiB":%s}\\n'`,
  `"$(cat /proc/sys/kernel/random/boot_id)" "$(uname -m)" "$(nproc)"`,
  `"$(sed -n 's/^MemTotal: *\\([0-9]*\\) kB$/\\1/p' /proc/meminfo | { read -r kb; echo $((kb / 1024)); })"`,
].join(" ");

/**
 * Reads what `measureCommand` printed.
 *
 * @throws Error when it isn't that.
 */
export function parseMeasurement(stdout: string): Measurement {
  const value: unknown = JSON.parse(stdout);
  if (
    typeof value === "object" &&
    value !== null &&
    "bootId" in value &&
    typeof value.bootId === "string" &&
    "arch" in value &&
    typeof value.arch === "string" &&
    "cpus" in value &&
    typeof value.cpus === "number" &&
    "memoryMiB" in value &&
    typeof value.memoryMiB === "number"
  ) {
    return { bootId: value.bootId, arch: value.arch, cpus: value.cpus, memoryMiB: value.memoryMiB };
  }
  throw new Error(`the builder was measured with an unexpected result: ${stdout}`);
}
