/** Builds for one smoke test: each new, on one builder only, into a store of the test's own. */
import { randomBytes } from "node:crypto";
import { closeSync, constants, fstatSync, openSync, readFileSync, readSync, writeFileSync } from "node:fs";
import { clientEnvironment } from "../client/environment.ts";
import { scratchFolder } from "../client/scratch.ts";
import { removeTree } from "../local/folders.ts";
import type { BuildMachine, Protocol } from "../nix/buildMachine.ts";
import { storeUri } from "../nix/machinesFile.ts";
import { runProgram, type Ended } from "../process.ts";
import type { SmokeDerivation } from "./derivation.ts";
import { explainFailure, loginKey, type Failure } from "./failure.ts";
import type { CaseResult } from "./verdict.ts";

/** How one derivation is built. */
export interface BuildOptions {
  /** Nix system; one of the builder's. */
  readonly system: string;
  /** Default: the builder's. */
  readonly protocol?: Protocol;
  /** Features to require beside the builder's mandatory ones. */
  readonly features?: readonly string[];
  /** Default: the test's. */
  readonly milliseconds?: number;
  /** Whether it logs in by itself, though a connection that an earlier build left is open. Default: false. */
  readonly newConnection?: boolean;
}

/** A build that succeeded. */
export interface Built {
  readonly nonce: string;
  /** Wall time, connection included. */
  readonly seconds: number;
  /** Of the first derivation, with the text in it (its last 4 KiB). */
  readonly storePath: string;
  readonly output: string;
  /** The texts of all derivations. */
  readonly outputs: readonly string[];
}

/** A build that failed. */
export interface NotBuilt extends Failure {
  readonly nonce: string;
  readonly seconds: number;
  /** Everything that Nix and ssh printed. */
  readonly log: string;
}

/** The builds of one smoke test. */
export class SmokeBuilds {
  readonly #machine: BuildMachine;
  readonly #clientDirectory: string;
  readonly #timeout: number;
  readonly #store: string;
  /** Whether the builder is used as a row of `builders`, or as the store that everything is built in. */
  readonly way: "row" | "store";

  /** @param timeout Seconds for each build. */
  constructor(machine: BuildMachine, clientDirectory: string, timeout: number, way: "row" | "store" = "row") {
    this.way = way;
    this.#machine = machine;
    this.#clientDirectory = clientDirectory;
    this.#timeout = timeout;
    this.#store = scratchFolder(clientDirectory, "smoke");
  }

