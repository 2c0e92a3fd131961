import { resolve } from "node:path";
import { createInterface } from "node:readline";
import {
  AttachInternetGatewayCommand,
  CreateInternetGatewayCommand,
  CreateRouteCommand,
  CreateSubnetCommand,
  CreateVolumeCommand,
  CreateVpcCommand,
  DescribeImagesCommand,
  DescribeRouteTablesCommand,
  RunInstancesCommand,
  TerminateInstancesCommand,
  type EC2Client,
  type Image,
} from "@aws-sdk/client-ec2";
import { execa } from "execa";
import { beforeAll, describe, expect, test } from "vitest";
import { ec2Client } from "../../src/aws/api.ts";
import { findInstances, findTagged } from "../../src/aws/inventory.ts";
import { imageOwner } from "../../src/aws/lookup.ts";
import { permissions } from "../../src/aws/permissions.ts";
import { tags } from "../../src/aws/tags.ts";
import type { BuildMachine } from "../../src/nix/buildMachine.ts";
import { systemOfThisMachine } from "../../src/nix/system.ts";
import { withCloudPlugins } from "../../tools/setup/cloudPlugins.ts";
import { setUp } from "../../tools/setup/index.ts";
import { findMoto } from "../../tools/setup/moto.ts";
import { EmulatedEc2, releases, type Ec2Request, type Fault } from "../support/aws/emulatedEc2.ts";
import { TestDeployment } from "../support/engine.ts";
import { hostObstacle } from "../support/hcloud/host.ts";

const obstacle = hostObstacle();
if (obstacle !== undefined) console.log(`skipped: the emulated EC2. ${obstacle}`);

const system = systemOfThisMachine() ?? "x86_64-linux";
const [first, second] =
  system === "x86_64-linux" ? (["c7i.4xlarge", "c6i.4xlarge"] as const) : (["c8g.4xlarge", "c7g.4xlarge"] as const);
const own = { name: "own", provider: "aws", system, candidates: [first, second] };

/** Refuses an instance type wherever it is asked for. */
const without =
  (type: string | undefined, code = "InsufficientInstanceCapacity"): Fault =>
  ({ Action, InstanceType }) =>
    Action === "RunInstances" && InstanceType === type
      ? { code, status: 500, message: "We have no capacity" }
      : undefined;

const unauthorized = { code: "UnauthorizedOperation", message: "You are not authorized", status: 403 };

/** Key of the test's own requests. */
const observer = "AKIAOBSERVER";

/**
 * What policies of an organization demand of every start: encryption, IMDSv2, and a tag on instance and volume. Source:
 * https://docs.aws.amazon.com/organizations/latest/userguide/orgs_manage_policies_scps_examples_ec2.html, …_tagging.html.
 */
const organization =
  (tag: string): Fault =>
  (request) => {
    if (request["Action"] !== "RunInstances") return undefined;
    const has = (pattern: RegExp, value: string) =>
      Object.entries(request).some(([key, found]) => pattern.test(key) && found === value);
    const tagged = ["1", "2"].every((part) => has(new RegExp(`^TagSpecification\\.${part}\\.Tag\\.\\d+\\.Key$`), tag));
    const strict =
      has(/^BlockDeviceMapping\.1\.Ebs\.Encrypted$/, "true") && has(/^MetadataOptions\.HttpTokens$/, "required");
    return tagged && strict ? undefined : unauthorized;
  };

/** A start without what tells a reservation from the builder's own instance; tags as names, sorted. */
function comparable(request: Ec2Request): object {
  const own = /^(UserData|ClientToken|KeyName|caller|TagSpecification.*)$/;
  // What the plugin says although it is the default.
  const defaults =
    /^(DisableApiTermination|EbsOptimized|Monitoring\.Enabled|Placement\..*|HibernationOptions\..*|MetadataOptions\.HttpProtocolIpv6|.*\.DeleteOnTermination|.*\.NetworkCardIndex)$/;
  const names = Object.entries(request).flatMap(([key, value]) => (/^TagSpecification.*Key$/.test(key) ? [value] : []));
  return {
    ...Object.fromEntries(Object.entries(request).filter(([key]) => !own.test(key) && !defaults.test(key))),
    names: names.filter((name) => name !== tags.role).toSorted(),
  };
}

