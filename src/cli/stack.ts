/** What the CLI knows of a fleet: the stack's outputs, asked for by the Pulumi CLI of this checkout. */
import { resolve } from "node:path";
import { execa } from "execa";
import * as z from "zod";
import { complain } from "../terminal.ts";
import { clientDirectoryFiles, writeClientDirectory } from "../client/directory.ts";
import type { Measurement, Peculiarities } from "../bootstrap/measure.ts";
import type { Verdict } from "../smoke/verdict.ts";
import { protocols, type BuildMachine } from "../nix/buildMachine.ts";
import { profileNames } from "../nix/profiles.ts";
import { trustLevels } from "../nix/trust.ts";
import { backendOf, noSuchStack, stackNames } from "../../tools/stack.ts";
import { ownValue } from "../record.ts";
import { valuesIn, type ConfigurationValues } from "../stackConfig.ts";

const checkout = resolve(import.meta.dirname, "../..");

/** A problem that the message explains in full; the CLI prints it and exits with 1. */
export class CliError extends Error {
  override readonly name = "CliError";
}

const buildMachine = z.object({
  alias: z.string(),
  hostName: z.string(),
  port: z.number(),
  protocol: z.enum(protocols),
  systems: z.array(z.string()),
  sshUser: z.string(),
  trust: z.enum(trustLevels).exactOptional(),
  sshKey: z.string().exactOptional(),
  maxJobs: z.number(),
  speedFactor: z.number(),
  supportedFeatures: z.array(z.string()),
  mandatoryFeatures: z.array(z.string()),
  publicHostKey: z.string(),
}) satisfies z.ZodType<BuildMachine>;

const profile = z.enum(profileNames).exactOptional();

const clientSettings = z.object({
  directory: z.string(),
  profile,
  // A fleet that was deployed before there was a choice trusted all of its clients.
  trust: z.enum(trustLevels).default("full"),
  maxSessions: z.number().exactOptional(),
  localSystems: z.array(z.string()),
  caches: z.array(z.object({ url: z.string(), publicKey: z.string() })),
  clients: z.array(
    z.object({
      name: z.string(),
      publicKey: z.string().exactOptional(),
      profile,
      localSystems: z.array(z.string()),
      trust: z.enum(trustLevels).default("full"),
    }),
  ),
});

/** What the CLI needs of a verdict at least. */
const verdict = z.object({ alias: z.string(), verified: z.boolean(), seconds: z.number(), cases: z.array(z.object()) });
const outputs = z.object({
  sshUsers: z.record(z.string(), z.object({ none: z.string(), signed: z.string(), full: z.string() })).default({}),
  builders: z.array(buildMachine),
  clientSettings,
  verification: z.record(
    z.string(),
    z.custom<Verdict>((value) => verdict.safeParse(value).success),
  ),
  measurement: z.record(z.string(), z.custom<Measurement>()),
  administration: z.record(z.string(), z.object({ user: z.string(), peculiarities: z.custom<Peculiarities>() })),
});

const keys = z.object({
  clientPrivateKey: z.string(),
  clientPrivateKeys: z.record(z.string(), z.string()),
  // Empty where there is none: of an output that is undefined the engine warns in every deployment.
  clientSigningKey: z.string().default(""),
  clientSigningKeys: z.record(z.string(), z.string()).default({}),
  adminPrivateKey: z.string(),
});

/** What the stack's outputs say of the fleet that everybody may know. */
export type Fleet = Omit<z.infer<typeof outputs>, "builders" | "sshUsers"> & {
  readonly builders: readonly BuildMachine[];
  /** Name of the stack. */
  readonly stack: string;
};

/** A fleet with the keys that open it. */
export type UsableFleet = Fleet & {
  /** OpenSSH private key that all clients may share. */
  readonly clientPrivateKey: string;
  /** Client name → private key, for clients whose key pair the fleet made. */
  readonly clientPrivateKeys: Readonly<Record<string, string>>;
  /** Nix secret key with which the client of `clientPrivateKey` signs; only at the level `signed`. */
  readonly clientSigningKey?: string;
  /** Client name → the same, for clients at `signed`. */
  readonly clientSigningKeys: Readonly<Record<string, string>>;
  /** OpenSSH private key of the administrator. */
  readonly adminPrivateKey: string;
};

/**
 * Stack outputs → fleet.
 *
 * @throws CliError when they are not those of a deployed fleet.
 */
export function parseFleet(stack: string, values: unknown): Fleet {
  const parsed = outputs.safeParse(values);
  if (parsed.success) {
    const { sshUsers, builders, ...rest } = parsed.data;
    const withUsers = builders.map((machine): BuildMachine => {
      const users = ownValue(sshUsers, machine.alias);
      return { ...machine, ...(users !== undefined && { sshUsers: users }) };
    });
    return { ...rest, builders: withUsers, stack };
  }
  throw new CliError(
    `stack '${stack}' has no fleet: nothing is deployed, or its last deployment failed; ` +
      "run `npm start` (or `npm run pulumi -- up`) first",
  );
}

