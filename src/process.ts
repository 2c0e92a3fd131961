/**
 * Runs a program and waits for it, for so long and for so many bytes: what a machine has a say in never ends by itself, and never fits
 * into memory. Node's own way, for the scripts that every deployment runs once a builder: to load execa takes longer than all else
 * that they compute.
 */
import { execFile } from "node:child_process";
import { createInterface } from "node:readline";
import { plainText } from "./machineText.ts";

/** What a program is run with. */
export interface ProgramOptions {
  /** Added to this process's environment. */
  readonly env?: Readonly<Record<string, string | undefined>>;
  /** Standard input; default: nothing. */
  readonly input?: string;
  /** Time limit. */
  readonly milliseconds: number;
  /** Limit of its standard output, and of its standard error. Default: 1 MiB. */
  readonly bytes?: number;
  /** Called with each line of its standard output, as it comes, plain. */
  readonly onLine?: (line: string) => void;
}

/** How a program ended. */
export interface Ended {
  /** Exit code; `undefined` where it didn't start, or ended by a signal. */
  readonly code: number | undefined;
  readonly timedOut: boolean;
  /** Whether it was ended because it printed more than its limit. */
  readonly tooMuch: boolean;
  /** Both plain (`plainText`), without the final newline. */
  readonly stdout: string;
  readonly stderr: string;
  /** Why it failed, in one sentence: the limit that it met, or Node's words; empty: it didn't. */
  readonly problem: string;
}

/** All that it printed; where that is nothing, why it failed. */
export function wordsOf({ stdout, stderr, problem }: Ended): string {
  return `${stdout}\n${stderr}`.trim() || problem;
}

/** A program that is asked to end has so long until it is ended. */
const grace = 3000;

/** Never throws: how it ended is the answer. */
export function runProgram(
  program: string,
  words: readonly string[],
  { env, input = "", milliseconds, bytes = 2 ** 20, onLine }: ProgramOptions,
): Promise<Ended> {
  return new Promise((resolve) => {
    const options = { env: { ...process.env, ...env }, timeout: Math.ceil(milliseconds), maxBuffer: bytes };
    const child = execFile(program, [...words], options, (error, stdout, stderr) => {
      clearTimeout(end);
      const code = error === null ? 0 : typeof error.code === "number" ? error.code : undefined;
      const tooMuch = error?.code === "ERR_CHILD_PROCESS_STDIO_MAXBUFFER";
      const timedOut = error?.killed === true && !tooMuch;
      const [out = "", err = ""] = [stdout, stderr].map((text) => plainText(text).replace(/\n$/, ""));
      const problem = tooMuch
        ? `it printed more than ${sizeInWords(bytes)}, and was ended`
        : timedOut
          ? `it did not end within ${milliseconds / 1000} s`
          : plainText(error?.message ?? "");
      resolve({ code, timedOut, tooMuch, stdout: out, stderr: err, problem });
    });
    const end = setTimeout(() => child.kill("SIGKILL"), milliseconds + grace);
    if (onLine !== undefined && child.stdout !== null)
      createInterface(child.stdout).on("line", (line) => {
        onLine(plainText(line));
      });
    // A program may end before it has read all.
    child.stdin?.on("error", () => undefined);
    child.stdin?.end(input);
  });
}

/** A word of a shell script that means itself. */
export function shellWord(word: string): string {
  return `'${word.replaceAll("'", `'\\''`)}'`;
}

/** The words that run a program with no more memory than so many KiB. */
export function bounded(kibibytes: number, ...words: readonly string[]): [program: string, words: string[]] {
  return ["sh", ["-c", `ulimit -d ${kibibytes}; exec "$@"`, "sh", ...words]];
}

/** A number of bytes for people: `1 MiB`, `64 KiB`. */
export function sizeInWords(bytes: number): string {
  return bytes >= 2 ** 20 ? `${Math.round(bytes / 2 ** 20)} MiB` : `${Math.round(bytes / 2 ** 10)} KiB`;
}

/**
 * The lines of a stream as they come, plain, up to a limit of bytes, where it ends.
 *
 * @throws Error in words beyond it.
 */
export async function* linesOf(stream: AsyncIterable<Buffer | string>, bytes: number): AsyncGenerator<string, void> {
  let left = bytes;
  let unfinished = "";
  for await (const chunk of stream) {
    left -= chunk.length;
    if (left < 0) throw new Error(`it printed more than ${sizeInWords(bytes)}`);
    const lines = (unfinished + chunk.toString()).split("\n");
    unfinished = lines.pop() ?? "";
    for (const line of lines) yield plainText(line);
  }
  if (unfinished !== "") yield plainText(unfinished);
}
