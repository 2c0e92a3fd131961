import { createInterface } from "node:readline";
import { existsSync, watch } from "node:fs";
import { dirname } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { machineDirectory } from "../../src/local/plan.ts";
import { TestDeployment } from "../support/engine.ts";

const builders = [
  { name: "x86", provider: "local", system: "x86_64-linux" },
  { name: "arm", provider: "local", system: "aarch64-linux" },
];

/** Starts the CLI and kills it, without a chance to clean up, as soon as it prints a line like this. */
async function killedAt(fleet: TestDeployment, command: "up" | "destroy", line: RegExp): Promise<void> {
  const cli = fleet.start(command, "--yes", "--skip-preview");
  for await (const text of createInterface({ input: cli.all })) {
    if (line.test(text)) cli.kill("SIGKILL");
  }
  expect((await cli).signal).toBe("SIGKILL");
  fleet.unlock();
}

describe("a deployment that is killed", () => {
  let fleet: TestDeployment;
  afterEach(() => fleet.remove());

  it.each([
    ["while keys are made", /PrivateKey client creating/],
    ["while a builder starts", /command:local:Command x86 creating/],
    ["while a smoke test runs", /command:local:Command arm-smoke-test creating/],
  ])("%s is resumed by the next one", async (_, line) => {
    fleet = await TestDeployment.create({ builders });
    await killedAt(fleet, "up", line);
    const { exitCode, output } = await fleet.up();
    expect(exitCode, output).toBe(0);
    expect(await fleet.outputs()).toMatchObject({ verification: { x86: { verified: true }, arm: { verified: true } } });
  });

  it.each([
    ["while a builder starts", /command:local:Command x86 creating/],
    ["while a smoke test runs", /command:local:Command arm-smoke-test creating/],
  ])("%s can be destroyed, and leaves nothing", async (_, line) => {
    fleet = await TestDeployment.create({ builders });
    await killedAt(fleet, "up", line);
    const { exitCode, output } = await fleet.destroy();
    expect(exitCode, output).toBe(0);
    // The program itself notices that its engine is gone when it next talks to it.
    await expect.poll(() => fleet.leftovers(), { timeout: 10_000 }).toEqual([]);
  });

  it("in its destruction is destroyed by the next one", async () => {
    fleet = await TestDeployment.create({ builders });
    expect((await fleet.up()).exitCode).toBe(0);
    await killedAt(fleet, "destroy", /command:local:Command \S+ deleting/);
    const { exitCode, output } = await fleet.destroy();
    expect(exitCode, output).toBe(0);
    expect(fleet.leftovers()).toEqual([]);
  });

  it("in its destruction, when a builder is gone and the state has not heard of it, is taken back by the next up", async () => {
    fleet = await TestDeployment.create({ builders });
    expect((await fleet.up()).exitCode).toBe(0);
    const machine = machineDirectory(fleet.directory, "x86");
    const cli = fleet.start("destroy", "--yes", "--skip-preview");
    const watcher = watch(dirname(machine), () => {
      if (!existsSync(machine)) cli.kill("SIGKILL");
    });
    expect((await cli).signal).toBe("SIGKILL");
    watcher.close();
    fleet.unlock();
    expect((await fleet.pulumi("stack", "--show-urns")).output).toContain("command:local:Command::x86\n");
    const { exitCode, output } = await fleet.up();
    expect(exitCode, output).toBe(0);
    expect(await fleet.outputs()).toMatchObject({ verification: { x86: { verified: true }, arm: { verified: true } } });
  });
});
