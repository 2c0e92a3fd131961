/**
 * Registers an emulation in several threads at the same moment, as builders do that start together after a reboot, and removes it.
 *
 * `node registerAtOnce.ts SYSTEM OWNER…`: a thread for each owner. Ends with an error when one of them fails.
 */
import { isMainThread, Worker, workerData } from "node:worker_threads";
import { emulation, registerEmulation, unregisterEmulation } from "../../src/local/emulation.ts";
import type { System } from "../../src/nix/system.ts";

interface Task {
  readonly owner: string;
  readonly system: System;
  /** How many threads are still to come; the last one lets all of them go. */
  readonly gate: Int32Array;
}

if (isMainThread) {
  const [system, ...owners] = process.argv.slice(2) as [System, ...string[]];
  const gate = new Int32Array(new SharedArrayBuffer(4)).fill(owners.length);
  const ends = owners.map(
    (owner) =>
      new Promise((resolve, reject) => {
        const task: Task = { owner, system, gate };
        new Worker(new URL(import.meta.url), { workerData: task }).once("error", reject).once("exit", resolve);
      }),
  );
  await Promise.all(ends);
  for (const owner of owners) {
    if (emulation(owner, system) !== "fleet") throw new Error(`${owner} has no emulation`);
  }
  for (const owner of owners) unregisterEmulation(owner, system);
} else {
  const { owner, system, gate } = workerData as Task;
  if (Atomics.sub(gate, 0, 1) === 1) Atomics.notify(gate, 0);
  for (let left = Atomics.load(gate, 0); left > 0; left = Atomics.load(gate, 0)) Atomics.wait(gate, 0, left);
  registerEmulation(owner, system);
}
