/** The directory that all checkouts of this user share, so that a second clone doesn't build for minutes again. */
import { existsSync } from "node:fs";
import { mkdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { cacheDirectory, LaunchError, withLock } from "../launch.mjs";
import { say } from "./progress.ts";

/**
 * The cache's entry `name`, made by `make` if it isn't there or lacks anything of `holds`. `make` fills a directory that takes
 * its place only when complete; of two set-ups at once, one makes it and the other waits.
 *
 * @param name holds the version, and the platform if it matters, so that an entry never changes once it is there.
 * @param holds paths in it without which it is of no use.
 * @throws {LaunchError} when `make` made something else.
 */
export async function cached(
  name: string,
  holds: readonly string[],
  make: (directory: string) => Promise<void>,
): Promise<string> {
  const entry = join(cacheDirectory(), name);
  const missing = (directory: string) => holds.find((path) => !existsSync(join(directory, path)));
  if (missing(entry) === undefined) return entry;
  await withLock(
    `${entry}.lock`,
    async () => {
      if (missing(entry) === undefined) return;
      const draft = `${entry}.draft`; // the lock's owner is alone: what lies here is from a run that was killed
      await rm(draft, { recursive: true, force: true });
      await mkdir(draft, { recursive: true });
      try {
        await make(draft);
        const lacks = missing(draft);
        if (lacks !== undefined) throw new LaunchError(`${name} was made for the cache without its ${lacks}.`);
        await rm(entry, { recursive: true, force: true }); // an incomplete one
        await rename(draft, entry);
      } finally {
        await rm(draft, { recursive: true, force: true });
      }
    },
    () => {
      say(`another set-up is making ${name}: waiting for it`);
    },
  );
  return entry;
}