/**
 * Stack outputs → keys.
 *
 * @throws CliError naming the outputs that aren't there.
 */
export function parseKeys(stack: string, values: unknown): z.infer<typeof keys> {
  const parsed = keys.safeParse(values);
  if (!parsed.success) {
    const missing = parsed.error.issues.map(({ path }) => path.join(".")).join(", ");
    throw new CliError(
      `the outputs of stack '${stack}' have no ${missing}: another version of this project deployed it, or its keys are gone; run \`npm start\` ` +
        "(or `npm run pulumi -- up`)",
    );
  }
  return parsed.data;
}

/**
 * The fleet of a stack, as the Pulumi CLI of this checkout knows it.
 *
 * @throws CliError when there is no such stack or nothing is deployed in it.
 */
export async function readFleet(stack: string): Promise<UsableFleet> {
  const result = await runPulumi(stack, "stack", "output", "--json", "--show-secrets");
  if (result.failed) throw new CliError(await explainUnreadable(stack, result.stderr.trim()));
  // For instance that the state was cut off, and put back.
  if (result.stderr.trim() !== "") complain(result.stderr.trim());
  const values: unknown = JSON.parse(result.stdout);
  const fleet = parseFleet(stack, values);
  const { clientSigningKey, ...found } = parseKeys(stack, values);
  return { ...fleet, ...found, ...(clientSigningKey !== "" && { clientSigningKey }) };
}

/** Why a stack's outputs can't be read: mostly, because there is no such stack. */
async function explainUnreadable(stack: string, said: string): Promise<string> {
  const raw = `the outputs of stack '${stack}' can't be read: ${said}`;
  if (!/no stack (named|selected)/.test(said)) return raw;
  const list = await runPulumi(stack, "stack", "ls", "--json");
  return list.failed ? raw : noSuchStack(stack, backendOf(process.env), stackNames(list.stdout));
}

/** The stack's configuration of one namespace, secrets in clear; empty where there is no such stack. */
export async function readConfiguration(stack: string, namespace: string): Promise<ConfigurationValues> {
  const result = await runPulumi(stack, "config", "--json", "--show-secrets");
  return result.failed ? {} : valuesIn(result.stdout, namespace);
}

/** Runs the Pulumi CLI of this checkout on a stack; rejects nothing, see `failed` and `stderr`. */
export function runPulumi(stack: string, ...words: readonly string[]) {
  return execa(process.execPath, [`${checkout}/tools/pulumi.ts`, ...words], {
    cwd: checkout,
    env: { PULUMI_STACK: stack },
    reject: false,
    stdin: "ignore",
  });
}

/**
 * The builders of these names with their recorded verdicts; without names, all.
 *
 * @throws CliError naming a builder that the fleet doesn't have.
 */
export function chooseBuilders(fleet: Fleet, names: readonly string[]): [name: string, verdict: Verdict][] {
  const all = Object.entries(fleet.verification);
  for (const name of names) {
    if (ownValue(fleet.verification, name) === undefined) {
      throw new CliError(`there is no builder '${name}'; the fleet has ${all.map(([known]) => known).join(", ")}`);
    }
  }
  return names.length === 0 ? all : all.filter(([name]) => names.includes(name));
}

/** Folder of the checkout for what belongs to a stack on this machine; `destroy` empties it. */
export function stackDirectory(stack: string): string {
  // A backend of organizations may know the stack by more than its name, ORGANIZATION/PROJECT/NAME.
  return `${checkout}/.fleet/stacks/${stack.split("/").at(-1) ?? stack}`;
}

/** Writes the files with which this checkout itself uses the fleet. What is there already stays as it is. */
export function writeOwnClient(fleet: UsableFleet): string {
  const directory = `${stackDirectory(fleet.stack)}/client`;
  const { maxSessions, caches } = fleet.clientSettings;
  const privateKey = fleet.clientPrivateKey;
  const { clientSigningKey: signingKey } = fleet;
  writeClientDirectory(
    directory,
    clientDirectoryFiles(fleet.builders, { directory, maxSessions, caches, privateKey, signingKey }),
  );
  return directory;
}

/** Version of a builder's Nix, as the last deployment measured it; `undefined`: nobody could look. */
export function builderNix(fleet: Fleet, alias: string): string | undefined {
  const name = Object.entries(fleet.verification).find(([, verdict]) => verdict.alias === alias)?.[0];
  return name === undefined ? undefined : ownValue(fleet.measurement, name)?.nixVersion;
}
