import { beforeAll, describe, expect, it } from "vitest";
import type { BuilderFleet } from "../../components/builderFleet.ts";
import { parseFleetSpec } from "../../src/fleetSpec.ts";
import { MockEngine, secretMark, type Registered } from "../support/mockEngine.ts";

const engine = new MockEngine();
const { registered } = engine;
const subnets = ["subnet-11111111"];
const running = { instanceType: "c7i.4xlarge" };

function outputs(type: string, name: string): object | undefined {
  if (name === "aws-stack") return { stdout: "0123abcd\n" };
  if (name.endsWith("-placement")) return { stdout: `{"instanceType":"c6i.4xlarge","subnetId":"aws-subnet-1-id"}` };
  if (type === "aws:ec2/instance:Instance") return { publicIp: "203.0.113.9", privateIp: "10.65.0.9" };
  return type.startsWith("aws:") ? { keyPairId: `${name}-key`, keyName: name } : undefined;
}

async function deploy(aws: object): Promise<void> {
  registered.length = 0;
  const [{ BuilderFleet: Fleet }, machines] = await Promise.all([
    import("../../components/builderFleet.ts"),
    import("../../components/machines/aws.ts"),
  ]);
  const spec = parseFleetSpec(
    "dev",
    {
      builders: [
        {
          name: "x86",
          provider: "aws",
          system: "x86_64-linux",
          candidates: ["c7i.4xlarge", "c6i.4xlarge"],
          spot: true,
        },
        { name: "arm", provider: "aws", system: "aarch64-linux", candidates: ["c8g.4xlarge"], disk: { iops: 4000 } },
      ],
      access: { allowedCidrs: ["203.0.113.7/32", "2001:db8::/64"] },
      expires: "2026-12-31",
      aws,
    },
    "/checkout",
  );
  const fleet: BuilderFleet = new Fleet("dev", {
    spec,
    emulated: [],
    directory: "/checkout/.fleet/stacks/dev",
    aws: {
      machines,
      access: {
        region: "eu-central-1",
        accessKey: "SECRET",
        secretKey: "SECRET",
        defaultTags: { tags: { Owner: "me" } },
      },
      lookup: {
        missing: {},
        images: { x86: "ami-x86", arm: "ami-arm" },
        instances: [
          { ...running, stack: "another checkout's", builder: "x86", image: "ami-theirs", generation: "theirs" },
          { ...running, stack: "0123abcd", builder: "x86", image: "ami-ours", generation: "ours" },
          { ...running, stack: "another checkout's", builder: "x86", image: "ami-theirs", generation: "theirs" },
          { ...running, stack: "another checkout's", builder: "arm", image: "ami-theirs", generation: "theirs" },
        ],
        nextGeneration: "next",
        zones: "subnetIds" in (Reflect.get(aws, "network") ?? {}) ? [] : ["eu-central-1a", "eu-central-1b"],
        subnets: subnets.map((id) => ({ id, vpcId: "vpc-given" })),
      },
    },
  });
  await new Promise((done) => void fleet.verification.apply(done));
}

const find = (name: string): Registered["inputs"] => engine.find(name).inputs;
const ofType = (type: string): Registered[] => registered.filter((one) => one.type.startsWith(type));

beforeAll(() => engine.start(outputs));

