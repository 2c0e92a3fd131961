/** Builds everything in the store of one builder, and brings back what was asked for. */
import { readFileSync } from "node:fs";
import type { Readable } from "node:stream";
import { execa } from "execa";
import { complain, say } from "../terminal.ts";
import * as z from "zod";
import { splitNixBuildWords } from "./nixBuildWords.ts";
import { asksAboutNix, remoteUse, withOptions, wordsForNix } from "./nixWords.ts";
import { link, outLink, refuseOccupied } from "./outLink.ts";
import { CliError } from "./stack.ts";
import { pathOf, takeBack, type Result } from "./takeBack.ts";

/** A run that one builder does everything of. */
export interface RemoteRun {
  readonly program: "nix-build" | "nix";
  readonly words: readonly string[];
  /** Environment that leads Nix to the client's files, and to the store that results come to. */
  readonly env: Record<string, string>;
  /** The builder's name. */
  readonly builder: string;
  /** URI of the builder's store. */
  readonly uri: string;
  /** Folder of the client's own store; `undefined`: the machine's. */
  readonly store: string | undefined;
  /** What to add to what Nix said when it failed. */
  readonly explain: (said: string) => string | undefined;
}

/** What was built. */
interface Built {
  readonly results: readonly Result[];
  /** What Nix adds to the name for links (`result`) for each of them. */
  readonly suffixes: readonly string[];
  /** What Nix printed. */
  readonly printed: string;
}

/**
 * Evaluates here, builds everything in the builder's own store, then brings the results back.
 *
 * @returns The exit code.
 * @throws CliError when Nix isn't there, when a link would take something's place, or when the builder sends what nobody asked for.
 */
export async function runInRemoteStore(run: RemoteRun): Promise<number> {
  const { program, words, env, uri, store } = run;
  const use = program === "nix" ? remoteUse(words, run.builder) : asksAboutNix(words) ? "here" : "build";
  if (use !== "build") return runWithout(run, use);
  const own = outLink(words);
  const wantsLinks = !words.includes("--no-out-link") && !words.includes("--no-link");
  if (wantsLinks) refuseOccupied(own.name);
  const built = await (program === "nix-build" ? runNixBuild(run) : runNixNew(run, own.option));
  if (typeof built === "number") return built;
  const exitCode = await takeBack({ env, uri, store, ...built });
  if (exitCode !== 0) return exitCode;
  if (built.printed !== "") say(built.printed);
  if (wantsLinks) {
    built.results.forEach(({ path }, index) => {
      link(`${own.name}${built.suffixes[index] ?? ""}`, `${store ?? ""}${path}`);
    });
  }
  return 0;
}

/** Runs what builds nothing. */
async function runWithout(run: RemoteRun, use: "read" | "here"): Promise<number> {
  const { program, words, env, uri } = run;
  const evaluates = wordsForNix(words).includes("path-info");
  const reading = ["--store", uri, ...(evaluates ? ["--eval-store", evalStore(run)] : [])];
  const options = use === "read" ? reading : [];
  const { code, exitCode } = await execa(program, withOptions(words, options), {
    env: { ...env, NIX_CONFIG: `${env["NIX_CONFIG"] ?? ""}\n${nothingBuilt.join(" = ")}\n` },
    stdio: "inherit",
    reject: false,
  });
  if (code === "ENOENT") throw missing(program);
  return exitCode ?? 1;
}

/** The setting with which an evaluation builds nothing, anywhere. */
const nothingBuilt = ["allow-import-from-derivation", "false"] as const;

function evalStore({ env }: RemoteRun): string {
  return env["NIX_REMOTE"] ?? "local";
}

/** Evaluation goes on in the store that the results come back to. The builder may build: there, it isn't this machine. */
function remoteOptions(run: RemoteRun): string[] {
  return ["--store", run.uri, "--eval-store", evalStore(run), "--max-jobs", "auto", "--builders", ""];
}

/**
 * `nix-build` in its two steps, so that what was evaluated is known from here: a current one asks the builder which paths it built.
 *
 * @returns An exit code if it failed.
 */
async function runNixBuild(run: RemoteRun): Promise<Built | number> {
  const { words, env, explain } = run;
  const explained = (exitCode: number | undefined, said: string): number => {
    const sentence = explain(said);
    if (sentence !== undefined) complain(`fleet: ${sentence}`);
    return exitCode ?? 1;
  };
  const split = splitNixBuildWords(words);
  // What it reads that has to be built first, this builder builds, too, whatever a person's words say.
  const own = ["--max-jobs", "0", "--builders", rowOf(run)];
  const evaluation = execa("nix-instantiate", ["--no-gc-warning", ...split.evaluation, ...own], {
    env,
    stdin: "inherit",
    stdout: "pipe",
    ...watched,
  });
  const saidByEvaluation = endOfWhatIsSaid(evaluation.stderr);
  const evaluated = await evaluation;
  if (evaluated.code === "ENOENT") throw missing("nix-instantiate");
  if (evaluated.exitCode !== 0) return explained(evaluated.exitCode, saidByEvaluation());
  const wanted = evaluated.stdout.split("\n").filter((line) => line !== "");
  const outputs = wanted.map((line) => {
    const [derivation = "", output = "out"] = line.split("!");
    return { derivation, output };
  });
  // Now, and not after hours of building.
  for (const output of outputs) pathOf(output, run.store);
  // A derivation by itself would be all of its outputs.
  const names = outputs.map(({ derivation, output }) => `${derivation}!${output}`);
  const build = execa("nix-build", [...split.build, "--no-out-link", ...remoteOptions(run), ...names], {
    env,
    stdin: "inherit",
    stdout: "pipe",
    ...watched,
  });
  const said = endOfWhatIsSaid(build.stderr);
  const { exitCode, stdout } = await build;
  if (exitCode !== 0) return explained(exitCode, said());
  const numbers = [...new Set(outputs.map(({ derivation }) => derivation))];
  const paths = stdout.split("\n").filter((line) => line !== "");
  return {
    // None, where nothing was to be built.
    results: paths.map((path, index) => ({ path, of: outputs[index] })),
    suffixes: outputs.map(({ derivation, output }) => {
      const number = numbers.indexOf(derivation);
      return `${number === 0 ? "" : `-${number + 1}`}${outputSuffix(output)}`;
    }),
    printed: stdout,
  };
}

