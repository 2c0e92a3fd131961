/** `npx fleet explain`: for each derivation that would be built, which builder Nix would pick, and why not another. */
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { execa } from "execa";
import { clientEnvironment } from "../client/environment.ts";
import { parseRequirements } from "../nix/derivation.ts";
import {
  decide,
  type Candidate,
  type ClientCapabilities,
  type Decision,
  type Requirements,
} from "../nix/scheduling.ts";
import { nixVersion, readSettings } from "../client/settings.ts";
import { storeUri } from "../nix/machinesFile.ts";
import { rowObstacle } from "../nix/trust.ts";
import { clientStore } from "./nix.ts";
import { builderNix, CliError, writeOwnClient, type UsableFleet } from "./stack.ts";
import { say, sayJson } from "../terminal.ts";

/** A derivation and where it would be built. */
export interface Explanation extends Decision, Requirements {
  /** Path of the `.drv` file. */
  readonly derivation: string;
}

/** What a person says on the command line. */
export interface ExplainOptions {
  readonly json?: true;
  /** Explain this machine's own Nix, not `npx fleet build`. */
  readonly machine?: true;
}

/**
 * Prints what would be built where.
 *
 * @param words One installable (a `.drv` file, `flake#attribute`), or what `nix-build` takes.
 * @returns The exit code: 1 if something can't be built at all.
 * @throws CliError when it can't be evaluated.
 */
export async function explain(fleet: UsableFleet, words: readonly string[], options: ExplainOptions): Promise<number> {
  const store = clientStore(fleet.stack);
  const env = options.machine === true ? {} : clientEnvironment({ clientDirectory: writeOwnClient(fleet), store });
  const explanations = await explainInstallable(
    words,
    env,
    options.machine === true ? undefined : store,
    (uri, nix) => {
      const machine = fleet.builders.find((one) => storeUri(one) === uri);
      return machine && rowObstacle(machine, nix, builderNix(fleet, machine.alias));
    },
  );
  if (options.json === true) sayJson(explanations);
  else say(renderExplanations(explanations));
  return explanations.some(({ place }) => place === "nowhere") ? 1 : 0;
}

/**
 * What would be built where.
 *
 * @param env Environment that leads Nix to its configuration.
 * @param store Folder of the client's own store; `undefined`: the machine's.
 * @param noRow Why the builder with this URI can't be used as a row by a client with this Nix.
 */
export async function explainInstallable(
  words: readonly string[],
  env: NodeJS.ProcessEnv,
  store: string | undefined,
  noRow: (uri: string, nixVersion: string) => string | undefined = () => undefined,
): Promise<Explanation[]> {
  const settings = await readSettings(env);
  if (settings === undefined)
    throw new CliError("Nix is missing or can't read its configuration; `nix show-config` says more");
  const list = (name: string): string[] => (settings.get(name) ?? "").split(" ").filter(Boolean);
  const client: ClientCapabilities = {
    systems: [settings.get("system") ?? "", ...list("extra-platforms"), "builtin"],
    features: list("system-features"),
    maxJobs: Number(settings.get("max-jobs") ?? 0),
    nixVersion: await nixVersion(),
  };
  const candidates = parseRows(readRows(settings.get("builders") ?? ""), takenSlots(store, env["NIX_STATE_DIR"])).map(
    (candidate) => ({ ...candidate, noRow: noRow(candidate.uri, client.nixVersion) }),
  );
  const derivations = await toBeBuilt(await instantiate(words, env), env);
  return derivations.map((derivation) => {
    const required = parseRequirements(readFileSync(`${store ?? ""}${derivation}`, "utf8"));
    return { derivation, ...required, ...decide(required, candidates, client) };
  });
}

/** The explanations for people. */
export function renderExplanations(explanations: readonly Explanation[]): string {
  if (explanations.length === 0) return "Nothing would be built: everything is there already, or comes from a cache.";
  return explanations
    .map(({ derivation, system, requiredFeatures, place, alias, why, judgements }) => {
      const needs = requiredFeatures.length === 0 ? "" : `, requires ${requiredFeatures.join(", ")}`;
      const where = { builder: alias, here: "this machine", wait: "waits", nowhere: "can't be built" }[place];
      const width = Math.max(...judgements.map((judgement) => judgement.alias.length));
      const lines = judgements.map(({ alias: name, refusals, full, load, maxJobs }) => {
        const slots = `${load} of ${maxJobs} slots taken`;
        const says =
          refusals.length > 0
            ? `refuses: ${refusals.join("; ")}`
            : full
              ? `has no free slot: ${slots}`
              : `accepts: ${slots}`;
        return `    ${name.padEnd(width)}  ${says}`;
      });
      return [`${derivation} (${system}${needs})`, `  → ${where ?? ""}: ${why}`, ...lines].join("\n");
    })
    .join("\n");
}

