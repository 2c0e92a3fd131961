import type { RunInstancesCommandInput } from "@aws-sdk/client-ec2";
import { describe, expect, it } from "vitest";
import { place, startOf, type Placement } from "../../src/aws/placement.ts";
import { tags } from "../../src/aws/tags.ts";
import { answeringClient, type Refusal } from "../support/aws/answeringClient.ts";

const wanted: Placement = {
  alias: "dev-x86",
  tags: { [tags.stack]: "s1", [tags.builder]: "x86" },
  imageId: "ami-1",
  groupId: "sg-1",
  spot: false,
  disk: { size: 200, iops: 4000, throughput: undefined },
  publicAddress: false,
  nestedVirtualization: true,
  places: [
    { instanceType: "c8i.large", subnetId: "subnet-1" },
    { instanceType: "c7i.large", subnetId: "subnet-1" },
  ],
};

/** Places a builder where EC2 refuses the first type. */
async function placed(refusal: Refusal): Promise<{ readonly found: unknown; readonly said: string[] }> {
  const said: string[] = [];
  const client = answeringClient(
    {},
    {
      RunInstancesCommand: (input) =>
        (input as RunInstancesCommandInput).InstanceType === "c8i.large" ? refusal : undefined,
    },
  );
  const found = await place(client, "eu-central-1", wanted, {}, (text) => said.push(text));
  return { found, said };
}

describe("a place", () => {
  it.each([
    ["InsufficientInstanceCapacity", /AWS has no capacity left there/],
    ["Unsupported", /Not in this zone/],
    ["InvalidParameterValue", /Not in this zone/],
  ])("is the next candidate after %s, with the reason", async (code, reason) => {
    const { found, said } = await placed([code, "Not in this zone"]);
    expect(found).toEqual(wanted.places[1]);
    expect(said).toEqual([expect.stringMatching(/^c8i\.large in subnet-1 can't be had: /)]);
    expect(said[0]).toMatch(reason);
  });

  it("is looked for no further where the same would be refused everywhere, which names builder and place", async () => {
    await expect(placed(["PendingVerification", "Your account is being verified"])).rejects.toThrow(
      "builder dev-x86: c8i.large in subnet-1: PendingVerification: Your account is being verified",
    );
  });
});

describe("a reservation", () => {
  it("is as the builder's own instance is, for whatever an organization's policies ask about", () => {
    const start = startOf(wanted, { instanceType: "c8i.large", subnetId: "subnet-1" }, "/dev/xvda", { Owner: "me" });
    expect(start).toMatchObject({
      NetworkInterfaces: [{ SubnetId: "subnet-1", Groups: ["sg-1"], AssociatePublicIpAddress: false }],
      BlockDeviceMappings: [
        { DeviceName: "/dev/xvda", Ebs: { VolumeType: "gp3", VolumeSize: 200, Iops: 4000, Encrypted: true } },
      ],
      MetadataOptions: { HttpTokens: "required", HttpPutResponseHopLimit: 1 },
      CpuOptions: { NestedVirtualization: "enabled" },
    });
    for (const { Tags } of start.TagSpecifications ?? [])
      expect(Tags).toEqual(
        expect.arrayContaining([
          { Key: "Owner", Value: "me" },
          { Key: tags.role, Value: "reservation" },
        ]),
      );
  });
});
