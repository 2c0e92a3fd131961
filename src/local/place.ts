/** The place that a stack is deployed from, as its folder says: a checkout may be moved, or copied, while its fleet stands. */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, resolve } from "node:path";
import { complain } from "../terminal.ts";

const checkout = resolve(import.meta.dirname, "../..");

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

/** This checkout's folder for the stack whose folder is, or was, the other. */
export function placeHere(directory: string): string {
  return `${checkout}/.fleet/stacks/${basename(directory)}`;
}

/**
 * Whether the stack's folder is another checkout's, whose fleet stands: the state that names it came along when that checkout was copied.
 * What is there isn't ours to remove; standard error says so.
 */
export function isLeftAlone(directory: string): boolean {
  if (directory.startsWith(`${checkout}/`) || !isInPlace(directory)) return false;
  complain(
    `${directory} is left alone: it belongs to the checkout that this one, ${checkout}, was copied from; destroy it there`,
  );
  return true;
}

/** Makes the stack's folder say that it is in its place. */
export function writePlace({ directory, owner }: Place): void {
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  writeFileSync(`${directory}/place`, `${directory}\n${owner}\n`);
}
