/** Tells what of `nix-build`'s arguments says what to evaluate from what says how to build. */
import { refuseStores } from "./nixWords.ts";
import { CliError } from "./stack.ts";

/** The arguments of one run, for one program each. Where links to the results go is in neither. */
export interface NixBuildWords {
  /** For `nix-instantiate`. */
  readonly evaluation: readonly string[];
  /** For `nix-build`, before the derivations that came out. */
  readonly build: readonly string[];
}

/** Where an option counts, and how many words follow it. */
const options = new Map<
  string,
  { readonly counts: "evaluation" | "build" | "both" | "nowhere"; readonly words: number }
>([
  ...["-E", "--expr", "--impure", "--pure"].map((name) => [name, { counts: "evaluation", words: 0 }] as const),
  ...["-A", "--attr", "-I", "--include"].map((name) => [name, { counts: "evaluation", words: 1 }] as const),
  ...["--arg", "--argstr"].map((name) => [name, { counts: "evaluation", words: 2 }] as const),
  ...["--check", "--dry-run"].map((name) => [name, { counts: "build", words: 0 }] as const),
  ...["--no-out-link", "--no-link", "--indirect"].map((name) => [name, { counts: "nowhere", words: 0 }] as const),
  ...["-o", "--out-link"].map((name) => [name, { counts: "nowhere", words: 1 }] as const),
  ...["--keep-going", "--keep-failed", "--no-build-output", "--verbose", "--quiet", "--debug", "--show-trace"].map(
    (name) => [name, { counts: "both", words: 0 }] as const,
  ),
  ...["--fallback", "--repair", "--readonly-mode"].map((name) => [name, { counts: "both", words: 0 }] as const),
  ...["-j", "--max-jobs", "--cores", "--max-silent-time", "--timeout", "--log-format"].map(
    (name) => [name, { counts: "both", words: 1 }] as const,
  ),
  ["--option", { counts: "both", words: 2 }],
]);

/**
 * Splits them.
 *
 * @throws CliError where it can't be told whether a word is an option's value or names what to build.
 */
export function splitNixBuildWords(words: readonly string[]): NixBuildWords {
  refuseStores(words);
  const evaluation: string[] = [];
  const build: string[] = [];
  for (let index = 0; index < words.length;) {
    const word = words[index] ?? "";
    const { counts, words: following } = options.get(word) ?? guess(word, words[index + 1]);
    const taken = words.slice(index, index + 1 + following);
    if (counts === "evaluation" || counts === "both") evaluation.push(...taken);
    if (counts === "build" || counts === "both") build.push(...taken);
    index += 1 + following;
  }
  return { evaluation, build };
}

/** Any setting of Nix is an option as well: with a value, or a switch without one. */
function guess(word: string, next: string | undefined): { counts: "evaluation" | "both"; words: 0 } {
  if (!word.startsWith("-") || word === "-") return { counts: "evaluation", words: 0 };
  if (!word.startsWith("--") || word.startsWith("--no-") || next === undefined || next.startsWith("-")) {
    return { counts: "both", words: 0 };
  }
  throw new CliError(
    `with --remote-store it can't be told whether ${next} belongs to ${word}; write \`--option ${word.slice(2)} VALUE\` in its place`,
  );
}
