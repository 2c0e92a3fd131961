/** Folders that the fleet makes below `.fleet` of the checkout, and that must all be gone after it. */
import { execFileSync } from "node:child_process";
import { existsSync, rmdirSync, rmSync } from "node:fs";
import { dirname } from "node:path";

/** Removes a folder with everything in it, Nix stores included, and the fleet's folders above it that are empty then. */
export function removeTree(directory: string): void {
  if (existsSync(directory)) {
    // Store paths are read-only, and an ordinary user can't remove what is in a read-only folder.
    execFileSync("chmod", ["-R", "u+w", directory]);
    rmSync(directory, { recursive: true, force: true });
  }
  for (let folder = dirname(directory); folder.includes("/.fleet/"); folder = dirname(folder)) {
    try {
      rmdirSync(folder);
    } catch {
      return;
    }
  }
}
