/** Ends a test run with the attacks that were stopped, why tests were skipped, and the line `N passed, N failed, N skipped`. */
import { writeFileSync } from "node:fs";
import Table from "cli-table3";
import type { Reporter, SerializedError, TestModule } from "vitest/node";
import type { Attack } from "./attack.ts";

/** What a run came to. */
export interface Counts {
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
}

/** The last line of every test run. */
export function lastLine({ passed, failed, skipped }: Counts): string {
  return `${passed} passed, ${failed} failed, ${skipped} skipped`;
}

/**
 * The counts are written to the file that FLEET_TEST_COUNTS names, for whoever adds checks of its own and prints the
 * line itself (tools/test.ts); without it they are printed.
 */
export default class CountingReporter implements Reporter {
  onTestRunEnd(modules: readonly TestModule[], errors: readonly SerializedError[]): void {
    const counts = { passed: 0, failed: errors.length, skipped: 0 };
    const attacks: Attack[] = [];
    for (const module of modules) {
      // A file that can't be loaded has no tests that could fail.
      if (module.errors().length > 0) counts.failed += 1;
      for (const suite of module.children.allSuites()) {
        if (suite.ok()) attacks.push(...(suite.meta().attacks ?? []));
      }
      for (const test of module.children.allTests()) {
        const result = test.result();
        if (result.state === "passed") attacks.push(...(test.meta().attacks ?? []));
        if (result.state === "passed") counts.passed += 1;
        else if (result.state === "failed") counts.failed += 1;
        else {
          counts.skipped += 1;
          const why = result.state === "skipped" ? result.note : "it was not run";
          console.log(`skipped: ${test.fullName}: ${why ?? "no reason was given"}`);
        }
      }
    }
    if (attacks.length > 0) console.log(renderAttacks(attacks));
    const file = process.env["FLEET_TEST_COUNTS"];
    if (file !== undefined) writeFileSync(file, JSON.stringify(counts));
    else console.log(lastLine(counts));
  }
}

function renderAttacks(attacks: readonly Attack[]): string {
  const table = new Table({
    head: ["attack", "what was tried", "what stopped it"],
    colWidths: [32, 56, 56],
    wordWrap: true,
    style: { head: [], border: [] },
  });
  // What is tried with two versions of Nix is said once.
  const rows = new Map(attacks.map(({ attack, tried, stopped }) => [attack, [attack, tried, stopped]]));
  for (const row of rows.values()) table.push(row);
  return table.toString();
}
