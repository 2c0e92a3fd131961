/** Looks at AWS before anything is made: images, zones and subnets as plain data, and what the configuration asks for in vain. */
import { randomBytes } from "node:crypto";
import {
  DescribeImagesCommand,
  DescribeInstanceTypeOfferingsCommand,
  DescribeRouteTablesCommand,
  DescribeSubnetsCommand,
  type EC2Client,
  type Image,
} from "@aws-sdk/client-ec2";
import type { AwsBuilderSpec, FleetSpec } from "../fleetSpec.ts";
import { isSupportedRelease, oldestRelease } from "../nixosRelease.ts";
import type { System } from "../nix/system.ts";
import { asking } from "./api.ts";
import { findInstances } from "./inventory.ts";
import { NotAtAws, type FoundInstance, type FoundOrigins } from "./origin.ts";
import { isMissing, pages } from "./pages.ts";
import { tagOf, tags } from "./tags.ts";

/** Account that publishes the NixOS images. Source: https://nixos.github.io/amis. */
export const imageOwner = "427812963091";

/** A subnet that exists. */
export interface ExistingSubnet {
  readonly id: string;
  readonly vpcId: string;
}

/** What was found. */
export interface AwsLookup extends FoundOrigins {
  /** Availability zones in which a network of the fleet's own gets a subnet. */
  readonly zones: readonly string[];
  /** The subnets that the configuration names. */
  readonly subnets: readonly ExistingSubnet[];
}

/**
 * @throws NotAtAws naming every key that can't be had, with what can.
 * @throws AwsError when the API refuses or can't be reached.
 */
export async function lookUp(ec2: EC2Client, spec: FleetSpec, region: string): Promise<AwsLookup> {
  const problems: string[] = [];
  const found = await asking(region, async () => {
    const builders = spec.builders.filter((builder) => builder.provider === "aws");
    const { network, nixosRelease } = spec.aws;
    const instances = await findFleetInstances(ec2, spec);
    const [{ images, missing }, zones, subnets] = await Promise.all([
      findImages(ec2, builders, instances, nixosRelease, region, problems),
      "subnetIds" in network ? [] : findZones(ec2, builders, network.zones, region, problems),
      "subnetIds" in network ? findSubnets(ec2, network.subnetIds, builders, region, problems) : [],
    ]);
    return { images, missing, zones, subnets, instances, nextGeneration: randomBytes(4).toString("hex") };
  });
  if (problems.length > 0) throw new NotAtAws(problems.join("\n"));
  return found;
}

/** The builders' instances of all fleets of this name. The stack's id isn't known yet: its state has it, which only resources can read. */
async function findFleetInstances(ec2: EC2Client, { fleet }: FleetSpec): Promise<FoundInstance[]> {
  const found = await findInstances(ec2, [
    { Name: `tag:${tags.fleet}`, Values: [fleet] },
    { Name: "instance-state-name", Values: ["pending", "running", "stopping", "stopped"] },
  ]);
  return found
    .filter((instance) => tagOf(instance, tags.role) === undefined)
    .map((instance) => ({
      stack: tagOf(instance, tags.stack),
      builder: tagOf(instance, tags.builder),
      instanceType: instance.InstanceType,
      image: instance.ImageId,
      generation: tagOf(instance, tags.generation),
    }));
}

const architectures: Readonly<Record<System, string>> = { "x86_64-linux": "x86_64", "aarch64-linux": "arm64" };

/** By builder name: its image for a new instance, or why there is none. What only a builder without an instance needs is a problem only where no instance was found. */
async function findImages(
  ec2: EC2Client,
  builders: readonly AwsBuilderSpec[],
  instances: readonly FoundInstance[],
  release: string,
  region: string,
  problems: string[],
): Promise<Pick<FoundOrigins, "images" | "missing">> {
  const found = new Map<System, ReturnType<typeof findOfficialImage>>();
  const official = (system: System): ReturnType<typeof findOfficialImage> => {
    const known = found.get(system) ?? findOfficialImage(ec2, system, release, region);
    found.set(system, known);
    return known;
  };
  const images: [name: string, image: string][] = [];
  const missing: [name: string, problem: string][] = [];
  const needed = new Set<string>();
  await Promise.all(
    builders.map(async ({ name, system, ami, candidates }) => {
      const running = instances.filter(
        ({ builder, instanceType = "" }) => builder === name && candidates.includes(instanceType),
      );
      if (ami !== undefined) {
        if (!running.some(({ image }) => image === ami)) await checkImage(ec2, ami, name, system, region, problems);
        images.push([name, ami]);
        return;
      }
      const { image, problem } = await official(system);
      if (image !== undefined) images.push([name, image]);
      if (problem === undefined) return;
      missing.push([name, problem]);
      if (running.length === 0) needed.add(problem);
    }),
  );
  problems.push(...needed);
  return { images: Object.fromEntries(images), missing: Object.fromEntries(missing) };
}

