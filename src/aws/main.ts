/** The script behind what a fleet needs of AWS beside its plugin, run by `command.local.Command`. */
import { randomBytes } from "node:crypto";
import { text } from "node:stream/consumers";
import { currentAccess, tagVariable } from "./access.ts";
import { asking, ec2Client } from "./api.ts";
import { findOrphans, findTagged, remove, type Item, type Known } from "./inventory.ts";
import { place, release, type Placement } from "./placement.ts";
import { tags } from "./tags.ts";
import { runAction } from "../script.ts";
import { complain, say, sayJson } from "../terminal.ts";

const [command] = process.argv.slice(2);
const actions: Readonly<Record<string, () => Promise<void>>> = {
  /** Prints what tells this stack's things from those of others with its name. */
  "new-stack": () => {
    say(process.env["PULUMI_COMMAND_STDOUT"] || randomBytes(8).toString("hex"));
    return Promise.resolve();
  },
  /** Deletes whatever still carries the stack's tag: runs last, when all that the state knows of is gone. */
  sweep: () => sweep(process.env["PULUMI_COMMAND_STDOUT"]?.trim(), () => true),
  /** Deletes the stack's instances and what comes and goes with them: runs when those that the state knows of are gone. */
  "delete-instances": () => sweep(process.env[tagVariable], ({ kind }) => instanceKinds.has(kind)),
  /** Deletes whatever is in the stack's network: runs when what of it the state knows of is gone. */
  "delete-contents": () => sweep(process.env[tagVariable], ({ kind }) => kind !== "vpc"),
  /** Deletes what is no part of the fleet: what was replaced just now, and what a killed deployment made without writing it down. */
  "delete-orphans": async () => {
    const known = JSON.parse(await text(process.stdin)) as Known;
    await withEc2(async (ec2) => {
      const orphans = await findOrphans(ec2, known);
      for (const { kind, name } of orphans)
        complain(
          `${kind} ${name} is no part of the fleet any more (replaced, or left of a killed deployment): deleting it`,
        );
      await remove(ec2, orphans);
    });
  },
  place: async () => {
    const wanted = JSON.parse(await text(process.stdin)) as Placement;
    const access = await currentAccess();
    const found = await place(ec2Client(access), access.region, wanted, access.defaultTags?.tags ?? {}, (progress) => {
      complain(`${wanted.alias}: ${progress}`);
    });
    sayJson(found, 0);
  },
  release: async () => {
    const own = JSON.parse(await text(process.stdin)) as Record<string, string>;
    await withEc2((ec2) => release(ec2, own));
  },
};

const instanceKinds = new Set(["instance", "spot-instances-request", "volume"]);

/** Deletes what of a stack a killed deployment made, and its state doesn't know. */
async function sweep(stack: string | undefined, isMeant: (item: Item) => boolean): Promise<void> {
  if (stack === undefined || stack === "") return;
  await withEc2(async (ec2) => {
    const left = (await findTagged(ec2, { [tags.stack]: stack })).filter(isMeant);
    for (const { kind, name } of left) complain(`${kind} ${name} is left of a killed deployment: deleting it`);
    await remove(ec2, left);
  });
}

async function withEc2(action: (ec2: ReturnType<typeof ec2Client>) => Promise<void>): Promise<void> {
  const access = await currentAccess();
  await asking(access.region, () => action(ec2Client(access)));
}

await runAction(command, actions);
