/** Proves that one builder builds: derivations that did not exist before, through the emitted files, on that builder alone. */
import { readFileSync } from "node:fs";
import { connect } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { parseClientFiles } from "../nix/clientFiles.ts";
import { isLoopback, protocols, type BuildMachine } from "../nix/buildMachine.ts";
import { kernelArch, systems } from "../nix/system.ts";
import { rowObstacle, type Trust } from "../nix/trust.ts";
import { nixVersion } from "../client/settings.ts";
import { isValidThereAlone, SmokeBuilds, type Built } from "./builds.ts";
import { parseBuiltBy, smokeExpression, type BuiltBy } from "./derivation.ts";
import type { Failure } from "./failure.ts";
import { renderCases } from "./report.ts";
import type { CaseResult, SmokeLevel, Verdict } from "./verdict.ts";

/** What is to be proven. */
export interface SmokeTest {
  /** The builder's alias: picks it in the emitted files. */
  readonly alias: string;
  /** Folder with the emitted files. */
  readonly clientDirectory: string;
  readonly level: Exclude<SmokeLevel, "off">;
  /** Boot id measured on the machine itself; `undefined` where nobody could look. */
  readonly bootId: string | undefined;
  /**
   * Whether the fleet set the machine up: then it must speak both protocols, and what it should refuse and doesn't fails the test.
   * Otherwise the configured protocol is enough, and that is a warning.
   */
  readonly ownMachine: boolean;
  /** Level of the client; `undefined`: a host that decides that for itself. */
  readonly trust?: Trust | undefined;
  /** Version of the builder's Nix; `undefined`: nobody could look. */
  readonly builderNix?: string | undefined;
  /** Seconds until it must have built for the first time; later builds get as long each. */
  readonly timeout: number;
}

/** The builder is not verified; the message says why and what to do. */
export class SmokeTestFailure extends Error {
  override readonly name = "SmokeTestFailure";
  /** What was found all the same. */
  readonly verdict: Verdict;

  constructor(reason: string, verdict: Verdict) {
    super(`builder ${verdict.alias} is not verified${reason}`);
    this.verdict = verdict;
  }
}

/**
 * Builds and checks. Tries the first build again until the timeout where the builder may still be starting.
 *
 * @throws SmokeTestFailure with the reason in words and what to do.
 */
export async function runSmokeTest(test: SmokeTest): Promise<Verdict> {
  const machines = readClientDirectory(test.clientDirectory);
  const found = machines.find(({ alias }) => alias === test.alias);
  const machine = found && { ...found, ...(test.trust !== undefined && { trust: test.trust }) };
  if (machine === undefined) throw new Error(`${test.clientDirectory}/machines has no row for ${test.alias}`);
  const trusted = (test.trust ?? "full") === "full";
  const noRow = trusted ? undefined : rowObstacle(machine, await nixVersion(), test.builderNix);
  const builds = new SmokeBuilds(machine, test.clientDirectory, test.timeout, noRow === undefined ? "row" : "store");
  try {
    const verdict = await firstBuild(test, machine, builds);
    if (noRow !== undefined)
      verdict.cases.push({ name: wayCase, outcome: "warned", seconds: 0, detail: storeWay(noRow) });
    if (test.level === "quick") return verdict;
    // Only here, so that the quick test of every deployment needn't read them.
    const [{ runMatrix }, { tryRefusals }, { tryTakeover }] = await Promise.all([
      import("./matrix.ts"),
      import("./refusals.ts"),
      import("./takeover.ts"),
    ]);
    const others = machines.filter(({ alias }) => alias !== test.alias);
    // Somebody else's forced command may know the configured protocol only.
    const speaksBoth = test.ownMachine && (test.trust ?? "full") === "full";
    const spoken = speaksBoth ? protocols : [machine.protocol];
    const { cases, mebibytesPerSecond } = await runMatrix(machine, builds, spoken);
    const all = [
      ...verdict.cases,
      await isValidThereAlone(machine, others, verdict.storePath ?? "", builds),
      ...cases,
      await tryTakeover(machine, builds, test.ownMachine),
      ...(await tryRefusals(machine, test)),
    ];
    const whole = { ...verdict, cases: all, ...(mebibytesPerSecond !== undefined && { mebibytesPerSecond }) };
    const failed = all.filter(({ outcome }) => outcome === "failed");
    if (failed.length > 0)
      throw new SmokeTestFailure(
        `:
${renderCases(failed)}`,
        { ...whole, verified: false },
      );
    return whole;
  } finally {
    builds.remove();
  }
}

const wayCase = "is a row of `builders` for this machine";

function storeWay(noRow: string): string {
  return `it isn't: ${noRow}; what was proven is the builder as a store (--store, or npx fleet build --remote-store)`;
}

/** The builders of a client directory, as its files speak of them. */
export function readClientDirectory(directory: string): BuildMachine[] {
  const read = (name: string): string => readFileSync(`${directory}/${name}`, "utf8");
  return parseClientFiles(
    { machines: read("machines"), ssh_config: read("ssh_config"), known_hosts: read("known_hosts") },
    { directory },
  );
}

type FirstVerdict = Verdict & { readonly cases: CaseResult[] };

