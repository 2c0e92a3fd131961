/** The place that a stack is deployed from, as its folder says: a checkout may be moved, or copied, while its fleet stands. */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";

/** A stack's folder, and the owner of its emulations. */
export interface Place {
  readonly directory: string;
  readonly owner: string;
}

/** What the stack's folder says of itself; `undefined`: nothing. */
export function placeOf(directory: string): Place | undefined {
  const path = `${directory}/place`;
  const [place = "", owner = ""] = existsSync(path) ? readFileSync(path, "utf8").split("\n") : [];
  return place === "" ? undefined : { directory: place, owner };
}

/** Whether the stack's folder is where it says. */
export function isInPlace(directory: string): boolean {
  return placeOf(directory)?.directory === directory;
}

/** Where the stack's folder was before the checkout was moved; `undefined`: it wasn't. */
export function formerPlace(directory: string): Place | undefined {
  const former = placeOf(directory);
  if (former === undefined || former.directory === directory) return undefined;
  // A checkout that was copied: what runs from the other one isn't ours to end.
  return isInPlace(former.directory) ? undefined : former;
}

/** Makes the stack's folder say that it is in its place. */
export function writePlace({ directory, owner }: Place): void {
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  writeFileSync(`${directory}/place`, `${directory}\n${owner}\n`);
}
