/** Proves that one builder builds: a derivation that did not exist before, through the emitted files, on that builder alone. */
import { randomBytes } from "node:crypto";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { execa } from "execa";
import { clientEnvironment } from "../client/environment.ts";
import { removeTree } from "../local/folders.ts";
import { parseBuiltBy, smokeExpression } from "./derivation.ts";
import { explainFailure } from "./failure.ts";

/** What is to be proven. */
export interface SmokeTest {
  /** The builder's alias: picks its row in the emitted `machines`. */
  readonly alias: string;
  /** Nix system to build for. */
  readonly system: string;
  /** `uname -m` that the build must report. */
  readonly arch: string;
  /** Features without which the builder takes no derivation. */
  readonly mandatoryFeatures: readonly string[];
  /** Folder with the emitted files. */
  readonly clientDirectory: string;
  /** Boot id measured on the machine itself; `undefined` where nobody could look. */
  readonly bootId: string | undefined;
  /** Seconds until it must have built. */
  readonly timeout: number;
}

/** That a builder is verified, and by what. A builder that isn't throws instead. */
export interface Verdict {
  readonly verified: true;
  /** The builder's alias. */
  readonly alias: string;
  /** Wall time of the build that succeeded, connection included. */
  readonly seconds: number;
  readonly system: string;
  /** What was built: valid on that builder. */
  readonly storePath: string;
  readonly bootId: string;
  readonly arch: string;
}

/**
 * Builds and checks. Tries again until the timeout where the builder may still be starting.
 *
 * @throws Error with the reason in words and what to do.
 */
export async function runSmokeTest(test: SmokeTest): Promise<Verdict> {
  const row = machinesRow(test);
  const store = mkdtempSync(`${dirname(test.clientDirectory)}/smoke-`);
  try {
    const deadline = Date.now() + test.timeout * 1000;
    for (let pause = 250; ; pause = Math.min(pause * 2, 5000)) {
      const outcome = await attempt(test, row, store, deadline);
      if ("verified" in outcome) return outcome;
      if (!outcome.mayPass || Date.now() + pause > deadline) {
        throw new Error(`builder ${test.alias} is not verified: ${outcome.reason}.`);
      }
      await delay(pause);
    }
  } finally {
    removeTree(store);
  }
}

/** The builder's own row of the emitted file: with it alone, nobody else can have built. */
function machinesRow({ alias, clientDirectory }: SmokeTest): string {
  const rows = readFileSync(`${clientDirectory}/machines`, "utf8").split("\n");
  const row = rows.find((text) => new RegExp(`^ssh(-ng)?://([^@ ]+@)?${alias}[ ?]`).test(text));
  if (row === undefined) throw new Error(`${clientDirectory}/machines has no row for ${alias}`);
  return row;
}

async function attempt(
  test: SmokeTest,
  row: string,
  store: string,
  deadline: number,
): Promise<Verdict | { readonly reason: string; readonly mayPass: boolean }> {
  const nonce = randomBytes(8).toString("hex");
  const expression = `${store}/smoke.nix`;
  writeFileSync(expression, smokeExpression(nonce, test.system, test.mandatoryFeatures));
  const options = {
    all: true,
    reject: false,
    stdin: "ignore",
    env: clientEnvironment({ clientDirectory: test.clientDirectory, store }),
    timeout: Math.max(1000, deadline - Date.now()),
  } as const;
  const started = performance.now();
  const build = await execa(
    "nix-build",
    // The nonce alone makes it new; without substituters no time is spent on asking caches for it.
    [
      expression,
      "--no-out-link",
      "--builders",
      row,
      "--option",
      "substituters",
      "",
      "--option",
      "builders-use-substitutes",
      "false",
    ],
    options,
  );
  const seconds = Math.round((performance.now() - started) / 10) / 100;
  if (build.failed) {
    return build.timedOut
      ? { reason: `it did not finish within ${test.timeout} s (\`smokeTimeout\`)`, mayPass: false }
      : explainFailure(build.all.trim() === "" ? (build.message ?? "") : build.all);
  }
  const storePath = build.stdout.trim();
  const builtBy = parseBuiltBy(readFileSync(`${store}${storePath}`, "utf8"));
  const wrong = contradiction(test, builtBy, nonce);
  if (wrong !== undefined) return { reason: wrong, mayPass: false };
  const uri = row.split(" ")[0] ?? "";
  const valid = await execa("nix-store", ["--store", uri, "--check-validity", storePath], options);
  if (valid.failed) return { reason: `it does not have ${storePath}, so something else built it`, mayPass: false };
  return {
    verified: true,
    alias: test.alias,
    seconds,
    system: test.system,
    storePath,
    bootId: builtBy.bootId,
    arch: builtBy.arch,
  };
}

function contradiction(test: SmokeTest, builtBy: ReturnType<typeof parseBuiltBy>, nonce: string): string | undefined {
  if (builtBy.nonce !== nonce) return `its output carries the nonce ${builtBy.nonce}, not ${nonce}`;
  if (builtBy.arch !== test.arch) {
    return `what it built says ${builtBy.arch}, not ${test.arch}: it is not a builder for ${test.system}; check \`system\``;
  }
  if (test.bootId !== undefined && builtBy.bootId !== test.bootId) {
    return `another machine built it (boot id ${builtBy.bootId}, the builder's is ${test.bootId})`;
  }
  return undefined;
}
