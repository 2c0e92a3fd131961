/** Finds out which of a builder's candidates can be had, by taking a place: nothing else makes AWS say so. */
import {
  DescribeImagesCommand,
  RunInstancesCommand,
  type _InstanceType,
  type EC2Client,
  type RunInstancesCommandInput,
} from "@aws-sdk/client-ec2";
import { asking, AwsError } from "./api.ts";
import { findInstances, remove, type Item } from "./inventory.ts";
import { tags } from "./tags.ts";
import type { AwsBuilderSpec } from "../fleetSpec.ts";
import { ownValue } from "../record.ts";

/** One instance type in one subnet. */
export interface Place {
  readonly instanceType: string;
  readonly subnetId: string;
}

/** What a reservation is like: all that an organization's policies may ask about is as with the builder's own instance. */
export interface Reservation extends Pick<
  AwsBuilderSpec,
  "alias" | "spot" | "disk" | "publicAddress" | "nestedVirtualization"
> {
  /** Tags of the builder. */
  readonly tags: Readonly<Record<string, string>>;
  readonly imageId: string;
  /** Its security group. */
  readonly groupId: string;
}

/** What is wanted; JSON on the script's standard input. */
export interface Placement extends Reservation {
  /** In order of preference. */
  readonly places: readonly Place[];
}

/** Codes after which the next place is tried, with the reason in words; empty: in AWS's own. */
const unavailable: Readonly<Record<string, string>> = {
  InsufficientInstanceCapacity: "AWS has no capacity left there at the moment",
  InsufficientHostCapacity: "AWS has no capacity left there at the moment",
  InsufficientFreeAddressesInSubnet: "the subnet has no free address",
  SpotMaxPriceTooLow: "its spot price is above the limit at the moment",
  MaxSpotInstanceCountExceeded:
    "the account's quota for spot instances is used up (ask AWS for more in Service Quotas)",
  VcpuLimitExceeded: "the account's quota for this kind of instances is used up (ask AWS for more in Service Quotas)",
  InstanceLimitExceeded: "the account's quota for this type is used up (ask AWS for more in Service Quotas)",
  Unsupported: "",
  UnsupportedOperation: "",
  InvalidParameterValue: "",
  InvalidParameterCombination: "",
};

/**
 * Tries the places in order and holds the first that can be had: an instance under the builder's tags with the role
 * `reservation`, billed for a minute. It goes right before the builder's own instance is made, and by itself after an hour.
 *
 * The plugin can't be asked: it repeats a refused request for the better part of an hour (hashicorp/terraform-provider-aws#43193).
 *
 * A builder that has its instance already stays where it is.
 *
 * @param defaultTags Those of `aws:defaultTags`.
 * @param report Told why a place was passed over.
 * @throws Error naming every place with the reason why it can't be had.
 */
export async function place(
  ec2: EC2Client,
  region: string,
  wanted: Placement,
  defaultTags: Readonly<Record<string, string>>,
  report: (progress: string) => void,
): Promise<Place> {
  const before = await asking(region, () => existing(ec2, wanted));
  if (before !== undefined) return before;
  const device = await asking(region, () => rootDevice(ec2, wanted.imageId));
  const reasons: string[] = [];
  for (const candidate of wanted.places) {
    const where = `${candidate.instanceType}${wanted.spot ? " (spot)" : ""} in ${candidate.subnetId}`;
    const start = startOf(wanted, candidate, device, defaultTags);
    const reason = await reserve(ec2, region, start).catch((error: unknown) => {
      if (!(error instanceof AwsError)) throw error;
      throw new Error(`builder ${wanted.alias}: ${where}: ${error.message}`, { cause: error });
    });
    if (reason === undefined) return candidate;
    reasons.push(`${where}: ${reason}`);
    report(`${where} can't be had: ${reason}`);
  }
  throw new Error(
    `builder ${wanted.alias}: none of its candidates can be had; add one, ` +
      `${wanted.spot ? "set spot: false, " : ""}or try again later:\n  ${reasons.join("\n  ")}`,
  );
}

