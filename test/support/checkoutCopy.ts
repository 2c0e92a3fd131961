/** A checkout of its own for a test or a measurement, so that the person's stacks are left alone. */
import { cpSync, mkdirSync, symlinkSync } from "node:fs";
import { delimiter, join } from "node:path";
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
