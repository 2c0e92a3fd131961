import { createInterface } from "node:readline";
import { afterEach, beforeAll, beforeEach, describe, expect, it, onTestFailed } from "vitest";
import { ec2Client } from "../../src/aws/api.ts";
import { findTagged, tags } from "../../src/aws/inventory.ts";
import type { BuildMachine } from "../../src/nix/buildMachine.ts";
import { systemOfThisMachine } from "../../src/nix/system.ts";
import { withCloudPlugins } from "../../tools/setup/cloudPlugins.ts";
import { setUp } from "../../tools/setup/index.ts";
import { findMoto } from "../../tools/setup/moto.ts";
import { EmulatedEc2, type Fault } from "../support/aws/emulatedEc2.ts";
import { TestDeployment } from "../support/engine.ts";
import { hostObstacle } from "../support/hcloud/host.ts";

const obstacle = hostObstacle();
if (obstacle !== undefined) console.log(`skipped: the emulated EC2. ${obstacle}`);

const system = systemOfThisMachine() ?? "x86_64-linux";
const [first, second] = system === "x86_64-linux" ? ["c7i.4xlarge", "c6i.4xlarge"] : ["c8g.4xlarge", "c7g.4xlarge"];
const own = { name: "own", provider: "aws", system, candidates: [first, second] };

/** Refuses an instance type wherever it is asked for. */
const without =
  (type: string | undefined, code = "InsufficientInstanceCapacity"): Fault =>
  ({ Action, InstanceType }) =>
    Action === "RunInstances" && InstanceType === type
      ? { code, status: 500, message: "We have no capacity" }
      : undefined;

describe.skipIf(obstacle !== undefined)("a fleet at (an emulated) AWS", { timeout: 5 * 60_000 }, () => {
  let ec2: EmulatedEc2;
  let fleet: TestDeployment;

  beforeAll(async () => {
    // Builds the plugin where it can't be downloaded.
    await withCloudPlugins((await setUp()).env, ["aws"]);
    await findMoto();
  }, 45 * 60_000);

  const configuration = (builders: unknown[] = [own], aws: object = {}) => ({
    builders,
    access: { allowedCidrs: ["127.0.0.0/8"] },
    expires: "2026-12-31",
    aws: { network: { ipRange: ec2.ipRange }, bootTimeout: 40, ...aws },
    smokeTimeout: 30,
  });

  beforeEach(async () => {
    ec2 = await EmulatedEc2.start();
    fleet = await TestDeployment.create(configuration(), ec2.env, ["aws"]);
    onTestFailed(() => {
      for (const id of ec2.running) console.log(ec2.log(id));
    });
  }, 60_000);
  /** However a test went, `destroy` leaves nothing that costs money or is in the way. */
  afterEach(async () => {
    try {
      ec2.faults.length = 0;
      await fleet.remove();
      expect(await inventory()).toEqual([]);
      expect(ec2.running).toEqual([]);
    } finally {
      await ec2.stop();
    }
  });
  const client = () =>
    ec2Client({ region: ec2.region, accessKey: "AKIATEST", secretKey: "test", endpoint: ec2.endpoint });
  const inventory = () => findTagged(client(), { [tags.fleet]: fleet.stack });
  const up = async (): Promise<string> => {
    const { exitCode, output } = await fleet.up();
    expect(exitCode, output).toBe(0);
    return output;
  };
  const failingUp = async (): Promise<string> => {
    const { exitCode, output } = await fleet.up();
    expect(exitCode, output).not.toBe(0);
    return output;
  };
  const outputs = async () => (await fleet.outputs()) as { builders: BuildMachine[]; verification: unknown };
  const kill = async (line: RegExp): Promise<void> => {
    const cli = fleet.start("up", "--yes", "--skip-preview");
    for await (const text of createInterface({ input: cli.all })) if (line.test(text)) cli.kill("SIGKILL");
    expect((await cli).signal).toBe("SIGKILL");
    await fleet.pulumi("cancel", "--yes");
  };

  it("goes from nothing to verified, tagged, and from there to no change", async () => {
    await up();
    expect((await outputs()).verification).toMatchObject({ own: { verified: true } });
    const kinds = (await inventory()).map(({ kind }) => kind);
    for (const kind of ["instance", "volume", "security-group", "key-pair", "vpc", "subnet", "internet-gateway"])
      expect(kinds, kind).toContain(kind);
    expect(kinds.filter((kind) => kind === "instance")).toHaveLength(1);
    expect(await up()).toMatch(/unchanged/);
    expect(ec2.running).toHaveLength(1);
  });
});