/** The release in the name of an official image, or of a copy that kept it; `undefined`: it has none. */
function releaseOf({ Name = "" }: Image): string | undefined {
  return /^nixos\/(\d\d\.\d\d)/.exec(Name)?.[1];
}

async function findOfficialImage(
  ec2: EC2Client,
  system: System,
  release: string,
  region: string,
): Promise<{ readonly image?: string; readonly problem?: string }> {
  const architecture = architectures[system];
  // Images are deprecated after 90 days, and then only shown to those who ask.
  const { Images: images = [] } = await ec2.send(
    new DescribeImagesCommand({
      Owners: [imageOwner],
      IncludeDeprecated: true,
      Filters: [
        { Name: "name", Values: ["nixos/*"] },
        { Name: "architecture", Values: [architecture] },
        { Name: "state", Values: ["available"] },
      ],
    }),
  );
  // The newest of each release that a builder can be started from.
  const newest = new Map<string, Image>();
  for (const image of images) {
    const of = releaseOf(image);
    if (of === undefined || !isSupportedRelease(of)) continue;
    if ((image.CreationDate ?? "") >= (newest.get(of)?.CreationDate ?? "")) newest.set(of, image);
  }
  const wanted = newest.get(release)?.ImageId;
  if (wanted !== undefined) return { image: wanted };
  const others = [...newest]
    .toSorted(([a], [b]) => a.localeCompare(b))
    .map(([of, { CreationDate = "" }]) => `${of} (newest of ${CreationDate.slice(0, 10)})`);
  const problem =
    `aws.nixosRelease: there is no image of NixOS ${release} for ${system} in ${region}; ` +
    (others.length === 0
      ? `there is none of ${oldestRelease} or newer, so set \`ami\` to one of your own or another region`
      : `there are ${others.join(", ")}, and images are deleted after 90 days: name one of these releases`);
  return { problem };
}

async function checkImage(
  ec2: EC2Client,
  ami: string,
  name: string,
  system: System,
  region: string,
  problems: string[],
): Promise<void> {
  try {
    const { Images: [image] = [] } = await ec2.send(new DescribeImagesCommand({ ImageIds: [ami] }));
    if (image === undefined) problems.push(`builders: '${name}': ami: there is no image ${ami} in ${region}`);
    else if (!isSupportedRelease(releaseOf(image) ?? oldestRelease))
      problems.push(
        `builders: '${name}': ami: ${ami} is NixOS ${releaseOf(image) ?? ""}, which can start with another host key than the pinned one; ` +
          `allowed is ${oldestRelease} or newer`,
      );
    else if (image.Architecture !== architectures[system])
      problems.push(
        `builders: '${name}': ami: ${ami} is for ${image.Architecture ?? "another architecture"}, but the builder's system is ${system}`,
      );
  } catch (error) {
    if (!isMissing(error)) throw error;
    problems.push(`builders: '${name}': ami: there is no image ${ami} in ${region}`);
  }
}

