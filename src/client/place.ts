/** Whether a folder is a place for a private key and for what Nix obeys: one that only this user and root can change. */
import { lstatSync, readlinkSync, type Stats } from "node:fs";
import { dirname, resolve } from "node:path";

/** Links on one way; Linux gives up after as many. */
const mostLinks = 40;

/**
 * Who else could put other files in the place of those that are written to the folder, and what to do about it; `undefined`: nobody.
 *
 * @param directory Absolute path; what of it isn't there yet will be this user's.
 */
export function placeProblem(directory: string): string | undefined {
  const steps: { readonly path: string; readonly stats: Stats }[] = [];
  let last = "/";
  const pending = partsOf(directory);
  for (let links = 0; ;) {
    const stats = lstatSync(last, { throwIfNoEntry: false });
    if (stats === undefined) break; // nothing below is there either
    steps.push({ path: last, stats });
    if (stats.isSymbolicLink()) {
      if ((links += 1) > mostLinks)
        return `${directory} can't be reached: its links lead in a circle; choose another folder`;
      if (foreign(stats)) break;
      pending.unshift(...partsOf(resolve(dirname(last), readlinkSync(last))));
      last = "/";
      continue;
    }
    const next = pending.shift();
    if (next === undefined) break;
    last = last === "/" ? `/${next}` : `${last}/${next}`;
  }
  for (const [index, { path, stats }] of steps.entries()) {
    const advice = `choose a folder that only you and root can write to, such as one in your home`;
    if (foreign(stats)) {
      const what = stats.isSymbolicLink() ? "is a link of" : "belongs to";
      return `${path} ${what} another user (uid ${stats.uid}), who could put other files in the place of the client's: ${advice}`;
    }
    if (stats.isSymbolicLink() || !isWritableForOthers(stats)) continue;
    // Where the sticky bit is set, as in /tmp, others can't move away what is this user's.
    const isLast = index === steps.length - 1 && pending.length === 0;
    if ((stats.mode & 0o1000) !== 0 && !isLast) continue;
    const mode = (stats.mode & 0o7777).toString(8);
    return `others can write to ${path} (mode ${mode}), and put other files in the place of the client's: chmod go-w ${path}, or ${advice}`;
  }
  return undefined;
}

function partsOf(path: string): string[] {
  return path.split("/").filter((part) => part !== "");
}

function foreign({ uid }: Stats): boolean {
  return uid !== 0 && uid !== process.getuid?.();
}

/** A group of the owner's own, by custom with the owner's number, is no other. */
function isWritableForOthers({ mode, uid, gid }: Stats): boolean {
  return (mode & 0o002) !== 0 || ((mode & 0o020) !== 0 && gid !== uid);
}
