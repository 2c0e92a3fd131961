/** Finds out which of a builder's candidates can be had, by taking a place: nothing else makes AWS say so. */
import { RunInstancesCommand, type _InstanceType, type EC2Client } from "@aws-sdk/client-ec2";
import { asking, AwsError } from "./api.ts";
import { findInstances, remove, type Item } from "./inventory.ts";
import { tags } from "./tags.ts";
import { ownValue } from "../record.ts";

/** One instance type in one subnet. */
export interface Place {
  readonly instanceType: string;
  readonly subnetId: string;
}

/** What is wanted; JSON on the script's standard input. */
export interface Placement {
  /** The builder's alias, for messages and names. */
  readonly alias: string;
  /** In order of preference. */
  readonly places: readonly Place[];
  /** Tags of the builder. */
  readonly tags: Readonly<Record<string, string>>;
  readonly imageId: string;
  readonly spot: boolean;
}

/** Codes after which the next place is tried, with the reason in words; `undefined`: AWS's own. */
const unavailable: Readonly<Record<string, string | undefined>> = {
  InsufficientInstanceCapacity: "AWS has no capacity left there at the moment",
  InsufficientHostCapacity: "AWS has no capacity left there at the moment",
  InsufficientFreeAddressesInSubnet: "the subnet has no free address",
  SpotMaxPriceTooLow: "its spot price is above the limit at the moment",
  MaxSpotInstanceCountExceeded:
    "the account's quota for spot instances is used up (ask AWS for more in Service Quotas)",
  VcpuLimitExceeded: "the account's quota for this kind of instances is used up (ask AWS for more in Service Quotas)",
  InstanceLimitExceeded: "the account's quota for this type is used up (ask AWS for more in Service Quotas)",
  Unsupported: undefined,
  UnsupportedOperation: undefined,
  InvalidParameterValue: undefined,
  InvalidParameterCombination: undefined,
};

/**
 * Tries the places in order and holds the first that can be had: an instance under the builder's tags with the role
 * `reservation`, billed for a minute. It goes right before the builder's own instance is made, and by itself after an hour.
 *
 * The plugin can't be asked: it repeats a refused request for the better part of an hour (hashicorp/terraform-provider-aws#43193).
 *
 * A builder that has its instance already stays where it is.
 *
 * @param report Told why a place was passed over.
 * @throws Error naming every place with the reason why it can't be had.
 */
export async function place(
  ec2: EC2Client,
  region: string,
  wanted: Placement,
  report: (progress: string) => void,
): Promise<Place> {
  const before = await asking(region, () => existing(ec2, wanted));
  if (before !== undefined) return before;
  const reasons: string[] = [];
  for (const candidate of wanted.places) {
    const where = `${candidate.instanceType}${wanted.spot ? " (spot)" : ""} in ${candidate.subnetId}`;
    const reason = await reserve(ec2, region, wanted, candidate);
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

/** Takes a place; returns why it can't be had, or `undefined` where it was. */
async function reserve(
  ec2: EC2Client,
  region: string,
  { alias, tags: own, imageId, spot }: Placement,
  { instanceType, subnetId }: Place,
): Promise<string | undefined> {
  const labelled = Object.entries({ ...own, Name: `${alias}-reservation`, [tags.role]: "reservation" });
  const list = labelled.map(([Key, Value]) => ({ Key, Value }));
  try {
    await asking(region, () =>
      ec2.send(
        new RunInstancesCommand({
          ImageId: imageId,
          InstanceType: instanceType as _InstanceType,
          MinCount: 1,
          MaxCount: 1,
          SubnetId: subnetId,
          InstanceInitiatedShutdownBehavior: "terminate",
          MetadataOptions: { HttpTokens: "required", HttpPutResponseHopLimit: 1 },
          UserData: Buffer.from("#!/bin/sh\nsleep 3600\nsystemctl poweroff\n").toString("base64"),
          ...(spot && {
            InstanceMarketOptions: {
              MarketType: "spot",
              SpotOptions: { SpotInstanceType: "one-time", InstanceInterruptionBehavior: "terminate" },
            },
          }),
          TagSpecifications: [
            { ResourceType: "instance", Tags: list },
            { ResourceType: "volume", Tags: list },
          ],
        }),
      ),
    );
    return undefined;
  } catch (error) {
    const known = error instanceof AwsError ? ownValue(unavailable, error.code) : undefined;
    if (known !== undefined) return known;
    throw error;
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
