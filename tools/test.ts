/** `npm test`: lint, types and all tests. `npm test -- ARGS`: only vitest, with these. The last line counts everything. */
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Counts, lastLine } from "../test/support/reporter.ts";
import { checkout, fail } from "./launch.mjs";
import { setUp } from "./setup/index.ts";
import { elapsed, say } from "./setup/progress.ts";

interface Check {
  readonly title: string;
  readonly script: string;
  readonly args: readonly string[];
}

/** What is checked besides the tests; each counts as one test. */
const checks: readonly Check[] = [
  { title: "prettier", script: "prettier/bin/prettier.cjs", args: ["--check", "--log-level", "warn", "."] },
  { title: "eslint", script: "eslint/bin/eslint.js", args: ["."] },
  { title: "types (tsc)", script: "typescript/bin/tsc", args: ["--noEmit"] },
];

/** The reporter that counts. */
const counter = join(checkout, "test/support/reporter.ts");

/** Runs a package's program, and returns its exit code and, unless it has our terminal, what it said. */
function runNode({ script, args }: Omit<Check, "title">, env: NodeJS.ProcessEnv, terminal: boolean) {
  const child = spawn(process.execPath, [join(checkout, "node_modules", script), ...args], {
    cwd: checkout,
    env,
    stdio: terminal ? "inherit" : ["ignore", "pipe", "pipe"],
  });
  let said = "";
  for (const stream of [child.stdout, child.stderr]) stream?.on("data", (chunk: Buffer) => (said += String(chunk)));
  const end = () => child.kill();
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, end);
  return new Promise<{ code: number; said: string }>((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code) => {
      for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.off(signal, end);
      resolve({ code: code ?? 1, said });
    });
  });
}

async function runCheck(check: Check, env: NodeJS.ProcessEnv): Promise<boolean> {
  const started = Date.now();
  const { code, said } = await runNode(check, env, false);
  say(`${check.title}: ${code === 0 ? "passed" : "failed"} in ${elapsed(started)}`);
  if (said.trim() !== "") say(said.trimEnd());
  return code === 0;
}

/** Runs vitest and returns what it counted; a run that ended before it could count is one failure. */
async function runTests(args: readonly string[], env: NodeJS.ProcessEnv): Promise<Counts> {
  const directory = mkdtempSync(join(tmpdir(), "nix-builder-fleet-test-"));
  const file = join(directory, "counts.json");
  try {
    // A reporter that the person names takes the place of those in the configuration, and one of them counts.
    const own = args.some((word) => word.startsWith("--reporter")) ? [`--reporter=${counter}`] : [];
    const vitest = { script: "vitest/vitest.mjs", args: ["run", ...args, ...own] };
    const { code } = await runNode(vitest, { ...env, FLEET_TEST_COUNTS: file }, true);
    const counts = readCounts(file);
    return code !== 0 && counts.failed === 0 ? { ...counts, failed: 1 } : counts;
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

function readCounts(file: string): Counts {
  try {
    return JSON.parse(readFileSync(file, "utf8")) as Counts;
  } catch {
    return { passed: 0, failed: 0, skipped: 0 };
  }
}

try {
  const args = process.argv.slice(2);
  const toolchain = await setUp();
  const results: boolean[] = [];
  if (args.length > 0) say("with arguments, only vitest runs: lint and types are left out");
  else {
    say("checking lint and types …");
    results.push(...(await Promise.all(checks.map((check) => runCheck(check, toolchain.env)))));
  }
  // What needs the aws plugin or a virtual machine has a command of its own.
  const lanes = ["--project", "!aws", "--project", "!vm"];
  const counts = await runTests(args.length > 0 ? args : lanes, toolchain.env);
  const total = {
    passed: counts.passed + results.filter(Boolean).length,
    failed: counts.failed + results.filter((passed) => !passed).length,
    skipped: counts.skipped,
  };
  process.exitCode = total.failed === 0 ? 0 : 1;
  console.log(lastLine(total));
} catch (error) {
  fail(error);
  console.log(lastLine({ passed: 0, failed: 1, skipped: 0 }));
}
