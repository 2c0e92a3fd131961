import { describe, expect, it } from "vitest";
import { lookUp } from "../../src/aws/lookup.ts";
import { NotAtAws, originOf } from "../../src/aws/origin.ts";
import { tags } from "../../src/aws/tags.ts";
import { parseFleetSpec, type AwsBuilderSpec } from "../../src/fleetSpec.ts";
import { answeringClient } from "../support/aws/answeringClient.ts";

const spec = parseFleetSpec(
  "dev",
  {
    builders: [{ name: "x86", provider: "aws", system: "x86_64-linux", candidates: ["c7i.large"] }],
    access: { allowedCidrs: ["203.0.113.7/32"] },
  },
  "/checkout",
);
const [x86] = spec.builders as AwsBuilderSpec[];
if (x86 === undefined) throw new Error("there is no builder");

const newest = { ImageId: "ami-newest", Name: "nixos/25.11.1", CreationDate: "2026-01-01" };

/** The instance of a builder `x86` of a fleet `dev`. */
const instanceOf = (stack: string, more: object = {}) => ({
  InstanceType: "c7i.large",
  ImageId: `ami-of-${stack}`,
  Tags: Object.entries({
    [tags.fleet]: "dev",
    [tags.stack]: stack,
    [tags.builder]: "x86",
    [tags.generation]: `generation of ${stack}`,
  }).map(([Key, Value]) => ({ Key, Value })),
  ...more,
});

const lookUpAmong = (instances: object[], images: object[] = [newest]) =>
  lookUp(
    answeringClient({
      DescribeInstancesCommand: { Reservations: [{ Instances: instances }] },
      DescribeImagesCommand: { Images: images },
      DescribeInstanceTypeOfferingsCommand: {
        InstanceTypeOfferings: [{ Location: "eu-central-1a", InstanceType: "c7i.large" }],
      },
    }),
    spec,
    "eu-central-1",
  );

describe("two fleets of one name in one account", () => {
  it.each([
    ["first", [instanceOf("ours"), instanceOf("theirs")]],
    ["last", [instanceOf("theirs"), instanceOf("ours")]],
  ])("have their own image and generation each, also when ours is found %s", async (_, instances) => {
    const found = await lookUpAmong(instances);
    for (const stack of ["ours", "theirs"])
      expect(originOf(found, x86, stack)).toEqual({ image: `ami-of-${stack}`, generation: `generation of ${stack}` });
  });

  it("don't keep each other from noticing that an instance is gone", async () => {
    const found = await lookUpAmong([instanceOf("theirs")]);
    expect(originOf(found, x86, "ours")).toEqual({ image: "ami-newest", generation: found.nextGeneration });
    expect((await lookUpAmong([])).nextGeneration).not.toBe(found.nextGeneration);
  });
});

describe("the image of a builder", () => {
  it("is the newest official one when its instance is of a type that is no candidate any more", async () => {
    const found = await lookUpAmong([instanceOf("ours", { InstanceType: "m5.large" })]);
    expect(originOf(found, x86, "ours")).toEqual({ image: "ami-newest", generation: "generation of ours" });
  });

  it("is missed only by a builder that needs one: one that runs keeps its own", async () => {
    await expect(lookUpAmong([], [])).rejects.toThrow(/^aws\.nixosRelease: there is no image of NixOS 25\.11/);
    const found = await lookUpAmong([instanceOf("ours")], []);
    expect(originOf(found, x86, "ours")).toMatchObject({ image: "ami-of-ours" });
    expect(() => originOf(found, x86, "another")).toThrow(NotAtAws);
  });
});
