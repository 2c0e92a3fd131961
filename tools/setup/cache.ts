/** The directory that all checkouts of this user share, so that a second clone doesn't build for minutes again. */
import { existsSync } from "node:fs";
import { mkdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { cacheDirectory, withLock } from "../launch.mjs";
import { say } from "./progress.ts";

/**
 * The cache's entry `name`, made by `make` if it isn't there. `make` fills a directory that takes its place only when
 * complete; of two set-ups at once, one makes it and the other waits.
 *
 * @param name holds the version, so that an entry never changes once it is there.
 */
export async function cached(name: string, make: (directory: string) => Promise<void>): Promise<string> {
  const entry = join(cacheDirectory(), name);
  if (existsSync(entry)) return entry;
  await withLock(
    `${entry}.lock`,
    async () => {
      if (existsSync(entry)) return;
      const draft = `${entry}.draft`; // the lock's owner is alone: what lies here is from a run that was killed
      await rm(draft, { recursive: true, force: true });
      await mkdir(draft, { recursive: true });
      try {
        await make(draft);
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
