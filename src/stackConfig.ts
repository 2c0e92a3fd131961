/** The stack's configuration as it is now, for what runs beside the program: its scripts, and `npx fleet`. */
import { existsSync, readFileSync } from "node:fs";
import * as z from "zod";
import { runProgram, wordsOf } from "./process.ts";

/** Values of one namespace of the configuration by key, `region` for `aws:region`: texts, and JSON where a value has structure. */
export type ConfigurationValues = Readonly<Record<string, string>>;

/**
 * Tells a script its stack. Which credentials it works with it reads from the configuration when it runs: those that its command had as
 * an input would be the ones of the last `up` for ever, and `destroy` gives a command nothing but its old inputs.
 */
export const stackVariable = "FLEET_STACK";

/**
 * What `pulumi config --json --show-secrets` says of one namespace.
 *
 * @param json What it printed.
 */
export function valuesIn(json: string, namespace: string): ConfigurationValues {
  const all = z.record(z.string(), z.object({ value: z.string().optional() })).parse(JSON.parse(json));
  return Object.fromEntries(
    Object.entries(all).flatMap(([key, { value }]) =>
      key.startsWith(`${namespace}:`) && value !== undefined ? [[key.slice(namespace.length + 1), value]] : [],
    ),
  );
}

/**
 * The configuration of the stack that a script was started for, secrets in clear. The CLI is asked, as it alone knows all places that a
 * value may come from; but not where the stack's file has nothing of the namespace, as it takes longer than all else that most scripts do.
 *
 * @param namespace `aws` or `hcloud`.
 * @throws Error in words where the CLI can't say.
 */
export async function stackConfiguration(namespace: string): Promise<ConfigurationValues> {
  const stack = process.env[stackVariable];
  if (stack === undefined || stack === "") return {};
  const file = `Pulumi.${stack.split("/").at(-1) ?? stack}.yaml`;
  const mentioned = new RegExp(String.raw`(^|[\s{,"'])${namespace}:\w|^environment:`, "m");
  if (existsSync(file) && !mentioned.test(readFileSync(file, "utf8"))) return {};
  const words = ["config", "--json", "--show-secrets", "--non-interactive", "--stack", stack];
  const ended = await runProgram("pulumi", words, { milliseconds: 60_000 });
  if (ended.code !== 0) {
    throw new Error(`the configuration of stack '${stack}' can't be read for the key ${namespace}: ${wordsOf(ended)}`);
  }
  return valuesIn(ended.stdout, namespace);
}
