/** What of a fleet exists at AWS, found by tag: nothing else knows what a killed deployment made. */
import { setTimeout as delay } from "node:timers/promises";
import {
  CancelSpotInstanceRequestsCommand,
  DeleteInternetGatewayCommand,
  DeleteKeyPairCommand,
  DeleteRouteTableCommand,
  DeleteSecurityGroupCommand,
  DeleteSubnetCommand,
  DeleteVolumeCommand,
  DeleteVpcCommand,
  DescribeInstancesCommand,
  DescribeInternetGatewaysCommand,
  DescribeKeyPairsCommand,
  DescribeRouteTablesCommand,
  DescribeSecurityGroupsCommand,
  DescribeSpotInstanceRequestsCommand,
  DescribeSubnetsCommand,
  DescribeVolumesCommand,
  DescribeVpcsCommand,
  DetachInternetGatewayCommand,
  TerminateInstancesCommand,
  type EC2Client,
  type Instance,
  type Tag,
} from "@aws-sdk/client-ec2";
import { isMissing, pages } from "./pages.ts";
import { tagOf, tags } from "./tags.ts";

/** One thing that exists. */
export interface Item {
  /** AWS's name for what it is: `instance`, `volume`, `security-group` … */
  readonly kind: string;
  readonly id: string;
  /** Its tag `Name`, or its id. */
  readonly name: string;
  /** Id of its stack, by the tag. */
  readonly stack?: string;
  /** Id of the instance that it is for and goes with. */
  readonly instance?: string;
}