/** The zones that have most of the candidates; every builder must have one of its own in some of them. */
async function findZones(
  ec2: EC2Client,
  builders: readonly AwsBuilderSpec[],
  count: number,
  region: string,
  problems: string[],
): Promise<string[]> {
  const wanted = [...new Set(builders.flatMap(({ candidates }) => candidates))];
  const offerings = await pages((NextToken) =>
    ec2
      .send(
        new DescribeInstanceTypeOfferingsCommand({
          LocationType: "availability-zone",
          Filters: [{ Name: "instance-type", Values: wanted }],
          ...(NextToken !== undefined && { NextToken }),
        }),
      )
      .then(({ InstanceTypeOfferings, NextToken: next }) => ({ items: InstanceTypeOfferings, next })),
  );
  const typesOf = new Map<string, Set<string>>();
  for (const { Location: zone = "", InstanceType: type = "" } of offerings) {
    typesOf.set(zone, (typesOf.get(zone) ?? new Set()).add(type));
  }
  const offers = (zone: string, { candidates }: AwsBuilderSpec): boolean =>
    candidates.some((type) => typesOf.get(zone)?.has(type) === true);
  // As many builders as possible first, then as many of the candidates.
  const served = (zone: string): number => builders.filter((builder) => offers(zone, builder)).length;
  const zones = [...typesOf]
    .sort(
      ([zoneA, typesA], [zoneB, typesB]) =>
        served(zoneB) - served(zoneA) || typesB.size - typesA.size || zoneA.localeCompare(zoneB),
    )
    .map(([zone]) => zone)
    .slice(0, count);
  for (const builder of builders) {
    if (zones.some((zone) => offers(zone, builder))) continue;
    const elsewhere = [...typesOf.keys()].filter((zone) => offers(zone, builder));
    problems.push(
      `builders: '${builder.name}': candidates: ${builder.candidates.join(", ")} ` +
        (elsewhere.length > 0
          ? `can be had only in ${elsewhere.join(", ")}, and the others' are elsewhere; set aws.network.zones to ${count + 1} or more`
          : `can't be had in ${region}; choose other instance types, or another aws:region`),
    );
  }
  return zones;
}

async function findSubnets(
  ec2: EC2Client,
  ids: readonly string[],
  builders: readonly AwsBuilderSpec[],
  region: string,
  problems: string[],
): Promise<ExistingSubnet[]> {
  const found: ExistingSubnet[] = [];
  for (const id of ids) {
    const subnet = await ec2
      .send(new DescribeSubnetsCommand({ SubnetIds: [id] }))
      .then(({ Subnets }) => Subnets?.[0])
      .catch((error: unknown) => {
        if (isMissing(error)) return undefined;
        throw error;
      });
    if (subnet?.VpcId === undefined) {
      problems.push(`aws.network.subnetIds: there is no subnet ${id} in ${region}`);
      continue;
    }
    found.push({ id, vpcId: subnet.VpcId });
    const route = await defaultRoute(ec2, id, subnet.VpcId);
    if (route === undefined) {
      problems.push(
        `aws.network.subnetIds: ${id} has no route to the internet, and a builder has to reach cache.nixos.org; ` +
          "give its route table a route 0.0.0.0/0 to an internet or NAT gateway, or choose another subnet",
      );
    } else if (!route.startsWith("igw-") && builders.some(({ publicAddress }) => publicAddress)) {
      const names = builders.filter(({ publicAddress }) => publicAddress).map(({ name }) => `'${name}'`);
      problems.push(
        `aws.network.subnetIds: ${id} leads out through ${route}, so that a public address can't be reached; ` +
          `set publicAddress: false for ${names.join(", ")}, or choose a subnet with an internet gateway`,
      );
    }
  }
  const [first] = found;
  const other = found.find(({ vpcId }) => vpcId !== first?.vpcId);
  if (first !== undefined && other !== undefined) {
    problems.push(`aws.network.subnetIds: ${first.id} and ${other.id} are in different VPCs; choose those of one`);
  }
  return found;
}

/** What a subnet's default route leads to: that of its own route table, else of the VPC's main one. */
async function defaultRoute(ec2: EC2Client, subnet: string, vpc: string): Promise<string | undefined> {
  const tables = async (filters: { Name: string; Values: string[] }[]) =>
    (await ec2.send(new DescribeRouteTablesCommand({ Filters: filters }))).RouteTables ?? [];
  const own = await tables([{ Name: "association.subnet-id", Values: [subnet] }]);
  const [table] =
    own.length > 0
      ? own
      : await tables([
          { Name: "vpc-id", Values: [vpc] },
          { Name: "association.main", Values: ["true"] },
        ]);
  const route = table?.Routes?.find(
    ({ DestinationCidrBlock, State }) => DestinationCidrBlock === "0.0.0.0/0" && State !== "blackhole",
  );
  return (
    route?.GatewayId ?? route?.NatGatewayId ?? route?.TransitGatewayId ?? route?.NetworkInterfaceId ?? route?.InstanceId
  );
}
