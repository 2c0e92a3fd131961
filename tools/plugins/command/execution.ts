/** What running one command locally and over SSH have in common: its options, its captured output, its errors. */
import { plainText } from "../../../src/machineText.ts";
import { type Properties, type Property, isObject } from "../propertyValue.ts";
import type { Operation } from "../serve.ts";

/** Outputs of a run, and of the run before it. */
export interface Outputs {
  stdout: string;
  stderr: string;
}

/** Takes the inputs without marks of secrecy. Rejects when the command fails. */
export type Run = (command: string, inputs: Properties, previous: Outputs, operation: Operation) => Promise<Properties>;

/** `PULUMI_COMMAND_STDOUT` and `PULUMI_COMMAND_STDERR`, unless the inputs decline them or there is nothing to say. */
export function previousOutputs(inputs: Properties, { stdout, stderr }: Outputs): Record<string, string> {
  if (inputs["addPreviousOutputInEnv"] === false) return {};
  return {
    ...(stdout !== "" && { PULUMI_COMMAND_STDOUT: stdout }),
    ...(stderr !== "" && { PULUMI_COMMAND_STDERR: stderr }),
  };
}

/** Lines of a failed command's output that its error holds at most: they end up on a terminal. */
const shownLines = 200;

/** Collects what a command writes, and passes it line by line to the engine's log as far as `logging` says so. */
export class Capture {
  readonly #streams = { stdout: new Stream(), stderr: new Stream() };
  readonly #all: Buffer[] = [];
  readonly #logged: ReadonlySet<string>;
  readonly #operation: Operation;

  constructor(inputs: Properties, operation: Operation) {
    const logging = text(inputs["logging"]) ?? "stdoutAndStderr";
    this.#logged = new Set(logging === "stdoutAndStderr" ? ["stdout", "stderr"] : [logging]);
    this.#operation = operation;
  }

  add(name: keyof Outputs, chunk: Buffer): void {
    this.#all.push(chunk);
    this.#log(name, this.#streams[name].add(chunk));
  }

  /** Without the line end at the very end, as the genuine plugin gives them. */
  finish(): Outputs {
    this.#log("stdout", this.#streams.stdout.rest());
    this.#log("stderr", this.#streams.stderr.rest());
    return { stdout: this.#streams.stdout.text(), stderr: this.#streams.stderr.text() };
  }

  /** How the genuine plugin words it: the reason, the command, then all that it wrote; but fit for a terminal, and its end. */
  failure(reason: string, command: string): Error {
    this.finish();
    const lines = plainText(Buffer.concat(this.#all).toString()).split("\n");
    const before = lines.length > shownLines ? `(${lines.length - shownLines} lines before)\n` : "";
    const end = lines.slice(-shownLines).join("\n");
    return new Error(`${reason}: running ${JSON.stringify(command)}:\n${before}${end}`);
  }

  #log(name: keyof Outputs, lines: readonly string[]): void {
    if (!this.#logged.has(name)) return;
    for (const line of lines) this.#operation.log("info", plainText(line));
  }
}

class Stream {
  readonly #chunks: Buffer[] = [];
  #unfinished: Buffer = Buffer.alloc(0);

  /** The lines that the chunk completes. */
  add(chunk: Buffer): string[] {
    this.#chunks.push(chunk);
    const pending = Buffer.concat([this.#unfinished, chunk]);
    const end = pending.lastIndexOf("\n");
    this.#unfinished = pending.subarray(end + 1);
    return end === -1 ? [] : pending.subarray(0, end).toString().split("\n").map(withoutReturn);
  }

  /** A last line that no line end completed. */
  rest(): string[] {
    const rest = this.#unfinished.toString();
    this.#unfinished = Buffer.alloc(0);
    return rest === "" ? [] : [withoutReturn(rest)];
  }

  text(): string {
    return Buffer.concat(this.#chunks).toString().replace(/\n$/, "");
  }
}

export function text(value: Property | undefined): string | undefined {
  return typeof value === "string" ? value : undefined;
}

export function texts(value: Property | undefined): string[] {
  return Array.isArray(value) ? value.filter((item) => typeof item === "string") : [];
}

export function textMap(value: Property | undefined): Record<string, string> {
  if (!isObject(value)) return {};
  return Object.fromEntries(
    Object.entries(value).flatMap(([name, item]) => (typeof item === "string" ? [[name, item]] : [])),
  );
}

function withoutReturn(line: string): string {
  return line.replace(/\r$/, "");
}
