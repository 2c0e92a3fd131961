/** `up` and `destroy` killed at points all over their duration. `npm run test:faults` prints what happened. */
import { afterAll, describe, expect, it } from "vitest";
import { TestDeployment } from "../support/engine.ts";
import { system } from "../support/localFleet.ts";

const points = 10;
const seed = Number(process.env["FLEET_TEST_SEED"] ?? Math.floor(Math.random() * 2 ** 32));

/** When commands were killed, in milliseconds from their start. */
const killed: Record<Command, number[]> = { up: [], destroy: [] };
const duration: Record<Command, number> = { up: 0, destroy: 0 };

type Command = "up" | "destroy";

describe(`deployments killed at ${2 * points} points (FLEET_TEST_SEED=${seed})`, () => {
  let fleet: TestDeployment;
  afterAll(async () => {
    for (const command of ["up", "destroy"] as const) {
      const times = killed[command].map((time) => (time / 1000).toFixed(1)).join(", ");
      console.log(
        `${command} killed ${killed[command].length} times, after ${times} of ${(duration[command] / 1000).toFixed(1)} s` +
          `  the next one finishes, nothing is left over (seed ${seed})`,
      );
    }
    await fleet.remove();
  });

  it("are finished by the next one, and nothing is left over", async () => {
    fleet = await TestDeployment.create({ builders: [{ name: "here", provider: "local", system }] });
    await finish("up"); // compiles and caches what the first run pays for
    await finish("destroy");
    for (const command of ["up", "destroy"] as const) duration[command] = await finish(command);
    const random = generator(seed);
    for (let point = 0; point < points; point++) {
      await kill("up", (point + random()) / points);
      await finish("up");
      expect(await fleet.outputs()).toMatchObject({ verification: { here: { verified: true } } });
      await kill("destroy", (point + random()) / points);
      await finish("destroy");
      // The program of a killed engine notices when it next talks to it.
      await expect.poll(() => fleet.leftovers(), { timeout: 15_000 }).toEqual([]);
    }
    expect([killed.up.length, killed.destroy.length]).toEqual([points, points]);
  });

  /** Runs a command to its end and returns the milliseconds that it took. */
  async function finish(command: Command): Promise<number> {
    const started = Date.now();
    const { exitCode, output } = await fleet[command]();
    expect(exitCode, `${describeKills()}\n${output}`).toBe(0);
    return Date.now() - started;
  }

  /**
   * Starts a command and kills the CLI, without a chance to clean up, when this part of its duration is over.
   *
   * A run that was quicker than the measured one, and so ended before, is taken as the measure and undone.
   */
  async function kill(command: Command, part: number): Promise<void> {
    for (let attempt = 1; attempt <= 5; attempt++) {
      const started = Date.now();
      const after = part * duration[command];
      const cli = fleet.start(command, "--yes", "--skip-preview");
      const timer = setTimeout(() => cli.kill("SIGKILL"), after);
      const { signal } = await cli;
      clearTimeout(timer);
      // As `npm run pulumi` does.
      fleet.unlock();
      if (signal === "SIGKILL") {
        killed[command].push(after);
        return;
      }
      duration[command] = 0.9 * (Date.now() - started);
      await finish(command === "up" ? "destroy" : "up");
    }
  }

  function describeKills(): string {
    return `after kills of up at ${killed.up.join(", ")} ms and of destroy at ${killed.destroy.join(", ")} ms`;
  }
});

/** Numbers from 0 to 1, the same for the same seed (mulberry32). */
function generator(start: number): () => number {
  let state = start;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