/** The image of this system that isn't the newest. */
async function olderImage(client: EC2Client): Promise<Image | undefined> {
  const { Images = [] } = await client.send(new DescribeImagesCommand({ Owners: [imageOwner] }));
  const architecture = system === "x86_64-linux" ? "x86_64" : "arm64";
  return Images.find(({ Name = "", Architecture }) => Name.includes(releases[0]) && Architecture === architecture);
}

/** What a test works with: an EC2 and a fleet of its own, gone when it ends. */
interface Emulated {
  readonly ec2: EmulatedEc2;
  readonly fleet: TestDeployment;
  readonly client: EC2Client;
  readonly configuration: (builders?: unknown[], aws?: object) => Record<string, unknown>;
  /** Everything of the fleet's that EC2 has. */
  readonly inventory: () => ReturnType<typeof findTagged>;
  readonly instances: () => ReturnType<typeof findInstances>;
  /** Deploys, and returns what was said. */
  readonly up: () => Promise<string>;
  readonly failingUp: () => Promise<string>;
  readonly outputs: () => Promise<{ readonly builders: BuildMachine[]; readonly verification: unknown }>;
  /** Deploys, and kills the CLI at a line that it prints. */
  readonly kill: (line: RegExp) => Promise<void>;
}

const it = test.extend<Emulated>({
  // eslint-disable-next-line no-empty-pattern -- vitest reads which fixtures another one needs from its first parameter.
  ec2: async ({}, use) => {
    const ec2 = await EmulatedEc2.start();
    await use(ec2);
    await ec2.stop();
  },
  configuration: async ({ ec2 }, use) => {
    await use((builders = [own], aws = {}) => ({
      builders,
      access: { allowedCidrs: ["127.0.0.0/8"] },
      expires: "2026-12-31",
      aws: { network: { ipRange: ec2.ipRange }, bootTimeout: 40, ...aws },
      smokeTimeout: 30,
    }));
  },
  client: async ({ ec2 }, use) => {
    await use(
      ec2Client({ region: ec2.region, accessKey: observer, secretKey: "test", endpoints: { ec2: ec2.endpoint } }),
    );
  },
  /** However a test went, `destroy` leaves nothing that costs money or is in the way. */
  fleet: async ({ ec2, client, configuration, task }, use) => {
    const fleet = await TestDeployment.create(configuration(), ec2.env, ["aws"]);
    await use(fleet);
    if (task.result?.state === "fail") for (const id of ec2.running) console.log(ec2.log(id));
    ec2.faults.length = 0;
    await fleet.remove();
    expect(await findTagged(client, { [tags.fleet]: fleet.stack })).toEqual([]);
    expect(ec2.running).toEqual([]);
  },
  inventory: async ({ client, fleet }, use) => {
    await use(() => findTagged(client, { [tags.fleet]: fleet.stack }));
  },
  instances: async ({ client }, use) => {
    await use(() => findInstances(client, [{ Name: "instance-state-name", Values: ["pending", "running"] }]));
  },
  up: async ({ fleet }, use) => {
    await use(async () => {
      const { exitCode, output } = await fleet.up();
      expect(exitCode, output).toBe(0);
      return output;
    });
  },
  failingUp: async ({ fleet }, use) => {
    await use(async () => {
      const { exitCode, output } = await fleet.up();
      expect(exitCode, output).not.toBe(0);
      return output;
    });
  },
  outputs: async ({ fleet }, use) => {
    await use(async () => (await fleet.outputs()) as { builders: BuildMachine[]; verification: unknown });
  },
  kill: async ({ fleet }, use) => {
    await use(async (line) => {
      const cli = fleet.start("up", "--yes", "--skip-preview");
      for await (const text of createInterface({ input: cli.all })) if (line.test(text)) cli.kill("SIGKILL");
      expect((await cli).signal).toBe("SIGKILL");
      fleet.unlock();
    });
  },
});

