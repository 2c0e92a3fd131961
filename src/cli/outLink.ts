/** The links that Nix's programs leave to their results. */
import { lstatSync, rmSync, symlinkSync } from "node:fs";
import { CliError } from "./stack.ts";

/** The name for links to results in a person's arguments, and where the option that says so stands. */
export function outLink(words: readonly string[]): { readonly name: string; readonly option: number | undefined } {
  const option = words.findIndex((word) => word === "-o" || word === "--out-link");
  return option === -1 ? { name: "result", option: undefined } : { name: words[option + 1] ?? "result", option };
}

/** @throws CliError where a link would take the place of something that is none, as Nix itself refuses to. */
export function refuseOccupied(name: string): void {
  const there = lstatSync(name, { throwIfNoEntry: false });
  if (there === undefined || there.isSymbolicLink()) return;
  throw new CliError(
    `${name} is a ${there.isDirectory() ? "folder" : "file"} where the link to the result would be; move it away, or choose another name with --out-link NAME`,
  );
}

export function link(name: string, target: string): void {
  refuseOccupied(name);
  rmSync(name, { force: true });
  symlinkSync(target, name);
}