  /** Builds what `expression` makes of a new nonce. */
  async run(expression: (derivation: SmokeDerivation) => string, options: BuildOptions): Promise<Built | NotBuilt> {
    const { system, features = [], protocol = this.#machine.protocol } = options;
    const nonce = randomBytes(8).toString("hex");
    const file = `${this.#store}/smoke-${nonce}.nix`;
    writeFileSync(file, expression({ nonce, system, features: [...this.#machine.mandatoryFeatures, ...features] }));
    const started = performance.now();
    const build = await (this.way === "row"
      ? this.#buildByRow(file, protocol, options)
      : this.#buildThere(file, options));
    const seconds = Math.round((performance.now() - started) / 10) / 100;
    if (build.code !== 0) {
      const failure = build.timedOut
        ? { reason: `it did not finish within ${this.#timeout} s (\`smokeTimeout\`)`, mayPass: false }
        : build.tooMuch
          ? { reason: `of its messages and the build's log ${build.problem}`, mayPass: false }
          : explainFailure(build.stderr.trim() === "" ? build.problem : build.stderr, loginKey(this.#machine));
      return { ...failure, nonce, seconds, log: build.stderr };
    }
    const storePaths = build.stdout.trim().split("\n");
    const outputs = storePaths.map((path) => endOfFile(`${this.#store}${path}`));
    if (outputs.includes(undefined)) {
      const reason = "what it built is not a file, as all of the test's derivations write";
      return { reason, mayPass: false, nonce, seconds, log: build.stderr };
    }
    const texts = outputs.filter((text) => text !== undefined);
    return { nonce, seconds, storePath: storePaths[0] ?? "", output: texts[0] ?? "", outputs: texts };
  }

  #buildByRow(file: string, protocol: Protocol, options: BuildOptions): Promise<Ended> {
    // The nonce alone makes it new; without substituters no time is spent on asking caches for it.
    const words = [
      ...[file, "--no-out-link", "--builders", this.#row(protocol)],
      ...["--option", "substituters", "", "--option", "builders-use-substitutes", "false"],
    ];
    return this.#execute("nix-build", words, options);
  }

  /** Evaluates here, builds everything in the builder's store, and brings the outputs back. */
  async #buildThere(file: string, options: BuildOptions): Promise<Ended> {
    const uri = storeUri({ ...this.#machine, protocol: "ssh-ng" });
    const there = ["--store", uri, "--eval-store", `local?root=${this.#store}`, "--max-jobs", "auto"];
    const words = [file, "--no-out-link", "--builders", "", "--option", "substituters", ""];
    const built = await this.#execute("nix-build", [...words, ...there], options);
    if (built.code !== 0) return built;
    // Only what was asked for, by the names that the evaluation gave.
    const copied = await this.#execute(
      "nix",
      ["copy", "--no-check-sigs", "--from", uri, ...built.stdout.trim().split("\n")],
      options,
    );
    return copied.code === 0 ? built : copied;
  }

  /** Whether a store path is valid on a builder of the fleet; also false where it doesn't answer. */
  async isValid(machine: BuildMachine, storePath: string): Promise<boolean> {
    const check = ["--store", storeUri(machine), "--check-validity", storePath];
    return (await this.#execute("nix-store", check)).code === 0;
  }

  /** Removes the store. */
  remove(): void {
    removeTree(this.#store);
  }

  /** The builder's own row of the emitted file: with it alone, nobody else can have built. */
  #row(protocol: Protocol): string {
    const rows = readFileSync(`${this.#clientDirectory}/machines`, "utf8").split("\n");
    const row = rows.find((text) => text.startsWith(`${storeUri(this.#machine)} `)) ?? "";
    return row.replace(/^[a-z-]+:/, `${protocol}:`);
  }

  #execute(
    program: string,
    words: readonly string[],
    {
      newConnection = false,
      milliseconds = this.#timeout * 1000,
    }: Pick<BuildOptions, "newConnection" | "milliseconds"> = {},
  ): Promise<Ended> {
    const env = clientEnvironment({ clientDirectory: this.#clientDirectory, store: this.#store });
    if (newConnection) env["NIX_SSHOPTS"] = `${env["NIX_SSHOPTS"] ?? ""} -o ControlPath=none`;
    return runProgram(program, words, { env, milliseconds });
  }
}

/**
 * The last 4 KiB of what a builder says that it built: a file of any size, or a link to one of this machine's.
 *
 * @returns `undefined` where it is no file.
 */
function endOfFile(path: string): string | undefined {
  let file: number;
  try {
    file = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch {
    return undefined;
  }
  try {
    const found = fstatSync(file);
    if (!found.isFile()) return undefined;
    const end = Buffer.alloc(Math.min(found.size, 4096));
    readSync(file, end, 0, end.length, found.size - end.length);
    return end.toString();
  } finally {
    closeSync(file);
  }
}

/** Case: what one builder built is on it and on no other builder, so no other can have built it. */
export async function isValidThereAlone(
  machine: BuildMachine,
  others: readonly BuildMachine[],
  storePath: string,
  builds: SmokeBuilds,
): Promise<CaseResult> {
  const started = performance.now();
  const [onIt, ...elsewhere] = await Promise.all(
    [machine, ...others].map((builder) => builds.isValid(builder, storePath)),
  );
  const holders = others.filter((_, index) => elsewhere[index]).map(({ alias }) => alias);
  const result = {
    name: "what it built is on it and on no other builder",
    seconds: Math.round((performance.now() - started) / 10) / 100,
  };
  if (onIt !== true) {
    return { ...result, outcome: "failed", detail: `it does not have ${storePath}, so something else built it` };
  }
  return holders.length === 0
    ? { ...result, outcome: "passed" }
    : { ...result, outcome: "failed", detail: `${storePath} is on ${holders.join(", ")} too` };
}
