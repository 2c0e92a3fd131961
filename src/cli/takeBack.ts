/**
 * Takes results out of a builder's store. The builder is trusted for the content of what it was asked to build, which nothing here can
 * check, and for nothing else: which paths there are, and what they may refer to, the evaluation says.
 */
import { readFileSync, statfsSync } from "node:fs";
import { execa } from "execa";
import { parseOutputs } from "../nix/derivation.ts";
import { CliError } from "./stack.ts";

/** What to take, and from where to where. */
export interface Taking {
  /** Environment that leads Nix to the store that results come to, where everything was evaluated. */
  readonly env: Record<string, string>;
  /** URI of the builder's store. */
  readonly uri: string;
  /** Folder of the client's own store; `undefined`: the machine's. */
  readonly store: string | undefined;
  /** What the evaluation gave: `.drv` paths. */
  readonly derivations: readonly string[];
  /** What the builder says that it built of them. */
  readonly paths: readonly string[];
  /** Milliseconds for the builder to say what belongs to them. Default: 10 minutes; each path costs a round trip. */
  readonly patience?: number;
  /** Bytes that stay free on the disk. Default: 1 GiB, or half of what is free. */
  readonly reserve?: number;
}

/**
 * Copies the paths and what they refer to into the client's store: outputs of the derivations and of what these need, as they are;
 * anything else, and whatever has a hash, only if the hash or the signature of a trusted cache is right.
 *
 * @returns An exit code: 0, or Nix's own.
 * @throws CliError naming what is refused; nothing of it is in the store then.
 */
export async function takeBack({ patience = 10 * 60_000, ...taking }: Taking): Promise<number> {
  const { env, uri, store, derivations, paths } = taking;
  if (paths.length === 0) return 0;
  const roots = new Set(outputsOf(derivations, store).map(({ path }) => path));
  const strange = derivations.length === 0 ? [] : paths.filter((path) => !roots.has(path));
  if (strange.length > 0) throw refusal(uri, strange);
  if ((await missingHere(env, paths)).length === 0) return 0;

  const [graph, closure] = await Promise.all([
    nixStore(env, ["--query", "--requisites", ...derivations]),
    closureThere({ env, uri, paths, patience }),
  ]);
  const outputs = outputsOf(
    graph.filter((path) => path.endsWith(".drv")),
    store,
  );
  const asked = new Set(outputs.flatMap(({ path, isContentAddressed }) => (isContentAddressed ? [] : [path])));
  const missing = await missingHere(env, closure);
  const others = missing.filter((path) => !asked.has(path));
  if (others.length > 0) {
    const exitCode = await copyEach(taking, ["--no-recursive"], others);
    if (exitCode !== 0) throw refusal(uri, await missingHere(env, others));
  }
  // By name, and each by itself: to what isn't among them, and isn't here already, Nix takes no reference.
  return copyEach(
    taking,
    ["--no-recursive", "--no-check-sigs"],
    missing.filter((path) => asked.has(path)),
  );
}

function outputsOf(derivations: readonly string[], store: string | undefined) {
  return derivations.flatMap((path) => parseOutputs(readFileSync(`${store ?? ""}${path}`, "utf8")));
}

/** Those that aren't valid in the client's store. */
async function missingHere(env: Taking["env"], paths: readonly string[]): Promise<string[]> {
  const missing: string[] = [];
  for (const some of chunks(paths)) {
    missing.push(...(await nixStore(env, ["--check-validity", "--print-invalid", ...some])));
  }
  return missing;
}

/** As many as fit into a command line, in their order. */
function chunks(paths: readonly string[]): string[][] {
  const size = 4000;
  return Array.from({ length: Math.ceil(paths.length / size) }, (_, index) =>
    paths.slice(index * size, (index + 1) * size),
  );
}

async function nixStore(env: Taking["env"], words: readonly string[]): Promise<string[]> {
  const { stdout } = await execa("nix-store", words, { env, stdin: "ignore" });
  return lines(stdout);
}

