/** The script behind what a fleet needs of Hetzner beside its plugin, run by `command.local.Command`. */
import { randomBytes } from "node:crypto";
import { text } from "node:stream/consumers";
import { HcloudApi } from "./api.ts";
import { findLabelled, findOrphans, labels, remove, type Known } from "./inventory.ts";
import { place, release, type Placement } from "./placement.ts";
import { currentAccess, labelVariable } from "./access.ts";
import { runAction } from "../script.ts";
import { complain, say, sayJson } from "../terminal.ts";

const [command] = process.argv.slice(2);
const actions: Readonly<Record<string, () => Promise<void>>> = {
  /** Prints what tells this stack's things from those of others with its name. Comes first: says in words when the token is wrong. */
  "new-stack": async () => {
    await new HcloudApi(await currentAccess()).request("GET", "/locations?per_page=1");
    say(process.env["PULUMI_COMMAND_STDOUT"] || randomBytes(8).toString("hex"));
  },
  /** Deletes whatever still carries the stack's label: runs last, when all that the state knows of is gone. */
  sweep: async () => {
    const stack = process.env["PULUMI_COMMAND_STDOUT"]?.trim();
    if (stack === undefined || stack === "") return;
    const api = new HcloudApi(await currentAccess());
    const left = await findLabelled(api, { [labels.stack]: stack });
    for (const { kind, name } of left) complain(`deleting ${kind} ${name}`);
    await remove(api, left);
  },
  /** Deletes all servers of the stack, those that are gone already included. */
  "delete-servers": async () => {
    const api = new HcloudApi(await currentAccess());
    await remove(api, await findLabelled(api, { [labels.stack]: process.env[labelVariable] ?? "" }, ["servers"]));
  },
  /** Deletes what is no part of the fleet: what was replaced just now, and what a killed deployment made without writing it down. */
  "delete-orphans": async () => {
    const api = new HcloudApi(await currentAccess());
    const orphans = await findOrphans(api, JSON.parse(await text(process.stdin)) as Known);
    for (const { kind, name } of orphans)
      complain(
        `${kind} ${name} is no part of the fleet any more (replaced, or left of a killed deployment): deleting it`,
      );
    await remove(api, orphans);
  },
  release: async () => {
    await release(
      new HcloudApi(await currentAccess()),
      JSON.parse(await text(process.stdin)) as Record<string, string>,
    );
  },
  place: async () => {
    const wanted = JSON.parse(await text(process.stdin)) as Placement;
    const candidate = await place(new HcloudApi(await currentAccess()), wanted, (progress) => {
      complain(`${wanted.alias}: ${progress}`);
    });
    sayJson(candidate, 0);
  },
};

await runAction(command, actions);
