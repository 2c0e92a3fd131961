/** The script behind what a fleet needs of AWS beside its plugin, run by `command.local.Command`. */
import { randomBytes } from "node:crypto";
import { text } from "node:stream/consumers";
import { currentAccess } from "./access.ts";
import { asking, ec2Client } from "./api.ts";
import { findOrphans, findTagged, remove, type Known } from "./inventory.ts";
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
  sweep: async () => {
    const stack = process.env["PULUMI_COMMAND_STDOUT"]?.trim();
    if (stack === undefined || stack === "") return;
    await withEc2(async (ec2) => {
      const left = await findTagged(ec2, { [tags.stack]: stack });
      for (const { kind, name } of left) complain(`${kind} ${name} was left over: deleting it`);
      await remove(ec2, left);
    });
  },
  /** Deletes what a killed deployment made without writing it down. */
  "delete-orphans": async () => {
    const known = JSON.parse(await text(process.stdin)) as Known;
    await withEc2(async (ec2) => {
      const orphans = await findOrphans(ec2, known);
      for (const { kind, name } of orphans) complain(`${kind} ${name} is left of a killed deployment: deleting it`);
      await remove(ec2, orphans);
    });
  },
  place: async () => {
    const wanted = JSON.parse(await text(process.stdin)) as Placement;
    const access = await currentAccess();
    const found = await place(ec2Client(access), access.region, wanted, (progress) => {
      complain(`${wanted.alias}: ${progress}`);
    });
    sayJson(found, 0);
  },
  release: async () => {
    const own = JSON.parse(await text(process.stdin)) as Record<string, string>;
    await withEc2((ec2) => release(ec2, own));
  },
};

async function withEc2(action: (ec2: ReturnType<typeof ec2Client>) => Promise<void>): Promise<void> {
  const access = await currentAccess();
  await asking(access.region, () => action(ec2Client(access)));
}

await runAction(command, actions);