/** What is evaluated gets a `.drv` file. */
async function instantiate(words: readonly string[], env: NodeJS.ProcessEnv): Promise<string[]> {
  const [first = ""] = words;
  if (words.length === 1 && first.endsWith(".drv")) return [first];
  const flake = words.length === 1 && first.includes("#");
  const output = flake
    ? await nix(env, "nix", ["path-info", "--derivation", first, "--extra-experimental-features", "nix-command flakes"])
    : await nix(env, "nix-instantiate", words);
  return output.split("\n").flatMap((line) => (line.startsWith("/") ? [line.replace(/!.*/, "")] : []));
}

/** Those derivations among them and their inputs that Nix would build, and not fetch. */
async function toBeBuilt(derivations: readonly string[], env: NodeJS.ProcessEnv): Promise<string[]> {
  const { all } = await execa("nix-store", ["--realise", "--dry-run", ...derivations], options(env));
  const [, after = ""] = /will be built:?\n((?: {2}\/.*(?:\n|$))*)/.exec(all) ?? [];
  return after.split("\n").flatMap((line) => (line.startsWith("  ") ? [line.trim()] : []));
}

/** Lines of the `builders` setting, files followed; a file that isn't there counts for nothing, as in Nix. */
function readRows(builders: string): string[] {
  return builders.split(/[\n;]/).flatMap((entry) => {
    const file = entry.trim();
    if (!file.startsWith("@")) return [entry];
    return existsSync(file.slice(1)) ? readFileSync(file.slice(1), "utf8").split("\n") : [];
  });
}

function parseRows(rows: readonly string[], taken: ReadonlySet<string>): (Candidate & { readonly uri: string })[] {
  return rows
    .map((row) => row.replace(/#.*/, "").trim())
    .filter((row) => row !== "")
    .map((row) => {
      const [uri = "", systems = "-", , maxJobs = "1", speedFactor = "1", supported = "-", mandatory = "-"] =
        row.split(/\s+/);
      const list = (column: string): string[] => (column === "-" ? [] : column.split(","));
      const slots = Number(maxJobs === "-" ? 1 : maxJobs);
      const slot = (index: number): string => `${uri.replaceAll("/", "_")}-${index}`;
      return {
        uri,
        alias: uri.replace(/^.*[/@]/, ""),
        systems: list(systems),
        maxJobs: slots,
        speedFactor: Number(speedFactor === "-" ? 1 : speedFactor),
        supportedFeatures: list(supported),
        mandatoryFeatures: list(mandatory),
        load: Array.from({ length: slots }, (_, index) => slot(index)).filter((name) => taken.has(name)).length,
      };
    });
}

/**
 * Names of the slots that builds of this client hold: locked files of Nix's `current-load`.
 *
 * @param locks The kernel's list of locks. Where there is none, as on macOS, nobody can say, and no slot counts as taken.
 */
export function takenSlots(
  store: string | undefined,
  stateDirectory: string | undefined,
  locks = "/proc/locks",
): Set<string> {
  if (!existsSync(locks)) return new Set();
  const locked = new Set(
    readFileSync(locks, "utf8")
      .split("\n")
      .flatMap((line) => (line.includes("FLOCK") ? [/:(\d+) 0 EOF/.exec(line)?.[1] ?? ""] : [])),
  );
  const folders = [store === undefined ? undefined : `${store}/nix/var/nix`, stateDirectory ?? "/nix/var/nix"];
  return new Set(
    folders.flatMap((folder) => {
      const load = `${folder ?? ""}/current-load`;
      if (folder === undefined || !existsSync(load)) return [];
      return readdirSync(load).filter((name) => locked.has(String(statSync(`${load}/${name}`).ino)));
    }),
  );
}

async function nix(env: NodeJS.ProcessEnv, program: string, words: readonly string[]): Promise<string> {
  const result = await execa(program, words, options(env));
  if (!result.failed) return result.stdout;
  const reason =
    result.code === "ENOENT" ? "it is not installed; `npm run setup` installs it or says how" : result.stderr.trim();
  throw new CliError(`${program} says: ${reason}`);
}

function options(env: NodeJS.ProcessEnv) {
  return { all: true, env, reject: false, stdin: "ignore" } as const;
}
