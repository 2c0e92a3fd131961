/** What of a fleet exists at AWS, found by tag: nothing else knows what a killed deployment made. */
import { setTimeout as delay } from "node:timers/promises";
import {
  CancelSpotInstanceRequestsCommand,
  DeleteInternetGatewayCommand,
  DeleteKeyPairCommand,
  DeleteNetworkInterfaceCommand,
  DeleteRouteTableCommand,
  DeleteSecurityGroupCommand,
  DeleteSubnetCommand,
  DeleteVolumeCommand,
  DeleteVpcCommand,
  DescribeInstancesCommand,
  DescribeInternetGatewaysCommand,
  DescribeSpotInstanceRequestsCommand,
  DescribeTagsCommand,
  DescribeVolumesCommand,
  DetachInternetGatewayCommand,
  ReleaseAddressCommand,
  TerminateInstancesCommand,
  type EC2Client,
  type Instance,
  type TagDescription,
} from "@aws-sdk/client-ec2";
import { isMissing, pages } from "./pages.ts";

/** Tags on everything that the fleet makes. */
export const tags = {
  /** The fleet's name. */
  fleet: "nix-builder-fleet.fleet",
  /** Tells fleets of one name apart: made once for each stack. */
  stack: "nix-builder-fleet.stack",
  /** The builder's name; absent on what builders share. */
  builder: "nix-builder-fleet.builder",
  /** `reservation`: an instance that only holds a place until the builder's own is made. */
  role: "nix-builder-fleet.role",
  /** Made anew whenever a builder's instance was found gone. */
  generation: "nix-builder-fleet.generation",
  /** Day after which it should be gone, or `never`. */
  expires: "nix-builder-fleet.expires",
} as const;

/** One thing that exists. */
export interface Item {
  /** AWS's name for what it is: `instance`, `volume`, `security-group` … */
  readonly kind: string;
  readonly id: string;
  /** Its tag `Name`, or its id. */
  readonly name: string;
}

/** Everything that exists and carries the tags; what is only remembered, as an instance for an hour after its end, doesn't. */
export async function findTagged(ec2: EC2Client, wanted: Readonly<Record<string, string>>): Promise<Item[]> {
  const [[key, value] = ["", ""], ...others] = Object.entries(wanted);
  const tagsOf = new Map<string, { kind: string; tags: Map<string, string> }>();
  const note = ({ ResourceId: id = "", ResourceType: kind, Key = "", Value = "" }: TagDescription): void => {
    const known = tagsOf.get(id) ?? { kind: String(kind), tags: new Map<string, string>() };
    known.tags.set(Key, Value);
    tagsOf.set(id, known);
  };
  const describe = (filters: { Name: string; Values: string[] }[]) =>
    pages((NextToken) =>
      ec2
        .send(new DescribeTagsCommand({ Filters: filters, ...(NextToken !== undefined && { NextToken }) }))
        .then(({ Tags, NextToken: next }) => ({ items: Tags, next })),
    );
  for (const tag of await describe([
    { Name: "key", Values: [key] },
    { Name: "value", Values: [value] },
  ]))
    note(tag);
  if (tagsOf.size === 0) return [];
  for (const tag of await describe([{ Name: "key", Values: [...others.map(([name]) => name), "Name"] }]))
    if (tagsOf.has(tag.ResourceId ?? "")) note(tag);
  const items = [...tagsOf]
    .filter(([, { tags: has }]) => others.every(([name, expected]) => has.get(name) === expected))
    .map(([id, { kind, tags: has }]): Item => ({ kind, id, name: has.get("Name") ?? id }))
    // Rules live and die with their group.
    .filter(({ kind }) => kind !== "security-group-rule");
  const instances = items.filter(({ kind }) => kind === "instance").map(({ id }) => id);
  const alive = new Set((await describeInstances(ec2, instances)).filter(isAlive).map(({ InstanceId }) => InstanceId));
  const requests = await openSpotRequests(ec2, instances);
  return [...items.filter(({ kind, id }) => kind !== "instance" || alive.has(id)), ...requests].filter(
    ({ id }, index, all) => all.findIndex((one) => one.id === id) === index,
  );
}

/** What is the fleet's by its tag, and the ids that the state knows. */
export interface Known {
  readonly tags: Readonly<Record<string, string>>;
  readonly keep: readonly string[];
}

/** Things that carry the stack's tag, but that its state doesn't know: a deployment that was killed has made them. */
export async function findOrphans(ec2: EC2Client, { tags: own, keep }: Known): Promise<Item[]> {
  const stack = own[tags.stack];
  if (stack === undefined) return [];
  const found = (await findTagged(ec2, { [tags.stack]: stack })).filter(({ id }) => !keep.includes(id));
  const volumes = found.filter(({ kind }) => kind === "volume").map(({ id }) => id);
  if (volumes.length === 0) return found;
  // An attached volume goes with its instance.
  const { Volumes = [] } = await ec2.send(
    new DescribeVolumesCommand({ Filters: [{ Name: "volume-id", Values: volumes }] }),
  );
  const loose = new Set(Volumes.filter(({ State }) => State === "available").map(({ VolumeId }) => VolumeId));
  return found.filter(({ kind, id }) => kind !== "volume" || loose.has(id));
}

