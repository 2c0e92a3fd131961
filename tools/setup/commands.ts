/** Runs the programs that set-up uses: bounded in time, silent, with a log that is shown if they fail. */
import { type ChildProcess, spawn } from "node:child_process";
import { createWriteStream, mkdirSync } from "node:fs";
import { constants } from "node:os";
import { join } from "node:path";
import { privately } from "../discretion.ts";
import { checkout, LaunchError } from "../launch.mjs";

export interface RunOptions {
  readonly cwd?: string;
  readonly env?: NodeJS.ProcessEnv;
  /** Default: 60. */
  readonly seconds?: number;
}

/**
 * Runs a program and returns what it wrote to stdout. Everything it says goes to .fleet/logs/<program>.log.
 *
 * @throws {LaunchError} if it fails, with the last lines of the log.
 */
export function run(program: string, args: readonly string[], options: RunOptions = {}): Promise<string> {
  const name = program.split("/").at(-1) ?? program;
  const directory = join(checkout, ".fleet", "logs");
  mkdirSync(directory, { recursive: true });
  const path = join(directory, `${name}.log`);
  const log = createWriteStream(path, { flags: "a", mode: 0o600 });
  log.write(`\n$ ${[program, ...args].join(" ")}\n`);
  const said: string[] = [];
  const note = (chunk: Buffer | string) => {
    log.write(chunk);
    said.push(String(chunk));
  };
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      cwd: options.cwd ?? checkout,
      env: options.env ?? process.env,
      stdio: ["ignore", "pipe", "pipe"],
      timeout: (options.seconds ?? 60) * 1000,
    });
    keep(child);
    let stdout = "";
    child.stdout.on("data", (chunk: Buffer) => {
      stdout += String(chunk);
      note(chunk);
    });
    child.stderr.on("data", note);
    child.on("error", (error) => {
      note(`${error.message}\n`);
    });
    child.on("close", (code, signal) => {
      release(child);
      log.end();
      if (code === 0) {
        resolve(stdout);
        return;
      }
      const how = signal
        ? `was ended by ${signal} (limit: ${options.seconds ?? 60} s)`
        : `failed (exit code ${code ?? "?"})`;
      const last = said
        .join("")
        .trimEnd()
        .split("\n")
        .slice(-8)
        .map((line) => `  ${line}`)
        .join("\n");
      reject(new LaunchError(`${name} ${args[0] ?? ""} ${how}; all it said is in ${path}, this was last:\n${last}`));
    });
  });
}

/** What a program prints for its version, or undefined if it can't say. The Pulumi CLI logs that it was asked. */
export async function versionOf(program: string, ...args: string[]): Promise<string | undefined> {
  const text = await privately(() => run(program, args, { seconds: 20 })).catch(() => "");
  return /\d+\.\d+(\.\d+)?/.exec(text)?.[0];
}

/** The programs that are running now: they end with set-up itself, so that an interrupted one leaves none behind. */
const running = new Set<ChildProcess>();

function endAll(signal: "SIGINT" | "SIGTERM" | "SIGHUP"): void {
  for (const child of running) child.kill();
  process.exit(128 + constants.signals[signal]);
}

function keep(child: ChildProcess): void {
  if (running.size === 0) for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, endAll);
  running.add(child);
}

function release(child: ChildProcess): void {
  running.delete(child);
  if (running.size === 0) for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.off(signal, endAll);
}
