/** What counts as verified, on real deployments: the whole matrix, nothing at all, and a declaration that isn't true. */
import { afterAll, beforeAll, expect, it } from "vitest";
import { systems } from "../../src/nix/system.ts";
import { system } from "../support/localFleet.ts";
import { TestDeployment } from "../support/engine.ts";

let fleet: TestDeployment;
const builder = { name: "here", provider: "local", system, supportedFeatures: ["big-parallel"] };

beforeAll(async () => {
  fleet = await TestDeployment.create({ builders: [builder], smoke: "full" });
});
afterAll(() => fleet.remove());

it("`smoke: full` proves the whole matrix and every refusal, and tells in the outputs what was found", async () => {
  const { exitCode, output } = await fleet.up();
  expect(exitCode, output).toBe(0);
  const { verification, measurement } = await fleet.outputs();
  expect(verification).toMatchObject({ here: { verified: true, level: "full", sandboxed: true } });
  expect(JSON.stringify(verification)).toContain("refuses forwarding to its networks");
  expect(measurement).toMatchObject({
    here: { nixFeatures: ["big-parallel"], sandbox: "true", maxStartups: "200:30:400" },
  });
});

it("`smoke: off` builds nothing, and says that nothing is verified", async () => {
  fleet.configure({ builders: [builder], smoke: "off" });
  const { exitCode, output } = await fleet.up();
  expect(exitCode, output).toBe(0);
  expect((await fleet.outputs())["verification"]).toMatchObject({ here: { verified: false, level: "off", cases: [] } });
});

it("a kvm that isn't there fails up, in words, and is looked for again", async ({ skip }) => {
  skip(process.getuid?.() !== 0, "only root may register the emulation that it is about");
  const foreign = systems.find((other) => other !== system);
  const emulated = { ...builder, name: "foreign", system: foreign, supportedFeatures: ["kvm"] };
  fleet.configure({ builders: [builder, emulated], smoke: "off" });
  for (const attempt of [1, 2]) {
    const { exitCode, output } = await fleet.up();
    expect(exitCode, `attempt ${attempt}: ${output}`).not.toBe(0);
    expect(output).toContain("builder 'foreign': it can't have the feature kvm, because its builds are emulated");
    // The script that found it out is nobody's reading.
    expect(output).not.toContain("show-config");
  }
});