/** Everything that exists and carries the tags; what is only remembered, as an instance for an hour after its end, doesn't. */
export async function findTagged(ec2: EC2Client, wanted: Readonly<Record<string, string>>): Promise<Item[]> {
  const filters = Object.entries(wanted).map(([name, value]) => ({ Name: `tag:${name}`, Values: [value] }));
  const found = await Promise.all(
    Object.entries(kinds).map(async ([kind, { find }]) =>
      (await find(ec2, filters)).map(({ id = "", named, instance }): Item => {
        const stack = tagOf({ Tags: named }, tags.stack);
        return {
          kind,
          id,
          name: tagOf({ Tags: named }, "Name") ?? id,
          ...(stack !== undefined && { stack }),
          ...(instance !== undefined && { instance }),
        };
      }),
    ),
  );
  return found.flat();
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
  const found = (await findTagged(ec2, { [tags.stack]: stack })).filter(
    ({ id, instance }) => !keep.includes(id) && !(instance !== undefined && keep.includes(instance)),
  );
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
export async function findInstances(ec2: EC2Client, filters: Filters): Promise<Instance[]> {
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

type Filters = { Name: string; Values: string[] }[];

/** A thing as the API describes it. */
interface Described {
  readonly id: string | undefined;
  readonly named: Tag[] | undefined;
  readonly instance?: string | undefined;
}

/** How each kind is found and deleted, in the order in which deleting works. */
const kinds: Readonly<
  Record<
    string,
    {
      readonly find: (ec2: EC2Client, filters: Filters) => Promise<Described[]>;
      readonly remove: (ec2: EC2Client, id: string) => Promise<unknown>;
    }
  >
> = {
  instance: {
    find: async (ec2, filters) =>
      (await findInstances(ec2, filters))
        .filter(isAlive)
        .map(({ InstanceId, Tags }) => ({ id: InstanceId, named: Tags })),
    remove: (ec2, id) => ec2.send(new TerminateInstancesCommand({ InstanceIds: [id] })),
  },
  "spot-instances-request": {
    // AWS tags instances, not the requests that they come from.
    find: async (ec2, filters) => {
      const instances = (await findInstances(ec2, filters)).flatMap(({ SpotInstanceRequestId: id }) => id ?? []);
      if (instances.length === 0) return [];
      const { SpotInstanceRequests = [] } = await ec2.send(
        new DescribeSpotInstanceRequestsCommand({ Filters: [{ Name: "state", Values: ["open", "active"] }] }),
      );
      return SpotInstanceRequests.filter(({ SpotInstanceRequestId: id = "" }) => instances.includes(id)).map(
        ({ SpotInstanceRequestId, Tags, InstanceId }) => ({
          id: SpotInstanceRequestId,
          named: Tags,
          instance: InstanceId,
        }),
      );
    },
    remove: (ec2, id) => ec2.send(new CancelSpotInstanceRequestsCommand({ SpotInstanceRequestIds: [id] })),
  },
  volume: {
    find: async (ec2, Filters) =>
      ((await ec2.send(new DescribeVolumesCommand({ Filters }))).Volumes ?? []).map(({ VolumeId, Tags }) => ({
        id: VolumeId,
        named: Tags,
      })),
    remove: (ec2, id) => ec2.send(new DeleteVolumeCommand({ VolumeId: id })),
  },
  "key-pair": {
    find: async (ec2, Filters) =>
      ((await ec2.send(new DescribeKeyPairsCommand({ Filters }))).KeyPairs ?? []).map(({ KeyPairId, Tags }) => ({
        id: KeyPairId,
        named: Tags,
      })),
    remove: (ec2, id) => ec2.send(new DeleteKeyPairCommand({ KeyPairId: id })),
  },
  "security-group": {
    find: async (ec2, Filters) =>
      ((await ec2.send(new DescribeSecurityGroupsCommand({ Filters }))).SecurityGroups ?? []).map(
        ({ GroupId, Tags }) => ({ id: GroupId, named: Tags }),
      ),
    remove: (ec2, id) => ec2.send(new DeleteSecurityGroupCommand({ GroupId: id })),
  },
  subnet: {
    find: async (ec2, Filters) =>
      ((await ec2.send(new DescribeSubnetsCommand({ Filters }))).Subnets ?? []).map(({ SubnetId, Tags }) => ({
        id: SubnetId,
        named: Tags,
      })),
    remove: (ec2, id) => ec2.send(new DeleteSubnetCommand({ SubnetId: id })),
  },
  "route-table": {
    find: async (ec2, Filters) =>
      ((await ec2.send(new DescribeRouteTablesCommand({ Filters }))).RouteTables ?? []).map(
        ({ RouteTableId, Tags }) => ({ id: RouteTableId, named: Tags }),
      ),
    remove: (ec2, id) => ec2.send(new DeleteRouteTableCommand({ RouteTableId: id })),
  },
  "internet-gateway": {
    find: async (ec2, Filters) =>
      ((await ec2.send(new DescribeInternetGatewaysCommand({ Filters }))).InternetGateways ?? []).map(
        ({ InternetGatewayId, Tags }) => ({ id: InternetGatewayId, named: Tags }),
      ),
    remove: async (ec2, id) => {
      const { InternetGateways: [gateway] = [] } = await ec2.send(
        new DescribeInternetGatewaysCommand({ InternetGatewayIds: [id] }),
      );
      for (const { VpcId } of gateway?.Attachments ?? [])
        await ec2.send(new DetachInternetGatewayCommand({ InternetGatewayId: id, VpcId }));
      await ec2.send(new DeleteInternetGatewayCommand({ InternetGatewayId: id }));
    },
  },
  vpc: {
    find: async (ec2, Filters) =>
      ((await ec2.send(new DescribeVpcsCommand({ Filters }))).Vpcs ?? []).map(({ VpcId, Tags }) => ({
        id: VpcId,
        named: Tags,
      })),
    remove: (ec2, id) => ec2.send(new DeleteVpcCommand({ VpcId: id })),
  },
};

/** Deletes things, each kind after those that live in it. What is gone already is no error. */
export async function remove(ec2: EC2Client, items: readonly Item[]): Promise<void> {
  for (const [kind, { remove: removeOne }] of Object.entries(kinds)) {
    const ids = items.filter((one) => one.kind === kind).map(({ id }) => id);
    await Promise.all(ids.map((id) => whenFree(() => removeOne(ec2, id))));
    if (kind === "instance") await whenTerminated(ec2, ids);
  }
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
