/** Versions of Nix, compared. */

/** Whether a version such as `2.8.0` is this one or newer. Unreadable ones are older than all. */
export function isAtLeast(version: string, oldest: string): boolean {
  const [major = Number.NaN, minor = 0] = version.split(".").map((part) => Number.parseInt(part, 10));
  const [oldestMajor = 0, oldestMinor = 0] = oldest.split(".").map(Number);
  return major > oldestMajor || (major === oldestMajor && minor >= oldestMinor);
}