/** Where the builder's own instance, or a reservation that an earlier run made, is, if that is wanted still. */
async function existing(ec2: EC2Client, wanted: Placement): Promise<Place | undefined> {
  const found = await findInstances(ec2, [
    ...tagFilters(wanted.tags),
    { Name: "instance-state-name", Values: ["pending", "running", "stopping", "stopped"] },
  ]);
  return wanted.places.find((one) =>
    found.some(({ InstanceType, SubnetId }) => InstanceType === one.instanceType && SubnetId === one.subnetId),
  );
}

function tagFilters(own: Readonly<Record<string, string>>): { Name: string; Values: string[] }[] {
  return [tags.stack, tags.builder].map((name) => ({ Name: `tag:${name}`, Values: [own[name] ?? ""] }));
}

/** Name of the volume that an image starts from. */
async function rootDevice(ec2: EC2Client, image: string): Promise<string> {
  const { Images: [found] = [] } = await ec2.send(new DescribeImagesCommand({ ImageIds: [image] }));
  return found?.RootDeviceName ?? "/dev/xvda";
}

/**
 * The request that makes a reservation.
 *
 * @param device Name of the image's root volume.
 */
export function startOf(
  wanted: Reservation,
  { instanceType, subnetId }: Place,
  device: string,
  defaultTags: Readonly<Record<string, string>>,
): RunInstancesCommandInput {
  const { alias, tags: own, imageId, groupId, spot, disk, publicAddress, nestedVirtualization } = wanted;
  const labelled = { ...defaultTags, ...own, Name: `${alias}-reservation`, [tags.role]: "reservation" };
  const list = Object.entries(labelled).map(([Key, Value]) => ({ Key, Value }));
  return {
    ImageId: imageId,
    InstanceType: instanceType as _InstanceType,
    MinCount: 1,
    MaxCount: 1,
    NetworkInterfaces: [
      {
        DeviceIndex: 0,
        SubnetId: subnetId,
        Groups: [groupId],
        AssociatePublicIpAddress: publicAddress,
        DeleteOnTermination: true,
      },
    ],
    BlockDeviceMappings: [
      {
        DeviceName: device,
        Ebs: {
          VolumeType: "gp3",
          VolumeSize: disk.size,
          ...(disk.iops !== undefined && { Iops: disk.iops }),
          ...(disk.throughput !== undefined && { Throughput: disk.throughput }),
          Encrypted: true,
          DeleteOnTermination: true,
        },
      },
    ],
    InstanceInitiatedShutdownBehavior: "terminate",
    MetadataOptions: { HttpEndpoint: "enabled", HttpTokens: "required", HttpPutResponseHopLimit: 1 },
    UserData: Buffer.from("#!/bin/sh\nsleep 3600\nsystemctl poweroff\n").toString("base64"),
    ...(spot && {
      InstanceMarketOptions: {
        MarketType: "spot",
        SpotOptions: { SpotInstanceType: "one-time", InstanceInterruptionBehavior: "terminate" },
      },
    }),
    ...(nestedVirtualization && { CpuOptions: { NestedVirtualization: "enabled" } }),
    TagSpecifications: [
      { ResourceType: "instance", Tags: list },
      { ResourceType: "volume", Tags: list },
    ],
  };
}

/** Takes a place; returns why it can't be had, or `undefined` where it was. */
async function reserve(ec2: EC2Client, region: string, start: RunInstancesCommandInput): Promise<string | undefined> {
  try {
    await asking(region, () => ec2.send(new RunInstancesCommand(start)));
    return undefined;
  } catch (error) {
    const known = error instanceof AwsError ? ownValue(unavailable, error.code) : undefined;
    if (!(error instanceof AwsError) || known === undefined) throw error;
    return known || error.said;
  }
}

/** Gives up the place that is held for a builder, right before its own instance takes it. */
export async function release(ec2: EC2Client, own: Readonly<Record<string, string>>): Promise<void> {
  const found = await findInstances(ec2, [...tagFilters(own), { Name: `tag:${tags.role}`, Values: ["reservation"] }]);
  await remove(
    ec2,
    found.map(({ InstanceId: id = "" }): Item => ({ kind: "instance", id, name: id })),
  );
}
