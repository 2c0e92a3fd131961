/** Runs `nix-build` or `nix` through the fleet and nothing else. */
import { readFileSync } from "node:fs";
import { execa } from "execa";
import { clientEnvironment } from "../client/environment.ts";
import type { BuildMachine } from "../nix/buildMachine.ts";
import { nixVersion } from "../client/settings.ts";
import { storeUri } from "../nix/machinesFile.ts";
import { rowObstacle } from "../nix/trust.ts";
import { isWritable } from "./clientUse.ts";
import { asksAboutNix, nixCommand, wordsForNix } from "./nixWords.ts";
import { repointOutLinks } from "./outLink.ts";
import { fetchLogs, type LogHolder } from "./log.ts";
import { missing, runInRemoteStore } from "./remoteStore.ts";
import { askForAnswer, recordedStatus } from "./status.ts";
import { builderNix, CliError, readFleet, stackDirectory, writeOwnClient, type UsableFleet } from "./stack.ts";
import { oneLine, plainText } from "../machineText.ts";
import { ownValue } from "../record.ts";
import { complain } from "../terminal.ts";

/** How a Nix program is to run. */
export interface NixRun {
  readonly stack: string;
  readonly program: "nix-build" | "nix";
  /** Its arguments, untouched. */
  readonly words: readonly string[];
  /** Name of the builder that does everything as a remote store; `undefined`: Nix gives each derivation to a builder. */
  readonly remoteStore?: string;
}

/**
 * Runs a Nix program with the fleet's client files alone, building nothing on this machine.
 *
 * @returns Its exit code.
 * @throws CliError when Nix isn't there, the stack has no fleet, or no builder has that name.
 */
export async function runNix({ stack, program, words, remoteStore }: NixRun): Promise<number> {
  const fleet = await readFleet(stack);
  const clientDirectory = writeOwnClient(fleet);
  const store = clientStore(stack);
  // With a remote store such words are the builder's.
  const localBuilds = remoteStore === undefined && asksForLocalBuilds(words);
  const env = clientEnvironment({ clientDirectory, store, localBuilds });
  // No store of another machine shows its logs: they are brought here, where Nix looks for them.
  const readsLog = program === "nix" && nixCommand(words) === "log";
  if (readsLog) {
    const { adminPrivateKey } = fleet;
    const holders = logHolders(fleet, remoteStore);
    await fetchLogs({
      words: words.toSpliced(words.indexOf("log"), 1),
      env,
      store,
      clientDirectory,
      adminPrivateKey,
      holders,
    });
  }
  if (remoteStore !== undefined && !readsLog) {
    const uri = storeUri(findBuilder(fleet, remoteStore));
    const names = recordedStatus(fleet).map(({ name }) => name);
    const builders = fleet.builders.map((builder, index) => ({ ...builder, name: names[index] ?? builder.alias }));
    return runInRemoteStore({
      program,
      words,
      env,
      builder: remoteStore,
      uri,
      store,
      explain: (said) => wrongRemoteStore(said, builders),
    });
  }
  refuseCheck(
    program,
    words,
    recordedStatus(fleet).map(({ name }) => name),
  );
  if (program === "nix-build" || buildingCommands.includes(nixCommand(words))) await sayWithoutRows(fleet);
  const exitCode = await runAroundLostBuilders({ program, words, env, clientDirectory, machines: fleet.builders });
  if (store !== undefined && exitCode === 0 && leavesResults(program, words)) repointOutLinks(words, store);
  return exitCode;
}

/** Commands of `nix` that may build. */
const buildingCommands = ["build", "develop", "flake check", "run", "shell", "profile install", "profile add"];

/**
 * Says which builders this machine's Nix can't use as rows of `builders`, and the way that works.
 *
 * @throws CliError where it can use none
 */
async function sayWithoutRows(fleet: UsableFleet): Promise<void> {
  const nix = fleet.builders.every(({ trust = "full" }) => trust === "full") ? "" : await nixVersion();
  const without = recordedStatus(fleet).flatMap(({ name, alias }, index) => {
    const machine = fleet.builders[index];
    const because =
      nix === "" || machine === undefined ? undefined : rowObstacle(machine, nix, builderNix(fleet, alias));
    return because === undefined ? [] : [{ name, because }];
  });
  const [first] = without;
  if (first === undefined) return;
  const names = without.map(({ name }) => name).join(", ");
  const sentence = `Nix can't use ${names} as its builders: ${first.because}; use one as a store instead, with --remote-store ${first.name}`;
  if (without.length === fleet.builders.length) throw new CliError(sentence);
  complain(`fleet: ${sentence}`);
}

/**
 * Through rows of builders, a build that is to be compared with an earlier one is not done (Nix 2.8), or fails (2.34).
 *
 * @param builders Their names.
 * @throws CliError naming the way that works.
 */
export function refuseCheck(program: NixRun["program"], words: readonly string[], builders: readonly string[]): void {
  const option = program === "nix-build" ? "--check" : "--rebuild";
  if (!wordsForNix(words).includes(option)) return;
  throw new CliError(
    `Nix doesn't build again on another machine, so ${option} would prove nothing: put --remote-store NAME before the arguments ` +
      `(one of ${builders.join(", ")}), build it there once without ${option}, and then with it`,
  );
}