/** Instances by id; unknown ones are left out. */
export async function describeInstances(ec2: EC2Client, ids: readonly string[]): Promise<Instance[]> {
  if (ids.length === 0) return [];
  return findInstances(ec2, [{ Name: "instance-id", Values: [...ids] }]);
}

/** Instances that match all of the filters. */
export async function findInstances(
  ec2: EC2Client,
  filters: { Name: string; Values: string[] }[],
): Promise<Instance[]> {
  return pages((NextToken) =>
    ec2
      .send(new DescribeInstancesCommand({ Filters: filters, ...(NextToken !== undefined && { NextToken }) }))
      .then(({ Reservations = [], NextToken: next }) => ({
        items: Reservations.flatMap(({ Instances = [] }) => Instances),
        next,
      })),
  );
}

/** Whether an instance still exists, started or not. */
export function isAlive({ State }: Instance): boolean {
  return State?.Name !== "terminated";
}

async function openSpotRequests(ec2: EC2Client, instances: readonly string[]): Promise<Item[]> {
  if (instances.length === 0) return [];
  const { SpotInstanceRequests = [] } = await ec2.send(
    new DescribeSpotInstanceRequestsCommand({ Filters: [{ Name: "state", Values: ["open", "active"] }] }),
  );
  return SpotInstanceRequests.filter(({ InstanceId }) => instances.includes(InstanceId ?? "")).map(
    ({ SpotInstanceRequestId: id = "" }) => ({ kind: "spot-instances-request", id, name: id }),
  );
}

/** How each kind is deleted, in the order in which that works. */
const removals: Readonly<Record<string, (ec2: EC2Client, id: string) => Promise<unknown>>> = {
  instance: (ec2, id) => ec2.send(new TerminateInstancesCommand({ InstanceIds: [id] })),
  "spot-instances-request": (ec2, id) =>
    ec2.send(new CancelSpotInstanceRequestsCommand({ SpotInstanceRequestIds: [id] })),
  volume: (ec2, id) => ec2.send(new DeleteVolumeCommand({ VolumeId: id })),
  "elastic-ip": (ec2, id) => ec2.send(new ReleaseAddressCommand({ AllocationId: id })),
  "network-interface": (ec2, id) => ec2.send(new DeleteNetworkInterfaceCommand({ NetworkInterfaceId: id })),
  "key-pair": (ec2, id) => ec2.send(new DeleteKeyPairCommand({ KeyPairId: id })),
  "security-group": (ec2, id) => ec2.send(new DeleteSecurityGroupCommand({ GroupId: id })),
  subnet: (ec2, id) => ec2.send(new DeleteSubnetCommand({ SubnetId: id })),
  "route-table": (ec2, id) => ec2.send(new DeleteRouteTableCommand({ RouteTableId: id })),
  "internet-gateway": async (ec2, id) => {
    const { InternetGateways: [gateway] = [] } = await ec2.send(
      new DescribeInternetGatewaysCommand({ InternetGatewayIds: [id] }),
    );
    for (const { VpcId } of gateway?.Attachments ?? [])
      await ec2.send(new DetachInternetGatewayCommand({ InternetGatewayId: id, VpcId }));
    await ec2.send(new DeleteInternetGatewayCommand({ InternetGatewayId: id }));
  },
  vpc: (ec2, id) => ec2.send(new DeleteVpcCommand({ VpcId: id })),
};

/** Deletes things, each kind after those that live in it. What is gone already is no error. */
export async function remove(ec2: EC2Client, items: readonly Item[]): Promise<void> {
  for (const [kind, removal] of Object.entries(removals)) {
    const ids = items.filter((one) => one.kind === kind).map(({ id }) => id);
    await Promise.all(ids.map((id) => whenFree(() => removal(ec2, id))));
    if (kind === "instance") await whenTerminated(ec2, ids);
  }
  const unknown = items.find(({ kind }) => !(kind in removals));
  if (unknown !== undefined) throw new Error(`${unknown.kind} ${unknown.id} has the fleet's tag; delete it by hand`);
}

/** What an instance has held is free only some seconds after its end. */
async function whenFree(removal: () => Promise<unknown>): Promise<void> {
  const deadline = Date.now() + 120_000;
  for (let pause = 500; ; pause = Math.min(pause * 2, 10_000)) {
    try {
      await removal();
      return;
    } catch (error) {
      if (isMissing(error)) return;
      const held = error instanceof Error && /DependencyViolation|InUse/.test(error.name);
      if (!held || Date.now() + pause > deadline) throw error;
    }
    await delay(pause);
  }
}

async function whenTerminated(ec2: EC2Client, ids: readonly string[]): Promise<void> {
  const deadline = Date.now() + 10 * 60_000;
  for (let pause = 200; ; pause = Math.min(pause * 1.5, 5000)) {
    if (!(await describeInstances(ec2, ids)).some(isAlive)) return;
    if (Date.now() > deadline) throw new Error(`${ids.join(", ")}: still not terminated after 10 minutes; try again`);
    await delay(pause);
  }
}
