/** What a command of `nix` does with a builder that is a store. */
import { CliError } from "./stack.ts";

/**
 * `build`: it builds there, and brings the result back. `read`: it reads that store. `here`: it builds nothing, so that it needs no builder.
 */
export type RemoteUse = "build" | "read" | "here";

const here = new Set([
  ...["", "eval", "config", "derivation", "hash", "help", "help-stores", "key", "nar", "registry", "repl", "search"],
  ...["show-config", "show-derivation", "to-base16", "to-base32", "to-base64", "to-sri"],
  ...[
    "flake init",
    "flake new",
    "flake clone",
    "flake info",
    "flake metadata",
    "flake lock",
    "flake update",
    "flake show",
  ],
]);
const read = new Set([
  ...["path-info", "store cat", "store info", "store ls", "store ping"],
  ...["cat-store", "ls-store", "ping-store"],
]);
/** Commands of two words. */
const groups = new Set(["flake", "profile", "store"]);
const others = [
  ...[
    "app",
    "build",
    "bundle",
    "copy",
    "daemon",
    "dev-shell",
    "develop",
    "doctor",
    "edit",
    "env",
    "fmt",
    "formatter",
    "log",
  ],
  ...["print-dev-env", "realisation", "run", "shell", "upgrade-nix", "verify", "why-depends"],
];
const known = new Set([...here, ...read, ...groups, ...others]);

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
  const build = `fleet nix --remote-store ${builder} build`;
  const instead = ((): string | undefined => {
    switch (command) {
      case "flake check":
        return `builds none of the checks there, whatever it says; build each one (\`${build} FLAKE#checks.SYSTEM.NAME\`), or leave out --remote-store`;
      case "run":
      case "app":
      case "shell":
        return `needs on this machine what it starts; build that first (\`${build} INSTALLABLE\`), then leave out --remote-store, and it is there already`;
      case "develop":
      case "dev-shell":
      case "print-dev-env":
        return "needs on this machine what it starts, and builds that by itself; leave out --remote-store";
      case "profile":
      case "profile install":
      case "profile add":
        return `keeps links to this machine's store; build it first (\`${build} INSTALLABLE\`), then leave out --remote-store, and it is there already`;
      case "copy":
        return "names the stores itself (--from, --to); leave out --remote-store";
      default:
        return undefined;
    }
  })();
  if (instead === undefined) refuseStores(forNix);
  if (command !== "build" && !read.has(command))
    throw new CliError(`\`nix ${command}\` with --remote-store ${instead ?? "is of no use; leave it out"}`);
  if (command === "build" && forNix.includes("--profile"))
    throw new CliError("a profile is of this machine's store, so --profile can't be with --remote-store; leave it out");
  return command === "build" ? "build" : "read";
}