/** The builder's row in the client's `machines`; empty: it has none. */
function rowOf({ env, uri }: RemoteRun): string {
  const rows = readFileSync(`${env["NIX_CONF_DIR"] ?? ""}/machines`, "utf8").split("\n");
  return rows.find((row) => row.startsWith(`${uri} `)) ?? "";
}

/** What Nix says goes to the terminal, and its end is looked at. The whole log of a build may be more than there is memory for. */
const watched = { stderr: ["inherit", "pipe"], buffer: { stderr: false }, reject: false } as const;

/** Characters at the end of what Nix said that may tell why it failed. */
const lookedAt = 64 * 1024;

function endOfWhatIsSaid(stderr: Readable): () => string {
  let said = "";
  stderr.on("data", (chunk: Buffer) => {
    said = (said + chunk.toString()).slice(-lookedAt);
  });
  return () => said;
}

/** Of a derivation, or of a path that was named as it is, which old ones call an object and new ones don't. */
const buildResults = z.array(
  z.union([
    z.object({ drvPath: z.string(), outputs: z.record(z.string(), z.string()) }),
    z.object({ path: z.string() }).transform(({ path }) => ({ drvPath: undefined, outputs: { out: path } })),
    z.string().transform((path) => ({ drvPath: undefined, outputs: { out: path } })),
  ]),
);

/**
 * `nix build`, which says by itself what it has evaluated. What the evaluation would have to build first it can't have: Nix 2.8 would build
 * that on this machine, and a current one would have the builder build it and take nothing back that isn't signed.
 */
async function runNixNew(run: RemoteRun, outLinkOption: number | undefined): Promise<Built | number> {
  const { words, env } = run;
  const rest = words.filter(
    (word, index) =>
      word !== "--print-out-paths" &&
      (outLinkOption === undefined || index < outLinkOption || index > outLinkOption + 1),
  );
  const start = (more: readonly string[], stderr: "inherit" | "pipe") => {
    const own = ["--no-link", "--json", "--option", ...nothingBuilt, ...remoteOptions(run), ...more];
    return execa("nix", withOptions(rest, own), { env, stdio: ["inherit", "pipe", stderr], reject: false });
  };
  // `nix` shows its progress on a terminal only.
  const build = await start([], "inherit");
  if (build.code === "ENOENT") throw missing("nix");
  if (build.exitCode !== 0) {
    // So what it said is not known here. Evaluated once more, it says it again.
    const { stderr = "" } = await start(["--dry-run"], "pipe");
    if (stderr.includes(nothingBuilt[0])) {
      complain(
        "fleet: the evaluation reads what has to be built first (import from derivation), and `nix` takes that back from no remote store; use " +
          `\`fleet build --remote-store ${run.builder}\`, which takes what nix-build takes, or leave out --remote-store`,
      );
    }
    return build.exitCode ?? 1;
  }
  if (words.includes("--dry-run")) {
    return { results: [], suffixes: [], printed: words.includes("--json") ? build.stdout : "" };
  }
  const built = buildResults.safeParse(JSON.parse(build.stdout));
  if (!built.success) {
    throw new CliError(
      "what this Nix says that it built names no derivation or no path of it (dynamic-derivations), so nobody here can tell what was asked for; build it " +
        "without --remote-store",
    );
  }
  const results = built.data.flatMap(({ drvPath, outputs }) =>
    Object.entries(outputs).map(([output, path]) => {
      return { path, of: drvPath === undefined ? undefined : { derivation: drvPath, output } };
    }),
  );
  // Unlike `nix-build`, it counts from 0.
  const suffixes = built.data.flatMap(({ outputs }, index) =>
    Object.keys(outputs).map((output) => `${index === 0 ? "" : `-${index}`}${outputSuffix(output)}`),
  );
  return {
    suffixes,
    results,
    printed: words.includes("--json") ? build.stdout : results.map(({ path }) => path).join("\n"),
  };
}

/** What Nix adds to a link's name for an output. */
function outputSuffix(output: string): string {
  return output === "out" ? "" : `-${output}`;
}

/** Says that a program of Nix isn't there. */
export function missing(program: string): CliError {
  return new CliError(`${program} is not installed; \`npm run setup\` installs it or says how`);
}
