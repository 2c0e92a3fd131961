/** Whether there is room for what a deployment is to make here, looked at before anything is made. */
import { existsSync, statfsSync } from "node:fs";
import { nearestPresent } from "./folders.ts";
import { machineDirectory } from "./plan.ts";
import { MissingTool } from "./tools.ts";

/** What a local builder takes before it has built anything. Measured: 10 MiB and 50 files, on ext4; and the smoke test's own store. */
const needs = { bytes: 16 * 2 ** 20, files: 100 };

/**
 * Refuses local builders that aren't there yet and for which there is no room.
 *
 * @param directory The stack's folder.
 * @throws MissingTool naming the folder, what is needed and what is free.
 */
export function refuseWithoutRoom(directory: string, builders: readonly { provider: string; name: string }[]): void {
  const made = builders.filter(
    ({ provider, name }) => provider === "local" && !existsSync(`${machineDirectory(directory, name)}/root`),
  ).length;
  if (made === 0) return;
  const { bavail, bsize, files, ffree } = statfsSync(nearestPresent(directory));
  const missing =
    bavail * bsize < made * needs.bytes
      ? `${mebibytes(made * needs.bytes)} of space, and ${mebibytes(bavail * bsize)} are free`
      : // Some file systems don't count them, and say 0 of 0.
        files > 0 && ffree < made * needs.files
        ? `room for ${made * needs.files} files (inodes), and there is room for ${ffree}`
        : undefined;
  if (missing === undefined) return;
  throw new MissingTool(
    `${made} local builder(s) can't be made in ${directory}: they need ${missing}; make room there, or take builders out of the configuration`,
  );
}

function mebibytes(bytes: number): string {
  return `${(bytes / 2 ** 20).toFixed(0)} MiB`;
}
