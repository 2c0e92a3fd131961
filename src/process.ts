/**
 * Runs a program and waits for it. Node's own way, for the scripts that every deployment runs once a builder: to load execa takes
 * longer than all else that they compute.
 */
import { execFile } from "node:child_process";
import { createInterface } from "node:readline";

/** What a program is run with. */
export interface ProgramOptions {
  /** Added to this process's environment. */
  readonly env?: Readonly<Record<string, string>>;
  /** Standard input; default: nothing. */
  readonly input?: string;
  /** Time limit. */
  readonly milliseconds: number;
  /** Called with each line of its standard output, as it comes. */
  readonly onLine?: (line: string) => void;
}

/** How a program ended. */
export interface Ended {
  /** Exit code; `undefined` where it didn't start, or ended by a signal. */
  readonly code: number | undefined;
  readonly timedOut: boolean;
  /** Both without the final newline. */
  readonly stdout: string;
  readonly stderr: string;
  /** Why it failed, in Node's words; empty: it didn't. */
  readonly problem: string;
}

/** Never throws: how it ended is the answer. */
export function runProgram(
  program: string,
  words: readonly string[],
  { env, input = "", milliseconds, onLine }: ProgramOptions,
): Promise<Ended> {
  return new Promise((resolve) => {
    const options = { env: { ...process.env, ...env }, timeout: milliseconds, maxBuffer: Infinity };
    const child = execFile(program, [...words], options, (error, stdout, stderr) => {
      const code = error === null ? 0 : typeof error.code === "number" ? error.code : undefined;
      const [out = "", err = ""] = [stdout, stderr].map((text) => text.replace(/\n$/, ""));
      resolve({ code, timedOut: error?.killed === true, stdout: out, stderr: err, problem: error?.message ?? "" });
    });
    if (onLine !== undefined && child.stdout !== null) createInterface(child.stdout).on("line", onLine);
    // A program may end before it has read all.
    child.stdin?.on("error", () => undefined);
    child.stdin?.end(input);
  });
}
