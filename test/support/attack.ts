/** What attacks tried and what stopped them: the tests note it, and the reporter prints it as a table at the end of a run. */
import { beforeAll, TestRunner } from "vitest";

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

/** Notes an attack that the tests of the surrounding `describe` try: it counts as stopped if all of them pass. */
export function stops(attack: Attack): void {
  // eslint-disable-next-line no-empty-pattern -- Vitest reads from the pattern which fixtures are wanted
  beforeAll(({}, suite) => {
    suite.meta.attacks = [...(suite.meta.attacks ?? []), attack];
  });
}
