/** What attacks tried and what stopped them: the tests note it, and the reporter prints it as a table at the end of a run. */
import { TestRunner } from "vitest";

/** One line of the table. */
export interface Attack {
  /** Who does what. */
  readonly attack: string;
  /** What was done, in the end, for real. */
  readonly tried: string;
  /** What the attacker met. */
  readonly stopped: string;
}

declare module "vitest" {
  interface TaskMeta {
    attacks?: Attack[];
  }
}

/** Notes an attack of the running test that was stopped; to be called when that was seen. */
export function wasStopped(attack: Attack): void {
  const test = TestRunner.getCurrentTest();
  if (test === undefined) throw new Error("an attack is noted by a test");
  test.meta.attacks = [...(test.meta.attacks ?? []), attack];
}
