/** `npx fleet verify`: the smoke test of the last deployment, recorded or made again. */
import { writeFileSync } from "node:fs";
import { renderJUnit, renderVerdicts } from "../smoke/report.ts";
import { runSmokeTest, SmokeTestFailure } from "../smoke/smokeTest.ts";
import type { Verdict } from "../smoke/verdict.ts";
import { chooseBuilders, writeOwnClient, type UsableFleet } from "./stack.ts";
import { say, sayJson } from "../terminal.ts";
import { ownValue } from "../record.ts";

/** What a person says on the command line. */
export interface VerifyOptions {
  readonly quick?: true;
  readonly recorded?: true;
  readonly json?: true;
  readonly junit?: string;
}

/** Seconds for each build: a fleet that was deployed has no starting up before it. */
const patience = 60;

/**
 * Tests the builders of these names, or all, and prints what was found.
 *
 * @returns The exit code.
 * @throws CliError for a name that the fleet doesn't have.
 */
export async function verify(fleet: UsableFleet, names: readonly string[], options: VerifyOptions): Promise<number> {
  const chosen = chooseBuilders(fleet, names);
  const clientDirectory = options.recorded === true ? "" : writeOwnClient(fleet);
  const found: [name: string, verdict: Verdict][] = [];
  // One after the other, so that throughput and times are each builder's own.
  for (const [name, recorded] of chosen) {
    const verdict =
      options.recorded === true
        ? recorded
        : await runSmokeTest({
            alias: recorded.alias,
            clientDirectory,
            level: options.quick === true ? "quick" : "full",
            bootId: undefined,
            ownMachine: ownValue(fleet.measurement, name) !== undefined,
            trust: fleet.builders.find(({ alias }) => alias === recorded.alias)?.trust,
            builderNix: ownValue(fleet.measurement, name)?.nixVersion,
            timeout: patience,
          }).catch((error: unknown) => {
            if (error instanceof SmokeTestFailure) return error.verdict;
            throw error;
          });
    found.push([name, verdict]);
  }
  const verdicts = Object.fromEntries(found);
  if (options.json === true) sayJson(verdicts);
  else say(renderVerdicts(verdicts));
  if (options.junit !== undefined) writeFileSync(options.junit, renderJUnit(verdicts));
  return Object.values(verdicts).every(({ verified }) => verified) ? 0 : 1;
}