/** Whether a person's arguments let Nix build on this machine after all. */
export function asksForLocalBuilds(words: readonly string[]): boolean {
  return wordsForNix(words).some((word) => /^-j|^(--)?max-jobs$/.test(word));
}

/** Whether it is about results that a person looks for afterwards. */
export function leavesResults(program: NixRun["program"], words: readonly string[]): boolean {
  const builds = program === "nix-build" || nixCommand(words) === "build";
  return builds && !asksAboutNix(words) && !words.includes("--dry-run");
}

/** A run that may lose builders on its way. */
export interface RunAround {
  readonly program: "nix-build" | "nix";
  readonly words: readonly string[];
  readonly env: Record<string, string>;
  /** Folder with the emitted files. */
  readonly clientDirectory: string;
  readonly machines: readonly BuildMachine[];
}

/**
 * Runs it, and when it fails while builders have stopped answering, says so and runs it again on the others.
 *
 * Nix itself fails a derivation whose builder goes away in mid-build; what was built before that stays built.
 *
 * @returns The exit code of the last run.
 * @throws CliError when Nix isn't there.
 */
export async function runAroundLostBuilders(run: RunAround): Promise<number> {
  const { program, words, clientDirectory } = run;
  let { env, machines } = run;
  for (;;) {
    const result = await execa(program, words, { env, stdio: "inherit", reject: false });
    if (result.code === "ENOENT") throw missing(program);
    if (result.exitCode === 0 || result.exitCode === undefined) return result.exitCode ?? 1;
    const answers = await Promise.all(machines.map((machine) => askForAnswer(machine, env)));
    const lost = machines.filter((_, index) => answers[index]?.answers === false).map(({ alias }) => alias);
    machines = machines.filter(({ alias }) => !lost.includes(alias));
    if (lost.length === 0 || machines.length === 0) return result.exitCode;
    complain(
      `fleet: lost ${lost.join(", ")}, which no longer answers; going on with ${machines.map(({ alias }) => alias).join(", ")}`,
    );
    const rows = readFileSync(`${clientDirectory}/machines`, "utf8").split("\n");
    const left = rows.filter((row) => machines.some((machine) => row.startsWith(`${storeUri(machine)} `)));
    env = { ...env, NIX_CONFIG: `${env["NIX_CONFIG"] ?? ""}\nbuilders = ${left.join(" ; ")}\n` };
  }
}

/** Folder of the store that results come to; `undefined`: the machine's. */
export function clientStore(stack: string): string | undefined {
  return machineStoreIsWritable() ? undefined : `${stackDirectory(stack)}/store`;
}

/**
 * Why one builder could not do everything, where that is because of a system or feature, and which ones could.
 *
 * @param said What Nix printed (2.8 to 2.34).
 * @param builders All of the stack.
 * @returns One sentence; `undefined`: it failed for another reason.
 */
export function wrongRemoteStore(
  said: string,
  builders: readonly (Pick<BuildMachine, "systems" | "supportedFeatures" | "mandatoryFeatures"> & { name: string })[],
): string | undefined {
  const required = /(?:\ba|Required system:) '([^']+)' with features \{([^}]*)\}/.exec(plainText(said));
  if (required === null) return undefined;
  const [system, list] = [oneLine(required[1] ?? "", 100), oneLine(required[2] ?? "", 300)];
  const features = list.split(",").map((feature) => feature.trim());
  const named = features.filter((feature) => feature !== "");
  const able = builders.filter(
    (builder) =>
      builder.systems.includes(system) &&
      named.every((feature) => [...builder.supportedFeatures, ...builder.mandatoryFeatures].includes(feature)) &&
      builder.mandatoryFeatures.every((feature) => named.includes(feature)),
  );
  const what = `${system}${named.length === 0 ? "" : ` with ${named.join(", ")}`}`;
  return able.length === 0
    ? `no builder of this stack builds for ${what}`
    : `that builder doesn't build for ${what}; these do: ${able.map(({ name }) => name).join(", ")}`;
}

/** The builders that the fleet administers, or the one of that name. */
function logHolders(fleet: UsableFleet, name: string | undefined): LogHolder[] {
  const only = name === undefined ? undefined : findBuilder(fleet, name).alias;
  return Object.entries(fleet.verification).flatMap(([builder, { alias }]) => {
    const machine = fleet.builders.find((candidate) => candidate.alias === alias);
    const administration = ownValue(fleet.administration, builder);
    if (machine === undefined || administration === undefined || (only !== undefined && alias !== only)) return [];
    return [{ machine, user: administration.user, ownStore: administration.peculiarities.ownStore }];
  });
}

function findBuilder(fleet: UsableFleet, name: string): UsableFleet["builders"][number] {
  const names = recordedStatus(fleet).map((builder) => builder.name);
  const found = fleet.builders[names.indexOf(name)] ?? fleet.builders.find(({ alias }) => alias === name);
  if (found !== undefined) return found;
  throw new CliError(`stack '${fleet.stack}' has no builder '${name}'; its builders are ${names.join(", ")}`);
}

/** Whether Nix can work on the machine's store directly: as root, or as the owner of a single-user installation. */
function machineStoreIsWritable(): boolean {
  return isWritable("/nix/var/nix/db");
}