describe("a fleet at AWS with a network of its own", () => {
  beforeAll(() => deploy({ network: { zones: 2 } }));

  it("lets in nothing but SSH from the allowed ranges, one rule each", () => {
    const rules = ofType("aws:vpc/securityGroupIngressRule").map(({ inputs }) => inputs);
    expect(rules).toHaveLength(2);
    expect(rules).toMatchObject([
      { cidrIpv4: "203.0.113.7/32", ipProtocol: "tcp", fromPort: 22, toPort: 22 },
      { cidrIpv6: "2001:db8::/64", ipProtocol: "tcp", fromPort: 22, toPort: 22 },
    ]);
  });

  it("keeps the image and the generation of its own instances, whatever other checkouts' fleets of the name run", () => {
    expect(find("x86")).toMatchObject({ ami: "ami-ours", tags: { "nix-builder-fleet.generation": "ours" } });
    expect(find("arm")).toMatchObject({ ami: "ami-arm", tags: { "nix-builder-fleet.generation": "next" } });
  });

  it("starts each instance where a place was held, of the image that it is to have", () => {
    expect(find("x86")).toMatchObject({ instanceType: "c6i.4xlarge", subnetId: "aws-subnet-1-id" });
    expect(JSON.parse(String(find("x86-placement")["stdin"]))).toMatchObject({
      alias: "dev-x86",
      imageId: "ami-ours",
      spot: true,
      places: [
        { instanceType: "c7i.4xlarge", subnetId: "aws-subnet-1-id" },
        { instanceType: "c7i.4xlarge", subnetId: "aws-subnet-2-id" },
        { instanceType: "c6i.4xlarge", subnetId: "aws-subnet-1-id" },
        { instanceType: "c6i.4xlarge", subnetId: "aws-subnet-2-id" },
      ],
    });
  });

  it("keeps builds from the metadata, disks encrypted, and lets a powered-off instance vanish", () => {
    for (const name of ["x86", "arm"]) {
      expect(find(name)).toMatchObject({
        metadataOptions: { httpTokens: "required", httpPutResponseHopLimit: 1 },
        rootBlockDevice: { volumeType: "gp3", encrypted: true, deleteOnTermination: true },
        instanceInitiatedShutdownBehavior: "terminate",
      });
    }
    expect(find("arm")).toMatchObject({ rootBlockDevice: { iops: 4000 } });
    expect(find("x86")).toMatchObject({ instanceMarketOptions: { marketType: "spot" } });
    expect(find("arm")).not.toHaveProperty("instanceMarketOptions");
  });

  it("names fleet, stack and expiry on everything that can have tags, and the builder on instances and volumes", () => {
    const common = {
      "nix-builder-fleet.fleet": "dev",
      "nix-builder-fleet.stack": "0123abcd",
      "nix-builder-fleet.expires": "2026-12-31",
    };
    const untagged = /route:Route$|routeTableAssociation/;
    for (const { type, name, inputs } of ofType("aws:").filter(({ type }) => !untagged.test(type)))
      expect(inputs["tags"], `${type} ${name}`).toMatchObject(common);
    expect(find("x86")).toMatchObject({
      tags: { "nix-builder-fleet.builder": "x86" },
      volumeTags: { ...common, "nix-builder-fleet.builder": "x86" },
    });
  });

  it("has the user data and every private key as secrets only, and no credentials for AWS at all", () => {
    expect(find("x86")["userData"]).toMatchObject({ [secretMark]: expect.any(String) as unknown });
    for (const { type, name, inputs } of registered) {
      for (const [key, value] of Object.entries(inputs)) {
        const text = JSON.stringify(value);
        if (text.includes("PRIVATE")) expect(text, `${type} ${name} ${key}`).toContain(secretMark);
        // Those of the last `up` would be what `destroy` works with.
        expect(text, `${type} ${name} ${key}`).not.toContain("SECRET");
      }
    }
    expect(ofType("pulumi:providers:aws").map(({ inputs }) => inputs)).toMatchObject([
      {
        region: "eu-central-1",
        profile: "nix-builder-fleet",
        sharedConfigFiles: `["src/aws/plugin.ini"]`,
        defaultTags: `{"tags":{"Owner":"me"}}`,
      },
    ]);
  });

  it("gives each zone a quarter of the range, so that one more moves none", () => {
    expect(ofType("aws:ec2/subnet").map(({ inputs }) => inputs)).toMatchObject([
      { availabilityZone: "eu-central-1a", cidrBlock: "10.65.0.0/18" },
      { availabilityZone: "eu-central-1b", cidrBlock: "10.65.64.0/18" },
    ]);
  });

  it("sweeps by the stack's tag when all else is gone, and keeps what the state knows", () => {
    expect(find("aws-stack")["delete"]).toMatch(/aws\/main\.ts sweep$/);
    const { keep } = JSON.parse(String(find("aws-orphans")["stdin"])) as { keep: string[] };
    for (const id of ["x86-id", "arm-id", "aws-vpc-id", "aws-subnet-1-id", "aws-builders-id", "aws-admin-key"])
      expect(keep).toContain(id);
  });
});

describe("a fleet at AWS in a network that exists", () => {
  beforeAll(() => deploy({ network: { subnetIds: subnets } }));

  it("makes no network, and puts its security group into the VPC", () => {
    expect(ofType("aws:ec2/vpc")).toEqual([]);
    expect(ofType("aws:ec2/subnet")).toEqual([]);
    expect(find("aws-builders")).toMatchObject({ vpcId: "vpc-given" });
  });
});
