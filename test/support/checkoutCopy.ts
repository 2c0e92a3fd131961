/** A checkout of its own for a test or a measurement, so that the person's stacks are left alone. */
import { cpSync, mkdirSync, symlinkSync } from "node:fs";
import { delimiter, join } from "node:path";
import { execa } from "execa";
import { checkout } from "../../tools/launch.mjs";
import { ownPrograms } from "../../tools/setup/plugins.ts";

/** Copies what runs into a new folder, without state and tests. */
export function copyOfCheckout(folder: string): string {
  mkdirSync(folder);
  for (const name of [
    "src",
    "components",
    "tools",
    "package.json",
    "package-lock.json",
    "Pulumi.yaml",
    "Pulumi.dev.yaml",
  ]) {
    cpSync(join(checkout, name), join(folder, name), { recursive: true });
  }
  symlinkSync(join(checkout, "node_modules"), join(folder, "node_modules"));
  return folder;
}

/** Without what npm and this run's own set-up leave in the environment; this checkout's plugins would pass for genuine ones. */
export function cleanEnvironment(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const path = (env["PATH"] ?? "").split(delimiter).filter((folder) => folder !== ownPrograms);
  const kept = Object.entries(env).filter(([name]) => !/^(npm_|PULUMI_|NODE_COMPILE_CACHE$)/.test(name));
  return { ...Object.fromEntries(kept), PATH: path.join(delimiter) };
}

/** How a command ended. */
export interface Ended {
  readonly exitCode: number | undefined;
  /** Both streams, as a person sees them. */
  readonly output: string;
}

/** Runs a program in a checkout, with this environment and no other; ends it after two minutes. */
export async function runInCheckout(
  cwd: string,
  env: NodeJS.ProcessEnv,
  words: readonly string[],
  program = process.execPath,
): Promise<Ended> {
  const options = { cwd, env, extendEnv: false, all: true, reject: false, stdin: "ignore", timeout: 120_000 } as const;
  const { exitCode, all } = await execa(program, words, options);
  return { exitCode, output: all };
}
