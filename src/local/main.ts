/** The script behind local builders, run by `command.local.Command`: starts and removes them, and their emulation. */
import { text } from "node:stream/consumers";
import type { System } from "../nix/system.ts";
import { registerEmulation, unregisterEmulation } from "./emulation.ts";
import { requestedGeneration } from "./generation.ts";
import { claimPlace, removeMachine, startMachine, sweep } from "./machine.ts";
import { isLeftAlone } from "./place.ts";
import type { LocalMachine } from "./spec.ts";
import { runAction } from "../script.ts";

const [command, ...words] = process.argv.slice(2);
const actions: Readonly<Record<string, () => void | Promise<void>>> = {
  start: async () => {
    await startMachine(JSON.parse(await text(process.stdin)) as LocalMachine, requestedGeneration());
  },
  remove: () => removeMachine(argument(0)),
  claim: () => claimPlace({ directory: argument(0), owner: argument(1) }, requestedGeneration()),
  sweep: () => sweep(argument(0), argument(1)),
  "register-emulation": () => {
    registerEmulation(argument(0), argument(1) as System);
  },
  "unregister-emulation": () => {
    // A state that is older than this version says no folder.
    const directory = words[2];
    if (directory === undefined || !isLeftAlone(directory)) unregisterEmulation(argument(0), argument(1) as System);
  },
};

await runAction(command, actions);

function argument(index: number): string {
  const word = words[index];
  if (word === undefined) throw new Error(`${command ?? ""} needs ${index + 1} argument(s)`);
  return word;
}
