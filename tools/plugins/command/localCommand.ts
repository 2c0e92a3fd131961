/** Runs a command on this machine. */
import { spawn } from "node:child_process";
import { stat } from "node:fs/promises";
import type { Properties } from "../propertyValue.ts";
import type { Operation } from "../serve.ts";
import { Capture, type Outputs, previousOutputs, text, textMap, texts } from "./execution.ts";

/**
 * Runs the command by the interpreter (`/bin/sh -c`) and waits until it has ended and closed its output, so a process left
 * in the background must not hold on to it. Killed when the engine cancels.
 *
 * @returns stdout, stderr, and assets and archive where the inputs ask for them.
 */
export async function runLocally(
  command: string,
  inputs: Properties,
  previous: Outputs,
  operation: Operation,
): Promise<Properties> {
  const capture = new Capture(inputs, operation);
  const failure = await execute(command, inputs, previous, operation.signal, capture);
  if (failure !== undefined) throw capture.failure(failure, command);
  const outputs = capture.finish();
  if (inputs["assetPaths"] === undefined && inputs["archivePaths"] === undefined) return { ...outputs };
  const { collectAssets } = await import("./assetPaths.ts");
  return { ...outputs, ...(await collectAssets(text(inputs["dir"]) ?? process.cwd(), inputs)) };
}

const DEFAULT_INTERPRETER = ["/bin/sh", "-c"] as const;

/** @returns why it failed, in the words of Go's os/exec. */
async function execute(
  command: string,
  inputs: Properties,
  previous: Outputs,
  signal: AbortSignal,
  capture: Capture,
): Promise<string | undefined> {
  const dir = text(inputs["dir"]);
  const stdin = text(inputs["stdin"]) ?? "";
  const interpreter = texts(inputs["interpreter"]);
  const [program = DEFAULT_INTERPRETER[0], ...args] = interpreter.length > 0 ? interpreter : DEFAULT_INTERPRETER;
  if (signal.aborted) return "cancelled";
  const obstacle = dir === undefined ? undefined : await obstacleAt(dir);
  if (obstacle !== undefined) return `chdir ${dir ?? ""}: ${obstacle}`;

  const child = spawn(program, [...args, command], {
    ...(dir !== undefined && { cwd: dir }),
    env: { ...process.env, ...textMap(inputs["environment"]), ...previousOutputs(inputs, previous) },
    stdio: [stdin === "" ? "ignore" : "pipe", "pipe", "pipe"],
  });
  child.stdout?.on("data", (chunk: Buffer) => {
    capture.add("stdout", chunk);
  });
  child.stderr?.on("data", (chunk: Buffer) => {
    capture.add("stderr", chunk);
  });
  // A command that ends without reading its input has not failed for that reason.
  child.stdin?.on("error", () => undefined);
  child.stdin?.end(stdin);

  return new Promise((resolve) => {
    const cancel = () => {
      child.kill("SIGKILL");
      resolve("cancelled");
    };
    signal.addEventListener("abort", cancel, { once: true });
    child.on("error", (error: NodeJS.ErrnoException) => {
      if (error.code !== "ENOENT") resolve(error.message);
      else if (program.includes("/")) resolve(`fork/exec ${program}: no such file or directory`);
      else resolve(`exec: ${JSON.stringify(program)}: executable file not found in $PATH`);
    });
    child.on("close", (code, killedBy) => {
      signal.removeEventListener("abort", cancel);
      if (killedBy !== null) resolve(`signal: ${SIGNAL_WORDS[killedBy] ?? killedBy}`);
      else resolve(code === 0 ? undefined : `exit status ${code ?? "unknown"}`);
    });
  });
}

const SIGNAL_WORDS: Partial<Record<NodeJS.Signals, string>> = {
  SIGKILL: "killed",
  SIGTERM: "terminated",
  SIGINT: "interrupt",
  SIGHUP: "hangup",
  SIGSEGV: "segmentation fault",
  SIGABRT: "aborted",
};

/** Why nobody can work in a folder; `undefined`: one can. */
async function obstacleAt(folder: string): Promise<string | undefined> {
  return stat(folder).then(
    (found) => (found.isDirectory() ? undefined : "not a directory"),
    (error: unknown) => {
      if (!(error instanceof Error)) return String(error);
      return "code" in error && error.code === "ENOENT" ? "no such file or directory" : error.message;
    },
  );
}
