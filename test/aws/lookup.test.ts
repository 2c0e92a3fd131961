import { describe, expect, it } from "vitest";
import { lookUp } from "../../src/aws/lookup.ts";
import { NotAtAws, originOf } from "../../src/aws/origin.ts";
import { tags } from "../../src/aws/tags.ts";
import { parseFleetSpec, type AwsBuilderSpec } from "../../src/fleetSpec.ts";
import { currentRelease } from "../../src/nixosRelease.ts";
import { answeringClient } from "../support/aws/answeringClient.ts";

const builder = { name: "x86", provider: "aws", system: "x86_64-linux", candidates: ["c7i.large"] };
const configured = { builders: [builder], access: { allowedCidrs: ["203.0.113.7/32"] } };
const spec = parseFleetSpec("dev", configured, "/checkout");
const [x86] = spec.builders as AwsBuilderSpec[];
if (x86 === undefined) throw new Error("there is no builder");

const newest = imageOf(currentRelease, "ami-newest", "2026-01-01");

function imageOf(release: string, ImageId: string, day: string): object {
  return { ImageId, Name: `nixos/${release}.1234.abcdef-x86_64-linux`, CreationDate: `${day}T00:00:00.000Z` };
}

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

const lookUpAmong = (instances: object[], images: object[] = [newest], of = spec) =>
  lookUp(
    answeringClient({
      DescribeInstancesCommand: { Reservations: [{ Instances: instances }] },
      DescribeImagesCommand: { Images: images },
      DescribeInstanceTypeOfferingsCommand: {
        InstanceTypeOfferings: [{ Location: "eu-central-1a", InstanceType: "c7i.large" }],
      },
    }),
    of,
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
    await expect(lookUpAmong([], [])).rejects.toThrow(
      `aws.nixosRelease: there is no image of NixOS ${currentRelease} for`,
    );
    const found = await lookUpAmong([instanceOf("ours")], []);
    expect(originOf(found, x86, "ours")).toMatchObject({ image: "ami-of-ours" });
    expect(() => originOf(found, x86, "another")).toThrow(NotAtAws);
  });

  it("is the newest of the release, in whatever order AWS names them", async () => {
    const images = [
      imageOf(currentRelease, "ami-old", "2026-09-01"),
      imageOf(currentRelease, "ami-newest", "2026-11-20"),
      imageOf(currentRelease, "ami-older", "2026-10-01"),
      imageOf("26.11", "ami-of-another", "2026-11-24"),
    ];
    for (const order of [images, images.toReversed()])
      expect((await lookUpAmong([], order)).images).toEqual({ x86: "ami-newest" });
  });

  it("is missed in words that name what there is, and for whom", async () => {
    const images = [
      imageOf("26.11", "ami-a", "2026-11-20"),
      imageOf("25.11", "ami-b", "2026-08-01"),
      imageOf("26.11", "ami-c", "2026-11-24"),
      // Of no release that a builder may have, and of nobody's.
      imageOf("25.05", "ami-d", "2026-08-02"),
      { ImageId: "ami-e", Name: "nixos/trial", CreationDate: "2026-08-03" },
    ];
    const words =
      `aws.nixosRelease: there is no image of NixOS ${currentRelease} for x86_64-linux in eu-central-1; ` +
      "there are 25.11 (newest of 2026-08-01), 26.11 (newest of 2026-11-24), and images are deleted after 90 days: name one of these releases";
    await expect(lookUpAmong([], images)).rejects.toThrow(new NotAtAws(words));
    const found = await lookUpAmong([instanceOf("ours")], images);
    expect(() => originOf(found, x86, "another")).toThrow(new NotAtAws(`builders: 'x86': ${words}`));
    await expect(lookUpAmong([], [imageOf("25.05", "ami-d", "2026-08-02")])).rejects.toThrow(
      "there is none of 25.11 or newer, so set `ami` to one of your own or another region",
    );
  });

  it("may be one's own, unless its name says that it is too old to keep the pinned host key", async () => {
    const own = parseFleetSpec(
      "dev",
      { ...configured, builders: [{ ...builder, ami: "ami-0123456789abcdef0" }] },
      "/checkout",
    );
    const lookUpOwn = (Name?: string, instances: object[] = []) =>
      lookUpAmong(instances, [{ ImageId: "ami-0123456789abcdef0", Architecture: "x86_64", Name }], own);
    for (const name of ["ours", undefined, "nixos/25.11.1.abc-x86_64-linux", "nixos/26.11.1.abc-x86_64-linux"])
      expect((await lookUpOwn(name)).images).toEqual({ x86: "ami-0123456789abcdef0" });
    await expect(lookUpOwn("nixos/25.05.812.abc-x86_64-linux")).rejects.toThrow(
      "builders: 'x86': ami: ami-0123456789abcdef0 is NixOS 25.05, which can start with another host key than the pinned one; allowed is 25.11 or newer",
    );
    // One that runs has its key.
    const running = instanceOf("ours", { ImageId: "ami-0123456789abcdef0" });
    expect((await lookUpOwn("nixos/25.05.812.abc-x86_64-linux", [running])).images).toHaveProperty("x86");
  });
});