async function firstBuild(test: SmokeTest, machine: BuildMachine, builds: SmokeBuilds): Promise<FirstVerdict> {
  const deadline = Date.now() + test.timeout * 1000;
  for (let pause = 250; ; pause = Math.min(pause * 2, 5000)) {
    const outcome = await attempt(test, machine, builds, Math.max(1000, deadline - Date.now()));
    if ("verified" in outcome) return outcome;
    if (!outcome.mayPass || Date.now() + pause > deadline) {
      const { alias, level } = test;
      const name = `builds ${machine.systems[0] ?? ""} over ${machine.protocol}`;
      const cases: CaseResult[] = [{ name, outcome: "failed", seconds: 0, detail: outcome.reason }];
      throw new SmokeTestFailure(`: ${outcome.reason}.`, { verified: false, alias, level, seconds: 0, cases });
    }
    await delay(pause);
  }
}

async function attempt(
  test: SmokeTest,
  machine: BuildMachine,
  builds: SmokeBuilds,
  milliseconds: number,
): Promise<FirstVerdict | Failure> {
  const system = machine.systems[0] ?? "";
  const started = Date.now();
  const built = await builds.run(smokeExpression, {
    system,
    milliseconds,
    // A connection from before a key was changed would prove nothing of the new one.
    newConnection: true,
  });
  if ("reason" in built) return built;
  const builtBy = readBuiltBy(built.output);
  if ("reason" in builtBy) return builtBy;
  const wrong = contradiction(test, machine, system, builtBy, built);
  if (wrong !== undefined) return { reason: wrong, mayPass: false };
  return {
    verified: true,
    alias: machine.alias,
    level: test.level,
    seconds: built.seconds,
    system,
    storePath: built.storePath,
    bootId: builtBy.bootId,
    arch: builtBy.arch,
    sandboxed: builtBy.sandboxed,
    kvm: builtBy.kvm,
    clockOffset: clockOffset(builtBy.clock, started / 1000, Date.now() / 1000),
    // On this machine there is no distance, and each connection costs its sshd a process.
    ...(!isLoopback(machine.hostName) && { roundTrip: await roundTrip(machine) }),
    way: builds.way,
    cases: [caseOfFirstBuild(machine, system, built)],
  };
}

/** A builder that returns something else has failed the test; the program hasn't. */
function readBuiltBy(output: string): BuiltBy | Failure {
  try {
    return parseBuiltBy(output);
  } catch (error) {
    return { reason: error instanceof Error ? error.message : String(error), mayPass: false };
  }
}

function caseOfFirstBuild(machine: BuildMachine, system: string, { seconds }: Built): CaseResult {
  return { name: `builds ${system} over ${machine.protocol}`, outcome: "passed", seconds };
}

/** What the build's own words say against the builder, in words; `undefined`: nothing. */
export function contradiction(
  test: Pick<SmokeTest, "bootId">,
  machine: BuildMachine,
  system: string,
  builtBy: BuiltBy,
  built: Pick<Built, "nonce">,
): string | undefined {
  const known = systems.find((candidate) => candidate === system);
  const features = [...machine.supportedFeatures, ...machine.mandatoryFeatures];
  if (builtBy.nonce !== built.nonce) return `its output carries the nonce ${builtBy.nonce}, not ${built.nonce}`;
  if (known !== undefined && builtBy.arch !== kernelArch(known)) {
    return `what it built says ${builtBy.arch}, not ${kernelArch(known)}: it is not a builder for ${system}; check \`system\``;
  }
  if (test.bootId !== undefined && builtBy.bootId !== test.bootId) {
    return `another machine built it (boot id ${builtBy.bootId}, the builder's is ${test.bootId})`;
  }
  if (!builtBy.sandboxed) {
    return "it builds without a sandbox, so what it builds may depend on that machine; set `sandbox = true` in its nix.conf";
  }
  if (features.includes("kvm") && !builtBy.kvm) {
    return (
      "its builds can't open /dev/kvm although it has the feature kvm; remove kvm from its features, or give it a " +
      "/dev/kvm that the build users may write to, and kvm among its Nix's `system-features`"
    );
  }
  return undefined;
}

/** Seconds by which a clock that said `clock` at some time from `start` to `end` is off for certain. */
export function clockOffset(clock: number, start: number, end: number): number {
  // It is the sum of two whole numbers, the boot time and the seconds since.
  const resolution = 2;
  if (clock > end + resolution) return Math.round(clock - end);
  if (clock < start - resolution) return Math.round(clock - start);
  return 0;
}

/** A TCP connect to the builder's sshd, in ms: the network's round trip. */
export async function roundTrip({ hostName, port }: Pick<BuildMachine, "hostName" | "port">): Promise<number> {
  const started = performance.now();
  const milliseconds = await new Promise<number>((resolve) => {
    let taken = 5000;
    const socket = connect({ host: hostName, port, timeout: taken }, () => {
      taken = performance.now() - started;
      socket.destroy();
    });
    socket.once("timeout", () => socket.destroy());
    socket.once("error", () => socket.destroy());
    socket.once("close", () => {
      resolve(taken);
    });
  });
  return Math.round(milliseconds * 10) / 10;
}
