/** What `npx fleet` does at Hetzner Cloud by itself: proving that nothing is left, and baking snapshots. */
import * as z from "zod";
import { accessFrom, noToken } from "../hcloud/access.ts";
import { HcloudApi, HcloudError } from "../hcloud/api.ts";
import { findLabelled, kinds, labels, type Item } from "../hcloud/inventory.ts";
import { snapshotLabel } from "../hcloud/schema.ts";
import { toHostKey } from "../ssh/hostKey.ts";
import { bake, type Baked } from "./bake.ts";
import { remainsAdvice } from "./remains.ts";
import { CliError, readConfiguration, runPulumi, stackDirectory } from "./stack.ts";
import { complain } from "../terminal.ts";
import { ownValue } from "../record.ts";

/** What is there of a fleet. */
export interface Remains {
  /** Everything that carries the fleet's label; snapshots only as long as they are being made. */
  readonly left: readonly Item[];
  /** Snapshots that `npx fleet bake` made: meant to stay, and paid for by size. */
  readonly snapshots: readonly Item[];
}

/**
 * Asks the API what still carries the fleet's label, whatever the stack's state says; works without a stack, too.
 *
 * @throws CliError when there is no token, or the API can't be asked.
 */
export async function findRemains(stack: string): Promise<Remains> {
  const api = await openApi(stack);
  try {
    const [left, snapshots] = await Promise.all([
      findLabelled(api, { [labels.fleet]: stack }, [...kinds, "images"]),
      findLabelled(api, { [snapshotLabel]: "builder" }, ["images"]),
    ]);
    return { left, snapshots };
  } catch (error) {
    throw asCliError(error);
  }
}

/** Whether there is a token to ask with. */
export async function hasToken(stack: string): Promise<boolean> {
  try {
    await openApi(stack);
    return true;
  } catch (error) {
    if (error instanceof CliError) return false;
    throw error;
  }
}

/** For people. */
export function renderRemains(stack: string, { left, snapshots }: Remains): string {
  const lines = left.map(({ kind, id, name, labels: own }) => {
    const builder = own[labels.builder];
    const named = builder === undefined ? "" : `, builder ${builder}`;
    return `  ${kind} ${name} (id ${id})${named}, stack id ${own[labels.stack] ?? "unknown"}, expires ${own[labels.expires] ?? "never"}`;
  });
  const verdict =
    left.length === 0
      ? `Nothing of fleet ${stack} is left at Hetzner Cloud.`
      : `Of fleet ${stack} there is still at Hetzner Cloud:\n${lines.join("\n")}\n${remainsAdvice}`;
  const kept = snapshots.length === 0 ? "" : `\nSnapshots of builders, kept on purpose: ${snapshots.length}`;
  return verdict + kept;
}

/**
 * Bakes a builder of a stack.
 *
 * @param keep As written on the command line.
 * @param acceptTrusting Bake it although clients were root on it.
 * @throws CliError in words.
 */
export async function bakeBuilder(
  stack: string,
  builder: string,
  keep: string,
  acceptTrusting = false,
): Promise<Baked> {
  if (!/^[1-9]\d{0,2}$/.test(keep)) throw new CliError(`--keep ${keep}: a whole number of at least 1 is needed`);
  const { builders, verification, adminPrivateKey } = await readOutputs(stack);
  const verdict = ownValue(verification, builder);
  const machine = builders.find(({ alias }) => alias === verdict?.alias);
  if (machine === undefined || verdict?.verified !== true) {
    throw new CliError(
      `'${builder}' is no verified builder of stack ${stack}; there are ${Object.keys(verification).join(", ")}`,
    );
  }
  const target = { address: machine.hostName, port: machine.port, hostKey: toHostKey(machine.publicHostKey) };
  const baking = {
    fleet: stack,
    builder,
    server: await findServer(stack, builder),
    target,
    adminPrivateKey,
    stackDirectory: stackDirectory(stack),
    keep: Number(keep),
    acceptTrusting,
  };
  return bake(await openApi(stack), baking, (progress) => {
    complain(progress);
  });
}

const bakingOutputs = z.object({
  builders: z.array(z.object({ alias: z.string(), hostName: z.string(), port: z.number(), publicHostKey: z.string() })),
  verification: z.record(z.string(), z.object({ alias: z.string(), verified: z.boolean() })),
  adminPrivateKey: z.string(),
});

async function readOutputs(stack: string): Promise<z.infer<typeof bakingOutputs>> {
  const result = await runPulumi(stack, "stack", "output", "--json", "--show-secrets");
  const parsed = bakingOutputs.safeParse(result.failed ? undefined : JSON.parse(result.stdout));
  if (parsed.success) return parsed.data;
  throw new CliError(`stack '${stack}' has no verified fleet: ${result.stderr.trim() || "deploy it first"}`);
}

const exported = z.object({
  deployment: z.object({
    resources: z
      .array(z.object({ urn: z.string(), type: z.string(), id: z.string().optional(), delete: z.boolean().optional() }))
      .optional(),
  }),
});

/** Id of a builder's server, by the stack's state: another checkout's fleet may have the same labels in the same project. */
async function findServer(stack: string, builder: string): Promise<number> {
  const result = await runPulumi(stack, "stack", "export");
  if (result.failed) throw new CliError(`the state of stack '${stack}' can't be read: ${result.stderr.trim()}`);
  const { resources = [] } = exported.parse(JSON.parse(result.stdout)).deployment;
  const found = resources
    .filter((one) => one.delete !== true)
    .find(({ type, urn }) => type === "hcloud:index/server:Server" && urn.endsWith(`::${builder}`));
  if (found?.id === undefined) throw new CliError(`fleet ${stack} has no builder '${builder}' at Hetzner Cloud`);
  return Number(found.id);
}

/**
 * The API with the token that the plugin works with: the stack's, else that of the environment.
 *
 * @throws CliError where there is none.
 */
export async function openApi(stack: string): Promise<HcloudApi> {
  const access = accessFrom(await readConfiguration(stack, "hcloud"));
  if (access === undefined) throw new CliError(noToken);
  return new HcloudApi(access, 30_000);
}

function asCliError(error: unknown): unknown {
  return error instanceof HcloudError ? new CliError(error.message) : error;
}