/** Most memory for what a builder says of its paths, in KiB: some million of them. */
const memory = 2 * 2 ** 20;

/** The words that run a program with no more memory than that. */
function bounded(...words: readonly string[]): readonly [program: string, words: string[]] {
  return ["sh", ["-c", `ulimit -d ${memory}; exec "$@"`, "sh", ...words]];
}

/** The paths and all that the builder says they refer to. A chain without end costs neither all memory nor all time. */
async function closureThere({
  env,
  uri,
  paths,
  patience,
}: Pick<Taking, "env" | "uri" | "paths"> & { readonly patience: number }): Promise<string[]> {
  const query = bounded("nix-store", "--store", uri, "--query", "--requisites", ...paths);
  const { failed, timedOut, stdout } = await execa(...query, {
    env,
    stdio: ["ignore", "pipe", "inherit"],
    reject: false,
    timeout: patience,
    maxBuffer: 2 ** 28,
  });
  if (timedOut) {
    throw new CliError(
      `${uri} has not said within ${patience / 1000} s what belongs to the results; nothing was taken from it: try again, or another builder`,
    );
  }
  if (failed) throw new CliError(`${uri} can't say what belongs to the results, see above; nothing was taken from it`);
  const closure = lines(stdout);
  const wrong = closure.filter((path) => !/^\/nix\/store\/[0-9a-z]{32}-[0-9a-zA-Z+._?=-]+$/.test(path));
  if (wrong.length > 0)
    throw refusal(
      uri,
      wrong.map((line) => JSON.stringify(line)),
    );
  return closure;
}

/** Copies them in their order: what a path refers to comes before it. */
async function copyEach(taking: Taking, words: readonly string[], paths: readonly string[]): Promise<number> {
  for (const some of chunks(paths)) {
    const exitCode = await copy(taking, words, some);
    if (exitCode !== 0) return exitCode;
  }
  return 0;
}

/** Copies them, unless the disk fills up meanwhile: a builder may send without end. */
async function copy({ env, uri, store, reserve }: Taking, words: readonly string[], paths: readonly string[]) {
  const place = `${store ?? ""}/nix/store`;
  const free = () => {
    const { bavail, bsize } = statfsSync(place);
    return bavail * bsize;
  };
  const atLeast = reserve ?? Math.min(2 ** 30, free() / 2);
  const controller = new AbortController();
  const watch = setInterval(() => {
    if (free() < atLeast) controller.abort();
  }, 500);
  try {
    const result = await execa(...bounded("nix", "copy", ...words, "--from", uri, ...paths), {
      env,
      stdio: ["inherit", "ignore", "inherit"],
      reject: false,
      cancelSignal: controller.signal,
    });
    if (!result.isCanceled) return result.exitCode ?? 1;
  } finally {
    clearInterval(watch);
  }
  // What came in part is no valid path, but takes room.
  const partial = await missingHere(env, paths);
  await execa("nix-store", ["--delete", ...partial], { env, stdio: "ignore", reject: false });
  throw new CliError(
    `${uri} sends more than the disk of ${place} has room for (${Math.round(atLeast / 2 ** 20)} MiB are to stay free); what came in part is removed: make room, or take the builder out of the fleet if it shouldn't be that much`,
  );
}

function lines(text: string): string[] {
  return text.split("\n").filter((line) => line !== "");
}

function refusal(uri: string, paths: readonly string[]): CliError {
  const named = paths.slice(0, 5).join(", ") + (paths.length > 5 ? ` and ${paths.length - 5} more` : "");
  return new CliError(
    `${uri} offers what the evaluation here did not ask for, and no hash or signature of a trusted cache vouches for: ${named}; ` +
      "it was not taken. If it is from a cache, add the cache with its key to `caches`; if not, that builder is broken or lies: " +
      "take it out of the fleet",
  );
}
