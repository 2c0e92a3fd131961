/**
 * Takes results out of a builder's store. The builder is trusted for the content of what it was asked to build, which nothing here can
 * check, and for nothing else: which paths there are, and what they may refer to, the evaluation says.
 */
import { lstatSync, readdirSync, readFileSync, statfsSync } from "node:fs";
import { execa } from "execa";
import { parseOutputs } from "../nix/derivation.ts";
import { bounded } from "../process.ts";
import { CliError } from "./stack.ts";

/** One result, as the builder names it. */
export interface Result {
  readonly path: string;
  /** The output that it has to be; `undefined`: a path that was named as it is. */
  readonly of: { readonly derivation: string; readonly output: string } | undefined;
}

/** What to take, and from where to where. */
export interface Taking {
  /** Environment that leads Nix to the store that results come to, where everything was evaluated. */
  readonly env: Record<string, string>;
  /** URI of the builder's store. */
  readonly uri: string;
  /** Folder of the client's own store; `undefined`: the machine's. */
  readonly store: string | undefined;
  /** What the builder says that it built. */
  readonly results: readonly Result[];
  /**
   * Milliseconds for the builder to say what belongs to them, and in which it has to send a mebibyte of them. Default: 10 minutes; each path
   * costs a round trip.
   */
  readonly patience?: number;
  /** What stays free on the disk. Default: 1 GiB and 10,000 files, or half of what is free. */
  readonly reserve?: Partial<Room>;
}

/** Room on a disk. */
interface Room {
  readonly bytes: number;
  readonly files: number;
}

/**
 * Copies the paths and what they refer to into the client's store: outputs of the derivations and of what these need, as they are;
 * anything else, and whatever has a hash, only if the hash (then its name says no more than its content) or the signature of a trusted cache
 * is right.
 *
 * @returns An exit code: 0, or Nix's own.
 * @throws CliError naming what is refused; nothing of it is in the store then.
 */
export async function takeBack({ patience = 10 * 60_000, ...rest }: Taking): Promise<number> {
  const taking = { ...rest, patience };
  const { env, uri, store, results } = taking;
  if (results.length === 0) return 0;
  const strange = results.filter(({ path, of }) => of !== undefined && path !== pathOf(of, store));
  if (strange.length > 0) {
    throw refusal(
      uri,
      strange.map(({ path }) => path),
    );
  }
  const paths = results.map(({ path }) => path);
  if ((await missingHere(env, paths)).length === 0) return 0;
  const derivations = results.flatMap(({ of }) => of?.derivation ?? []);

  const [graph, closure] = await Promise.all([
    derivations.length === 0 ? [] : nixStore(env, ["--query", "--requisites", ...derivations]),
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

/**
 * Where an output lies, as the evaluation says.
 *
 * @throws CliError where nobody can say before it is built.
 */
export function pathOf({ derivation, output }: NonNullable<Result["of"]>, store: string | undefined): string {
  const path = outputsOf([derivation], store).find(({ name }) => name === output)?.path ?? "";
  if (path !== "") return path;
  throw new CliError(
    `which path the output '${output}' of ${derivation} has, its content decides (ca-derivations, impure-derivations), so with --remote-store ` +
      "nobody here could tell it from another; build it without --remote-store",
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

/** So many at a time, in their order; 4000 fit into a command line. */
function chunks(paths: readonly string[], size = 4000): string[][] {
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

/** The paths and all that the builder says they refer to. A chain without end costs neither all memory nor all time. */
async function closureThere({
  env,
  uri,
  paths,
  patience,
}: Pick<CopyTaking, "env" | "uri" | "patience"> & { readonly paths: readonly string[] }): Promise<string[]> {
  const query = bounded(memory, "nix-store", "--store", uri, "--query", "--requisites", ...paths);
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

type CopyTaking = Taking & { readonly patience: number };

/** Copies them in their order: what a path refers to comes before it. */
async function copyEach(taking: CopyTaking, words: readonly string[], paths: readonly string[]): Promise<number> {
  // Of each of them a current Nix asks something before the first one comes.
  for (const some of chunks(paths, 1000)) {
    const exitCode = await copy(taking, words, some);
    if (exitCode !== 0) return exitCode;
  }
  return 0;
}

/** What has to arrive within a period, in bytes: any connection that is of use brings more. */
const leastArrival = 2 ** 20;

/** Copies them, unless the disk fills up meanwhile, or next to nothing comes: a builder may send without end. */
async function copy(taking: CopyTaking, words: readonly string[], paths: readonly string[]): Promise<number> {
  const { env, uri, store, patience, reserve } = taking;
  const place = `${store ?? ""}/nix/store`;
  const before = roomAt(place);
  const least = {
    bytes: reserve?.bytes ?? Math.min(2 ** 30, before.bytes / 2),
    files: reserve?.files ?? Math.min(10_000, before.files / 2),
  };
  const controller = new AbortController();
  let problem = "";
  const stop = (reason: string): void => {
    problem ||= reason;
    controller.abort();
  };
  const room = setInterval(() => {
    const { bytes, files } = roomAt(place);
    if (bytes >= least.bytes && files >= least.files) return;
    stop(
      `${uri} sends more than the disk of ${place} has room for (${Math.round(least.bytes / 2 ** 20)} MiB and ${Math.round(least.files)} files are to ` +
        "stay free); what came in part is removed: make room, or take the builder out of the fleet if it shouldn't be that much",
    );
  }, 500);
  let arrived = 0;
  const progress = setInterval(() => {
    const now = paths.reduce((sum, path) => sum + sizeOf(`${store ?? ""}${path}`), 0);
    if (now - arrived < leastArrival) {
      stop(
        `${uri} has sent less than a MiB of the results in ${patience / 1000} s; what came in part is removed: try again, or another builder`,
      );
    }
    arrived = now;
  }, patience);
  try {
    const result = await execa(...bounded(memory, "nix", "copy", ...words, "--from", uri, ...paths), {
      env,
      stdio: ["inherit", "ignore", "inherit"],
      reject: false,
      cancelSignal: controller.signal,
    });
    if (!result.isCanceled) return result.exitCode ?? 1;
  } finally {
    clearInterval(room);
    clearInterval(progress);
  }
  // What came in part is no valid path, but takes room.
  const partial = await missingHere(env, paths);
  await execa("nix-store", ["--delete", ...partial], { env, stdio: "ignore", reject: false });
  throw new CliError(problem);
}

function roomAt(place: string): Room {
  const { bavail, bsize, files, ffree } = statfsSync(place);
  // Some file systems don't count files.
  return { bytes: bavail * bsize, files: files === 0 ? Infinity : ffree };
}

/** Bytes of all that lies there, with what its names and kinds take in Nix's archive. */
function sizeOf(path: string): number {
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) return 0;
  const own = 256 + (found.isFile() ? found.size : 0);
  if (!found.isDirectory()) return own;
  return readdirSync(path).reduce((sum, name) => sum + sizeOf(`${path}/${name}`), own);
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
