/** The links that Nix's programs leave to their results. */
import { existsSync, lstatSync, readdirSync, readlinkSync, rmSync, symlinkSync } from "node:fs";
import { basename, dirname } from "node:path";
import { complain } from "../terminal.ts";
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

/** Lets `result` links lead to where the paths really are: Nix writes them as if the store were /nix/store. */
export function repointOutLinks(words: readonly string[], store: string): void {
  const { name } = outLink(words);
  // Nix adds a number, an output's name, or both.
  const candidates = readdirSync(dirname(name))
    .filter((entry) => entry === basename(name) || entry.startsWith(`${basename(name)}-`))
    .map((entry) => `${name}${entry.slice(basename(name).length)}`);
  const links = candidates.filter((candidate) => {
    if (!lstatSync(candidate, { throwIfNoEntry: false })?.isSymbolicLink()) return false;
    const target = readlinkSync(candidate);
    if (existsSync(target) || !existsSync(`${store}${target}`)) return false;
    link(candidate, `${store}${target}`);
    return true;
  });
  const where = links.length === 0 ? `below ${store}` : `${links.join(", ")} → ${store}`;
  complain(`fleet: built into this stack's own store, as the machine has none that this user can write to: ${where}`);
}
