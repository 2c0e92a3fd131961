/** Folders that the fleet makes below `.fleet` of the checkout, and that must all be gone after it. */
import { spawnSync } from "node:child_process";
import { lstatSync, rmdirSync, rmSync, unlinkSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { stackNameProblem } from "../stackName.ts";
import { complain } from "../terminal.ts";

/**
 * Removes a folder with everything in it, Nix stores included, and the fleet's folders above it that are empty then. Nothing but a stack's
 * folder, `…/.fleet/stacks/NAME`, or what lies in it: links are removed, never followed. What a link on the way leads to is left alone;
 * standard error says so.
 *
 * @param directory Absolute path. It may be gone already.
 * @throws Error for any other path, before anything is removed.
 */
export function removeTree(directory: string): void {
  const stack = stackFolderOf(directory);
  const detour = directory === stack ? undefined : linkOnTheWay(stack, dirname(directory));
  if (detour !== undefined) {
    complain(`${directory} is left alone: ${detour} is a link, and what it leads to is not the fleet's to remove`);
    return;
  }
  const present = lstatSync(directory, { throwIfNoEntry: false });
  if (present?.isDirectory() === true) removeAll(directory);
  else if (present !== undefined) unlinkSync(directory);
  const stacks = dirname(stack);
  for (let folder = dirname(directory); folder.startsWith(stacks); folder = dirname(folder)) {
    try {
      rmdirSync(folder);
    } catch {
      return;
    }
  }
}

/** The stack's folder that a path is, or lies in. */
function stackFolderOf(directory: string): string {
  const [, stack, name = ""] = /^(\/.*?\/\.fleet\/stacks\/([^/]+))(?:\/.+)?$/.exec(directory) ?? [];
  if (stack !== undefined && resolve(directory) === directory && stackNameProblem(name) === undefined) return stack;
  throw new Error(
    `${directory} is not removed: only a stack's folder, …/.fleet/stacks/NAME, and what lies in it are the fleet's to remove`,
  );
}

/** The first link among a stack's folder and those between it and `folder`. */
function linkOnTheWay(stack: string, folder: string): string | undefined {
  const above = folder === stack ? undefined : linkOnTheWay(stack, dirname(folder));
  return above ?? (lstatSync(folder, { throwIfNoEntry: false })?.isSymbolicLink() === true ? folder : undefined);
}

/** The folder itself, or the nearest above it that is there. */
export function nearestPresent(folder: string): string {
  return lstatSync(folder, { throwIfNoEntry: false }) === undefined ? nearestPresent(dirname(folder)) : folder;
}

/**
 * Removes a folder with everything in it, which builds and clients may have made: links are not followed, and it may be as deep as they like.
 * It may be gone already.
 */
export function removeAll(folder: string): void {
  // Store paths are read-only, and an ordinary user can't remove what is in a read-only folder. By a program that goes down folder by folder:
  // a path may be longer than the kernel takes. What it can't change, the removal names.
  if (process.getuid?.() !== 0) spawnSync("chmod", ["-R", "u+rwx", "--", folder], { stdio: "ignore" });
  rmSync(folder, { recursive: true, force: true });
}
