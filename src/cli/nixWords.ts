/** What a command of `nix` does with a builder that is a store. */
import { CliError } from "./stack.ts";

/**
 * `build`: it builds there, and brings the result back. `read`: it reads that store. `here`: it builds nothing, so that it needs no builder.
 */
export type RemoteUse = "build" | "read" | "here";

const here = setOf(`
  eval config derivation hash help help-stores key nar registry repl search
  show-config show-derivation to-base16 to-base32 to-base64 to-sri
`);
for (const sub of setOf("init new clone info metadata lock update show")) here.add(`flake ${sub}`);
// Without a command Nix says what commands there are.
here.add("");

const read = setOf("path-info cat-store ls-store ping-store");
for (const sub of setOf("cat info ls ping")) read.add(`store ${sub}`);

/** Commands of two words. */
const groups = setOf("flake profile store");

const startsHere = (build: string): string =>
  `needs on this machine what it starts; build that first (\`${build} INSTALLABLE\`), then leave out --remote-store, and it is there already`;
const buildsWhatItStarts = (): string =>
  "needs on this machine what it starts, and builds that by itself; leave out --remote-store";
const linksHere = (build: string): string =>
  `keeps links to this machine's store; build it first (\`${build} INSTALLABLE\`), then leave out --remote-store, and it is there already`;

/** What can't be done there, and the way that works, for which `build` is the beginning of a command. */
const refused: ReadonlyMap<string, (build: string) => string> = new Map([
  [
    "flake check",
    (build) =>
      `builds none of the checks there, whatever it says; build each one (\`${build} FLAKE#checks.SYSTEM.NAME\`), or leave out --remote-store`,
  ],
  ["run", startsHere],
  ["app", startsHere],
  ["shell", startsHere],
  ["develop", buildsWhatItStarts],
  ["dev-shell", buildsWhatItStarts],
  ["print-dev-env", buildsWhatItStarts],
  ["profile", linksHere],
  ["profile install", linksHere],
  ["profile add", linksHere],
  ["copy", () => "names the stores itself (--from, --to); leave out --remote-store"],
]);

const known = new Set([
  ...[...here, ...read, ...groups, ...refused.keys()],
  ...setOf("build bundle daemon doctor edit env fmt formatter log realisation upgrade-nix verify why-depends"),
]);

function setOf(list: string): Set<string> {
  return new Set(list.trim().split(/\s+/));
}

/** Where what is for Nix ends, and what `nix run` hands to the program begins. */
function end(words: readonly string[]): number {
  return words.includes("--") ? words.indexOf("--") : words.length;
}

/** The words of a person's that are for Nix itself. */
export function wordsForNix(words: readonly string[]): readonly string[] {
  return words.slice(0, end(words));
}

/** Adds options to a person's words, so that they are not taken for arguments of the program that `nix run` starts. */
export function withOptions(words: readonly string[], options: readonly string[]): string[] {
  return [...wordsForNix(words), ...options, ...words.slice(end(words))];
}

/**
 * The store is given already.
 *
 * @throws CliError where a person gives another one.
 */
export function refuseStores(words: readonly string[]): void {
  for (const option of ["--store", "--eval-store"]) {
    if (words.includes(option))
      throw new CliError(`${option} and --remote-store each say which store it is; leave out one of them`);
  }
}

/** Whether Nix is only asked what it is. */
export function asksAboutNix(words: readonly string[]): boolean {
  return words.includes("--help") || words.includes("--version");
}

/** The command in arguments of `nix`, of one word or two (`flake check`); empty where there is none. Options may stand before it. */
export function nixCommand(words: readonly string[]): string {
  const forNix = wordsForNix(words);
  for (let index = 0; index < forNix.length; index++) {
    const word = forNix[index] ?? "";
    if (word === "--option") index += 2;
    if (word.startsWith("-")) continue;
    // The value of an option before it, unless there is none.
    if (!known.has(word) && forNix[index - 1]?.startsWith("-") === true) continue;
    if (!groups.has(word)) return word;
    const sub = forNix.slice(index + 1).find((candidate) => !candidate.startsWith("-"));
    return sub === undefined ? word : `${word} ${sub}`;
  }
  return "";
}

/**
 * What a command does with one.
 *
 * @param builder Its name, for the remedy.
 * @throws CliError naming the way that works where there is no use for it.
 */
export function remoteUse(words: readonly string[], builder: string): RemoteUse {
  const command = nixCommand(words);
  const forNix = wordsForNix(words);
  if (here.has(command) || asksAboutNix(forNix)) return "here";
  const instead = refused.get(command);
  if (instead !== undefined)
    throw new CliError(
      `\`nix ${command}\` with --remote-store ${instead(`fleet nix --remote-store ${builder} build`)}`,
    );
  refuseStores(forNix);
  if (read.has(command)) return "read";
  if (command !== "build") throw new CliError(`\`nix ${command}\` with --remote-store is of no use; leave it out`);
  if (forNix.includes("--profile"))
    throw new CliError("a profile is of this machine's store, so --profile can't be with --remote-store; leave it out");
  return "build";
}