const concurrent = { concurrent: true, timeout: 5 * 60_000 };

// At the same time, as most of it is waiting: the provider looks every ten seconds what became of an instance.
describe.skipIf(obstacle !== undefined)("a fleet at (an emulated) AWS", concurrent, () => {
  beforeAll(async () => {
    // Builds the plugin where it can't be downloaded.
    await withCloudPlugins((await setUp()).env, ["aws"]);
    await findMoto();
  }, 45 * 60_000);

  it("goes from nothing to verified, tagged, and from there to no change", async ({ ec2, inventory, up, outputs }) => {
    // The plugin has nothing to say of credentials in the environment beside those that it is given.
    expect(await up()).not.toMatch(/Configuration conflict|Profile was specified/);
    expect((await outputs()).verification).toMatchObject({ own: { verified: true } });
    const kinds = (await inventory()).map(({ kind }) => kind);
    for (const kind of ["instance", "volume", "security-group", "key-pair", "vpc", "subnet", "internet-gateway"])
      expect(kinds, kind).toContain(kind);
    expect(kinds.filter((kind) => kind === "instance")).toHaveLength(1);
    expect(await up()).toMatch(/unchanged/);
    expect(ec2.running).toHaveLength(1);
  });

  it("goes to the next candidate when AWS has no capacity, at once, and stays there", async ({
    ec2,
    instances,
    up,
  }) => {
    ec2.faults.push(without(first));
    expect(await up()).toMatch(new RegExp(`${first} in subnet-\\S+ can't be had: AWS has no capacity left there`));
    expect(await instances()).toMatchObject([{ InstanceType: second }]);
    ec2.faults.length = 0;
    // What became free again is no reason to move.
    expect(await up()).toMatch(/unchanged/);
    expect(await instances()).toMatchObject([{ InstanceType: second }]);
  });

  it("makes a spot instance again that AWS has taken away, at the next up", async ({
    ec2,
    fleet,
    configuration,
    instances,
    up,
    outputs,
  }) => {
    fleet.configure(configuration([{ ...own, spot: true }]));
    await up();
    // Nothing of a builder that is there is left of a killed deployment, its spot request included.
    expect(
      ec2.requests.filter(({ Action, DryRun }) => Action === "CancelSpotInstanceRequests" && DryRun === undefined),
    ).toEqual([]);
    expect(await up()).toMatch(/unchanged/);
    const [before] = await instances();
    expect(before).toMatchObject({ InstanceLifecycle: "spot" });
    await ec2.interrupt(before?.InstanceId ?? "");
    await up();
    const [after, ...others] = await instances();
    expect(others).toEqual([]);
    expect(after?.InstanceId).not.toBe(before?.InstanceId);
    expect((await outputs()).verification).toMatchObject({ own: { verified: true } });
  });

  it("is not misled by fleets of the same name of other checkouts, and leaves theirs alone", async ({
    ec2,
    fleet,
    client,
    instances,
    up,
  }) => {
    /** The instance of a builder of the same name, of an image that nobody would choose now. */
    const theirs = async (stack: string): Promise<string> => {
      const known = { fleet: fleet.stack, stack, builder: own.name, generation: `of ${stack}` } as const;
      const Tags = Object.entries(known).map(([name, Value]) => ({ Key: tags[name as keyof typeof known], Value }));
      const { Instances: [{ InstanceId = "" } = {}] = [] } = await client.send(
        new RunInstancesCommand({
          ImageId: (await olderImage(client))?.ImageId,
          InstanceType: first,
          MinCount: 1,
          MaxCount: 1,
          TagSpecifications: [{ ResourceType: "instance", Tags }],
        }),
      );
      return InstanceId;
    };
    const others = [await theirs("before")];
    const ours = async () => (await instances()).filter(({ InstanceId = "" }) => !others.includes(InstanceId));
    await up();
    const [born] = await ours();
    expect(born?.ImageId).not.toBe((await olderImage(client))?.ImageId);
    others.push(await theirs("after"));
    const preview = await fleet.pulumi("preview", "--expect-no-changes");
    expect(preview.exitCode, preview.output).toBe(0);
    expect(await up()).toMatch(/unchanged/);
    expect(await ours()).toMatchObject([{ InstanceId: born?.InstanceId }]);
    // Its own loss it notices all the same.
    await ec2.interrupt(born?.InstanceId ?? "");
    await up();
    expect(await ours()).toHaveLength(1);
    await fleet.destroy();
    expect((await instances()).map(({ InstanceId }) => InstanceId)).toEqual(others);
    await client.send(new TerminateInstancesCommand({ InstanceIds: others }));
  });

  it("names every place with its reason when none can be had, for spot with the way out", async ({
    ec2,
    fleet,
    configuration,
    failingUp,
  }) => {
    fleet.configure(configuration([{ ...own, spot: true }]));
    ec2.faults.push(without(first), without(second, "MaxSpotInstanceCountExceeded"));
    const output = await failingUp();
    expect(output).toMatch(/none of its candidates can be had; add one, set spot: false, or try again later/);
    expect(output).toMatch(new RegExp(`${first} \\(spot\\) in subnet-\\S+: AWS has no capacity left there`));
    expect(output).toMatch(new RegExp(`${second} \\(spot\\) in subnet-\\S+: the account's quota for spot`));
  });

  it.for([
    ["AuthFailure", /AWS refuses the credentials \(AuthFailure/],
    ["UnauthorizedOperation", /the credentials may not do ec2:DescribeInstances; docs\/aws\.md/],
  ] as const)(
    "says in one sentence that it got %s, before anything is made",
    async ([code, message], { ec2, inventory, failingUp }) => {
      ec2.faults.push(() => ({ code, message: "You are not allowed", status: 403 }));
      const output = await failingUp();
      expect(output).toMatch(message);
      expect(output).not.toMatch(/\bat .*\.ts:\d+/);
      ec2.faults.length = 0;
      expect(await inventory()).toEqual([]);
    },
  );

  it("says what read-only credentials lack, and what region isn't enabled, before anything is made", async ({
    ec2,
    fleet,
    configuration,
    inventory,
    failingUp,
  }) => {
    ec2.faults.push(({ Action = "" }) => (/^(Describe|Get)/.test(Action) ? undefined : unauthorized));
    const output = await failingUp();
    expect(output).toMatch(/the credentials may not do all that this fleet needs: ec2:RunInstances, ec2:Terminate/);
    expect(output).not.toMatch(/ec2:Describe|ec2:CancelSpot/);
    expect(output).not.toMatch(/\bat .*\.ts:\d+/);
    ec2.faults.length = 0;
    ec2.disabledRegions.add("me-south-1");
    fleet.configure({ ...configuration(), "aws:region": "me-south-1" });
    expect(await failingUp()).toMatch(
      /the account has not enabled the region me-south-1: .*console under Account, AWS Regions, or choose another/,
    );
    fleet.configure({ ...configuration(), "aws:forbiddenAccountIds": ["123456789012"] });
    expect(await failingUp()).toMatch(/aws:forbiddenAccountIds: the credentials are of account 123456789012/);
    expect(await inventory()).toEqual([]);
  });

  it("asks for nothing but what the policy of docs/aws.md allows, and for all of that", async ({
    ec2,
    fleet,
    client,
    configuration,
    instances,
    up,
    failingUp,
  }) => {
    const spot = { ...own, spot: true };
    const tagged = { "aws:defaultTags": { tags: { Owner: "me" } } };
    fleet.configure({ ...configuration([spot]), ...tagged });
    ec2.faults.push(organization("Owner"));
    await up();
    const [born] = await instances();
    const starts = ec2.requests.filter(({ Action, DryRun }) => Action === "RunInstances" && DryRun === undefined);
    const [reservation, real] = starts.map(comparable);
    expect(reservation).toEqual(real);
    ec2.faults.length = 0;
    // Something loose, and something that nobody has written down.
    const Tags = (born?.Tags ?? []).filter(({ Key = "" }) => [tags.stack, tags.fleet].includes(Key as never));
    await client.send(
      new CreateVolumeCommand({
        AvailabilityZone: born?.Placement?.AvailabilityZone,
        Size: 1,
        TagSpecifications: [{ ResourceType: "volume", Tags }],
      }),
    );
    await client.send(
      new RunInstancesCommand({
        ImageId: born?.ImageId,
        InstanceType: first,
        MinCount: 1,
        MaxCount: 1,
        InstanceMarketOptions: { MarketType: "spot" },
        TagSpecifications: [{ ResourceType: "instance", Tags }],
      }),
    );
    // Another range, other tags, and a builder that never opens SSH.
    ec2.bootFault = "never opens SSH";
    fleet.configure({
      ...configuration([spot, { ...own, name: "dead" }], { bootTimeout: 5 }),
      access: { allowedCidrs: ["127.0.0.0/9", "127.128.0.0/9"] },
      expires: "2027-01-31",
    });
    await failingUp();
    const refreshed = await fleet.pulumi("refresh", "--yes", "--skip-preview");
    expect(refreshed.exitCode, refreshed.output).toBe(0);
    const { exitCode, output } = await fleet.destroy();
    expect(exitCode, output).toBe(0);
    const asked = ec2.requests.filter(({ DryRun, caller }) => DryRun === undefined && caller !== observer);
    expect([...new Set(asked.map(({ Action }) => Action))].toSorted()).toEqual(Object.keys(permissions).toSorted());
  });

  it("says what AWS does not have: the release, the type, the subnet, a way out of it", async ({
    ec2,
    fleet,
    configuration,
    client,
    failingUp,
  }) => {
    fleet.configure(configuration([own], { nixosRelease: "30.11" }));
    expect(await failingUp()).toMatch(
      /there is no image of NixOS 30\.11 for \S+ in eu-central-1; there are \S+ \(newest of 2026-01-01\), \S+ \(newest of 2026-02-01\)/,
    );
    fleet.configure(configuration([{ ...own, candidates: [system === "x86_64-linux" ? "c9i.large" : "c9g.large"] }]));
    expect(await failingUp()).toMatch(
      /'own': candidates: c9\S+ can't be had in eu-central-1; choose other instance types/,
    );
    fleet.configure(configuration([own], { network: { subnetIds: ["subnet-00000000"] } }));
    expect(await failingUp()).toMatch(/aws\.network\.subnetIds: there is no subnet subnet-00000000 in eu-central-1/);
    const { Vpc } = await client.send(new CreateVpcCommand({ CidrBlock: ec2.ipRange }));
    const { Subnet } = await client.send(new CreateSubnetCommand({ VpcId: Vpc?.VpcId, CidrBlock: ec2.ipRange }));
    fleet.configure(configuration([own], { network: { subnetIds: [Subnet?.SubnetId] } }));
    expect(await failingUp()).toMatch(/has no route to the internet, and a builder has to reach cache\.nixos\.org/);
  });

  it("works by private addresses in a network that exists", async ({
    ec2,
    fleet,
    configuration,
    client,
    inventory,
    instances,
    up,
    outputs,
  }) => {
    const { Vpc } = await client.send(new CreateVpcCommand({ CidrBlock: ec2.ipRange }));
    const { Subnet } = await client.send(new CreateSubnetCommand({ VpcId: Vpc?.VpcId, CidrBlock: ec2.ipRange }));
    const { InternetGateway } = await client.send(new CreateInternetGatewayCommand());
    const gateway = { InternetGatewayId: InternetGateway?.InternetGatewayId };
    await client.send(new AttachInternetGatewayCommand({ ...gateway, VpcId: Vpc?.VpcId }));
    const { RouteTables: [table] = [] } = await client.send(
      new DescribeRouteTablesCommand({ Filters: [{ Name: "vpc-id", Values: [Vpc?.VpcId ?? ""] }] }),
    );
    await client.send(
      new CreateRouteCommand({
        RouteTableId: table?.RouteTableId,
        DestinationCidrBlock: "0.0.0.0/0",
        GatewayId: gateway.InternetGatewayId,
      }),
    );
    const builder = { ...own, publicAddress: false, disk: 50 };
    fleet.configure(configuration([builder], { network: { subnetIds: [Subnet?.SubnetId] } }));
    await up();
    const [{ PrivateIpAddress } = {}] = await instances();
    expect((await outputs()).builders).toMatchObject([{ hostName: PrivateIpAddress }]);
    expect((await inventory()).map(({ kind }) => kind)).not.toContain("vpc");
  });

  it("refuses an instance that answers with another host key", async ({ ec2, failingUp }) => {
    ec2.bootFault = "another host key";
    expect(await failingUp()).toMatch(/is refused: it presents another host key than the pinned one/);
  });

  it("says why NixOS could not be rebuilt, with the end of the instance's log", async ({ ec2, failingUp }) => {
    ec2.bootFault = "nixos-rebuild fails";
    const output = await failingUp();
    expect(output).toMatch(/could not be made of NixOS: nixos-rebuild ended with an error/);
    expect(output).toContain("error: attribute 'broken' missing");
  });

  it("gets over an API that fails once at every request", async ({ ec2, up, outputs }) => {
    const seen = new Set<string>();
    ec2.faults.push(({ caller, ...request }) => {
      const same = JSON.stringify(request);
      if (caller === observer || seen.has(same)) return undefined;
      seen.add(same);
      return { code: "Unavailable", message: "The server is overloaded", status: 503 };
    });
    await up();
    expect((await outputs()).verification).toMatchObject({ own: { verified: true } });
  });

  it("shows the console of an instance that can't be reached", async ({ ec2, fleet, configuration, failingUp }) => {
    ec2.bootFault = "never opens SSH";
    fleet.configure(configuration([own], { bootTimeout: 5 }));
    const output = await failingUp();
    expect(output).toMatch(/is no NixOS builder after 5 s \(aws\.bootTimeout\); its last state: waiting for SSH/);
    expect(output).toMatch(
      /The end of its console output:\s+\| nix-builder-fleet: writing the builder's configuration/,
    );
  });

  it.for([
    ["while places are held", /own-placement creat/],
    ["right before its instance is there", /ec2:Instance own creat/],
    ["while NixOS is rebuilt", /own-nixos creat/],
  ] as const)(
    "killed %s, goes on at the next up and leaves nothing behind",
    async ([, line], { instances, up, outputs, kill }) => {
      await kill(line);
      await up();
      expect((await outputs()).verification).toMatchObject({ own: { verified: true } });
      expect(await instances()).toHaveLength(1);
    },
  );

  it.for([
    ["its security group is made", ({ Action }) => Action === "CreateSecurityGroup"],
    ["a subnet is made", ({ Action }) => Action === "CreateSubnet"],
    ["its place is held", ({ Action, UserData }) => Action === "RunInstances" && UserData !== undefined],
  ] as const satisfies readonly (readonly [string, (request: Ec2Request) => boolean])[])(
    "killed while %s, is deleted by `destroy`, which begins with what nobody has written down",
    async ([, isIt], { ec2, fleet, inventory }) => {
      const cli = fleet.start("up", "--yes", "--skip-preview");
      ec2.unanswered = (request) => {
        if (request["DryRun"] !== undefined || !isIt(request)) return false;
        setTimeout(() => cli.kill("SIGKILL"), 100);
        return true;
      };
      expect((await cli).signal).toBe("SIGKILL");
      ec2.unanswered = () => false;
      fleet.unlock();
      const { exitCode, output } = await fleet.destroy();
      expect(exitCode, output).toBe(0);
      expect(output).toMatch(/is left of a killed deployment: deleting it/);
      expect(await inventory()).toEqual([]);
    },
  );

  it("works as the role of the configuration all the time, and is deleted with today's keys", async ({
    ec2,
    client,
    configuration,
  }) => {
    const role = "arn:aws:iam::123456789012:role/builders";
    const unset = { AWS_ACCESS_KEY_ID: "", AWS_SECRET_ACCESS_KEY: "", AWS_REGION: "", AWS_ENDPOINT_URL: "" };
    const fleet = await TestDeployment.create({}, { ...ec2.env, ...unset }, ["aws"]);
    /** Everything is said by the configuration, nothing by the environment. */
    const become = async (accessKey: string): Promise<void> => {
      fleet.configure({
        ...configuration(),
        "aws:region": ec2.region,
        "aws:assumeRoles": [{ roleArn: role, externalId: "x" }],
        "aws:endpoints": [{ ec2: ec2.endpoint, sts: ec2.endpoint }],
      });
      await fleet.pulumi("config", "set", "--secret", "aws:accessKey", accessKey);
      await fleet.pulumi("config", "set", "--secret", "aws:secretKey", `of ${accessKey}`);
      ec2.requests.length = 0;
    };
    const callers = (assuming: boolean): string[] => [
      ...new Set(
        ec2.requests.filter(({ Action }) => (Action === "AssumeRole") === assuming).map(({ caller = "" }) => caller),
      ),
    ];
    try {
      await become("AKIAOLD");
      const first = await fleet.up();
      expect(first.exitCode, first.output).toBe(0);
      const second = await fleet.pulumi("preview", "--expect-no-changes");
      expect(second.exitCode, second.output).toBe(0);
      expect(callers(true)).toEqual(["AKIAOLD"]);
      for (const caller of callers(false)) expect(caller).toMatch(/^ASIA/);
      await become("AKIANEW");
      ec2.deactivated.add("AKIAOLD");
      const last = await fleet.destroy();
      expect(last.exitCode, last.output).toBe(0);
      expect(callers(true)).toEqual(["AKIANEW"]);
      for (const caller of callers(false)) expect(caller).toMatch(/^ASIA/);
    } finally {
      await fleet.remove();
    }
    expect(await findTagged(client, { [tags.fleet]: fleet.stack })).toEqual([]);
  });

  it("lets `fleet verify-gone` prove what is left, and that nothing is", async ({ ec2, fleet, up }) => {
    await up();
    const verify = () =>
      execa(process.execPath, [resolve("src/cli/main.ts"), "--stack", fleet.stack, "verify-gone"], {
        env: { ...ec2.env, HCLOUD_TOKEN: "" },
        reject: false,
      });
    const before = await verify();
    expect(before.exitCode).toBe(1);
    for (const kind of ["instance", "volume", "security-group", "key-pair", "vpc"])
      expect(before.stdout).toMatch(new RegExp(`^  ${kind} ${fleet.stack}-.*, stack id [0-9a-f]{16}$`, "m"));
    await fleet.destroy();
    expect(await verify()).toMatchObject({
      exitCode: 0,
      stdout: `Nothing of fleet ${fleet.stack} is left at AWS in eu-central-1.`,
    });
  });
});
