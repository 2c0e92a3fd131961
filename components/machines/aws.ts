/** Provider `aws`: EC2 instances of the official NixOS images that run nixos/builder.nix. */
import { Instance } from "@pulumi/aws/ec2/instance.js";
import { InternetGateway } from "@pulumi/aws/ec2/internetGateway.js";
import { KeyPair } from "@pulumi/aws/ec2/keyPair.js";
import { Route } from "@pulumi/aws/ec2/route.js";
import { RouteTable } from "@pulumi/aws/ec2/routeTable.js";
import { RouteTableAssociation } from "@pulumi/aws/ec2/routeTableAssociation.js";
import { SecurityGroup } from "@pulumi/aws/ec2/securityGroup.js";
import { Subnet } from "@pulumi/aws/ec2/subnet.js";
import { Vpc } from "@pulumi/aws/ec2/vpc.js";
import { Provider, type ProviderArgs } from "@pulumi/aws/provider.js";
import { SecurityGroupEgressRule } from "@pulumi/aws/vpc/securityGroupEgressRule.js";
import { SecurityGroupIngressRule } from "@pulumi/aws/vpc/securityGroupIngressRule.js";
import * as command from "@pulumi/command/local/command.js";
import * as pulumi from "@pulumi/pulumi";
import { regionVariable, tagVariable, type AwsAccess } from "../../src/aws/access.ts";
import type { AwsLookup } from "../../src/aws/lookup.ts";
import { NotAtAws, originOf, type Origin } from "../../src/aws/origin.ts";
import type { Place, Placement } from "../../src/aws/placement.ts";
import { tags } from "../../src/aws/tags.ts";
import { builderUsers } from "../../src/bootstrap/builderFiles.ts";
import { instanceUserData } from "../../src/bootstrap/userData.ts";
import type { AwsBuilderSpec, FleetSpec } from "../../src/fleetSpec.ts";
import { commandDefaults, scriptCommand, stackEnvironment } from "../checkout.ts";
import { builderNix, builderParameters, provisionNixos } from "../nixos.ts";
import { SshIdentity } from "../sshIdentity.ts";
import type { Machine, MachineKeys } from "./machine.ts";

/** Arguments of an `AwsAccount`. */
export interface AwsAccountArgs {
  readonly spec: FleetSpec;
  /** How AWS is asked. */
  readonly access: AwsAccess;
  /** What was found at AWS. */
  readonly lookup: AwsLookup;
  readonly adminPublicKey: pulumi.Input<string>;
}

/** What all instances of a fleet share: tags, the administration key, a security group, and a network unless there is one. */
export class AwsAccount extends pulumi.ComponentResource {
  readonly tags: pulumi.Output<Record<string, string>>;
  readonly keyPair: KeyPair;
  readonly securityGroup: SecurityGroup;
  /** Subnets that instances may be in, in order of preference. */
  readonly subnetIds: pulumi.Input<string>[];
  /** What was found at AWS. */
  readonly lookup: AwsLookup;
  /** What makes and deletes all that is at AWS. */
  readonly plugin: Provider;
  /** For scripts that talk to the API. */
  readonly environment: Record<string, string>;
  /** Instances, and what holds their places, are made after it and so go before it: its own end deletes what of them nobody noted. */
  readonly instances: pulumi.Resource;
  readonly #held = new Map<string, command.Command>();
  readonly #ids: pulumi.Output<string>[] = [];
  /** Without these, an instance has no way out. */
  readonly #routes: pulumi.Resource[] = [];

  constructor(name: string, args: AwsAccountArgs, opts?: pulumi.ComponentResourceOptions) {
    super("nix-builder-fleet:index:AwsAccount", name, {}, opts);
    const { spec, lookup, access } = args;
    this.lookup = lookup;
    this.environment = { ...stackEnvironment(), [regionVariable]: access.region };
    this.plugin = new Provider(`${name}-plugin`, pluginSettings(access), { parent: this });
    const child = { parent: this };
    const atAws = { ...child, provider: this.plugin };
    const newStack = scriptCommand("aws/main.ts", "new-stack");
    // Everything carries its tag and so depends on it: it goes last, and finds only what the state never knew of.
    const stack = new command.Command(
      `${name}-stack`,
      {
        ...commandDefaults,
        addPreviousOutputInEnv: true,
        create: newStack,
        update: newStack,
        delete: scriptCommand("aws/main.ts", "sweep"),
        environment: this.environment,
        // What is left of one in another region is found, and deleted, there.
        triggers: [access.region],
      },
      child,
    ).stdout.apply((stdout) => stdout.trim());
    this.tags = stack.apply((id): Record<string, string> => ({
      [tags.fleet]: spec.fleet,
      [tags.stack]: id,
      [tags.expires]: spec.expires ?? "never",
    }));
    const vpcId = this.#network(name, spec, lookup, stack);
    this.subnetIds = vpcId.subnetIds;
    const inside = { ...atAws, dependsOn: vpcId.contents };
    this.keyPair = new KeyPair(`${name}-admin`, { publicKey: args.adminPublicKey, tags: this.named(name) }, inside);
    this.#ids.push(this.keyPair.keyPairId);
    this.securityGroup = new SecurityGroup(
      `${name}-builders`,
      { vpcId: vpcId.id, description: "Builders: SSH from the allowed addresses only", tags: this.named(name) },
      inside,
    );
    this.#ids.push(this.securityGroup.id);
    this.#rules(name, spec.access?.allowedCidrs ?? []);
    this.instances = this.#swept(`${name}-instances`, "delete-instances", stack, [
      this.keyPair,
      this.securityGroup,
      ...this.#routes,
    ]);
    for (const builder of spec.builders) {
      if (builder.provider === "aws") this.#held.set(builder.name, this.#hold(builder));
    }
    this.registerOutputs({});
  }

  /** Notes that an instance is the fleet's: what carries its tag and was never noted is left of a killed deployment. */
  owns(instance: Instance): void {
    this.#ids.push(instance.id);
  }

  /** What a builder's instance is made of. Known in previews as soon as the stack's id is. */
  originOf(spec: AwsBuilderSpec): pulumi.Output<Origin> {
    return this.tags.apply((common) => {
      try {
        return originOf(this.lookup, spec, common[tags.stack] ?? "");
      } catch (error) {
        throw error instanceof NotAtAws ? new pulumi.RunError(error.message) : error;
      }
    });
  }

  /** Tags of one builder's instance and its volumes. */
  tagsOf(spec: AwsBuilderSpec): pulumi.Output<Record<string, string>> {
    return pulumi.all([this.tags, this.originOf(spec)]).apply(([common, { generation }]): Record<string, string> => ({
      ...common,
      Name: spec.alias,
      [tags.builder]: spec.name,
      [tags.generation]: generation,
    }));
  }

  /** Tags of what builders share. */
  named(name: string): pulumi.Output<Record<string, string>> {
    return this.tags.apply((common): Record<string, string> => ({
      ...common,
      Name: `${common[tags.fleet] ?? ""}-${name}`,
    }));
  }

  /**
   * Where a builder's instance goes. Places are held first, for all builders, and only then given up one by one for the
   * builders' own instances: two builders never count on one place.
   */
  placeOf(spec: AwsBuilderSpec): { readonly place: pulumi.Output<Place>; readonly dependsOn: pulumi.Resource[] } {
    const held = this.#held.get(spec.name);
    if (held === undefined) throw new pulumi.ResourceError(`no place is held for ${spec.name}`, this);
    const release = scriptCommand("aws/main.ts", "release");
    const released = new command.Command(
      `${spec.name}-place`,
      {
        ...commandDefaults,
        create: release,
        update: release,
        stdin: this.tagsOf(spec).apply((own) => JSON.stringify(own)),
        environment: this.environment,
        triggers: [held.stdout],
      },
      { parent: this, dependsOn: [...this.#held.values()] },
    );
    const place = pulumi.all([held.stdout, released.id]).apply(([stdout]) => JSON.parse(stdout) as Place);
    return { place, dependsOn: [released, ...this.#routes] };
  }

  /**
   * What a killed deployment made without writing it down is in the way of what it lies in: whatever is made after this command is deleted
   * before it, and then the script deletes the rest of that.
   */
  #swept(
    name: string,
    script: string,
    stack: pulumi.Input<string>,
    dependsOn: readonly pulumi.Resource[],
  ): command.Command {
    return new command.Command(
      name,
      {
        ...commandDefaults,
        create: ":",
        update: ":",
        delete: scriptCommand("aws/main.ts", script),
        environment: pulumi.output(stack).apply((id) => ({ ...this.environment, [tagVariable]: id })),
      },
      { parent: this, dependsOn: [...dependsOn] },
    );
  }

  #hold(spec: AwsBuilderSpec): command.Command {
    const hold = scriptCommand("aws/main.ts", "place");
    const wanted = pulumi
      .all([this.tagsOf(spec), this.originOf(spec), pulumi.all(this.subnetIds), this.securityGroup.id])
      .apply(([own, { image }, subnetIds, groupId]): Placement => {
        const places = spec.candidates.flatMap((instanceType) =>
          subnetIds.map((subnetId): Place => ({ instanceType, subnetId })),
        );
        const { alias, spot, disk, publicAddress, nestedVirtualization } = spec;
        return { alias, places, tags: own, imageId: image, groupId, spot, disk, publicAddress, nestedVirtualization };
      });
    return new command.Command(
      `${spec.name}-placement`,
      {
        ...commandDefaults,
        create: hold,
        update: hold,
        stdin: wanted.apply((value) => JSON.stringify(value)),
        environment: this.environment,
      },
      { parent: this, dependsOn: this.instances },
    );
  }

  /** The VPC and its subnets: those that exist, or one of the fleet's own with a subnet in each zone. */
  #network(
    name: string,
    spec: FleetSpec,
    lookup: AwsLookup,
    stack: pulumi.Input<string>,
  ): {
    readonly id: pulumi.Input<string>;
    readonly subnetIds: pulumi.Input<string>[];
    /** What is in the network is made after it. */
    readonly contents: command.Command[];
  } {
    const { network } = spec.aws;
    const atAws = { parent: this, provider: this.plugin };
    if ("subnetIds" in network) {
      return { id: lookup.subnets[0]?.vpcId ?? "", subnetIds: network.subnetIds, contents: [] };
    }
    const own = { tags: this.named(name) };
    const vpc = new Vpc(`${name}-vpc`, { ...own, cidrBlock: network.ipRange }, atAws);
    const contents = this.#swept(`${name}-contents`, "delete-contents", stack, [vpc]);
    const inside = { ...atAws, dependsOn: contents };
    const gateway = new InternetGateway(`${name}-gateway`, { ...own, vpcId: vpc.id }, inside);
    const table = new RouteTable(`${name}-routes`, { ...own, vpcId: vpc.id }, inside);
    const route = new Route(
      `${name}-default-route`,
      { routeTableId: table.id, destinationCidrBlock: "0.0.0.0/0", gatewayId: gateway.id },
      atAws,
    );
    this.#routes.push(route);
    this.#ids.push(vpc.id, gateway.id, table.id);
    const subnetIds = lookup.zones.map((zone, index) => {
      const subnet = new Subnet(
        `${name}-subnet-${index + 1}`,
        { ...own, vpcId: vpc.id, availabilityZone: zone, cidrBlock: quarter(network.ipRange, index) },
        // Which zones are best may change; a subnet stays where it is.
        { ...inside, ignoreChanges: ["availabilityZone"] },
      );
      this.#ids.push(subnet.id);
      this.#routes.push(
        new RouteTableAssociation(
          `${name}-subnet-${index + 1}-routes`,
          { subnetId: subnet.id, routeTableId: table.id },
          atAws,
        ),
      );
      return subnet.id;
    });
    return { id: vpc.id, subnetIds, contents: [contents] };
  }

  /** One resource for each rule, so that a changed range replaces no other. */
  #rules(name: string, allowedCidrs: readonly string[]): void {
    const group = { securityGroupId: this.securityGroup.id, tags: this.named(name) };
    for (const range of allowedCidrs) {
      this.#routes.push(
        new SecurityGroupIngressRule(
          `${name}-ssh-from-${range.replaceAll(/[^0-9a-f]+/g, "-")}`,
          { ...group, ...cidrOf(range), ipProtocol: "tcp", fromPort: 22, toPort: 22 },
          { parent: this, provider: this.plugin },
        ),
      );
    }
    for (const range of ["0.0.0.0/0", "::/0"]) {
      this.#routes.push(
        new SecurityGroupEgressRule(
          `${name}-out-v${range.includes(":") ? "6" : "4"}`,
          { ...group, ...cidrOf(range), ipProtocol: "-1" },
          { parent: this, provider: this.plugin },
        ),
      );
    }
  }

  /** To be called when all is noted: deletes what a killed deployment made without writing it down. */
  deleteOrphans(): void {
    const tidy = scriptCommand("aws/main.ts", "delete-orphans");
    new command.Command(
      "aws-orphans",
      {
        ...commandDefaults,
        create: tidy,
        update: tidy,
        stdin: pulumi
          .all([pulumi.all(this.#ids), this.tags])
          .apply(([keep, own]) => JSON.stringify({ keep, tags: own })),
        environment: this.environment,
      },
      { parent: this },
    );
  }
}

/** Arguments of an `AwsMachine`. */
export interface AwsMachineArgs extends MachineKeys {
  readonly spec: AwsBuilderSpec;
  readonly fleet: FleetSpec;
  readonly account: AwsAccount;
  /** The stack's folder on this machine. */
  readonly stackDirectory: pulumi.Input<string>;
}

/** An instance that became a NixOS builder. Its keys and settings change over SSH; only its place and size replace it. */
export class AwsMachine extends pulumi.ComponentResource implements Machine {
  readonly address: pulumi.Output<string>;
  readonly port = 22;
  readonly sshUsers = builderUsers;
  readonly hostKey: pulumi.Output<string>;
  readonly admin: NonNullable<Machine["admin"]>;
  readonly resource: pulumi.Resource;
  readonly generation: pulumi.Output<string>;
  /** Which of the candidates it is, and where. */
  readonly placement: pulumi.Output<Place>;

  constructor(name: string, args: AwsMachineArgs, opts?: pulumi.ComponentResourceOptions) {
    super("nix-builder-fleet:index:AwsMachine", name, {}, opts);
    const { spec, fleet, account } = args;
    const child = { parent: this };
    const identity = new SshIdentity(`${name}-host-key`, child);
    const { place, dependsOn } = account.placeOf(spec);
    const parameters = builderParameters(spec, fleet, fleet.aws);
    const origin = account.originOf(spec);
    const instance = new Instance(
      name,
      {
        ami: origin.image,
        instanceType: place.instanceType,
        subnetId: place.subnetId,
        associatePublicIpAddress: spec.publicAddress,
        vpcSecurityGroupIds: [account.securityGroup.id],
        keyName: account.keyPair.keyName,
        userData: pulumi.secret(
          pulumi
            .all([identity.privateKey, identity.publicKey, args.clients, args.adminPublicKey])
            .apply(([hostPrivateKey, hostPublicKey, clients, adminPublicKey]) =>
              instanceUserData({
                hostPrivateKey,
                hostPublicKey,
                clients,
                adminPublicKey,
                parameters,
                builderNix,
                nixosRelease: fleet.aws.nixosRelease,
              }),
            ),
        ),
        // Builds with network access must not read the user data: no token passes a second hop, and builder.nix refuses the rest.
        metadataOptions: { httpEndpoint: "enabled", httpTokens: "required", httpPutResponseHopLimit: 1 },
        rootBlockDevice: {
          volumeType: "gp3",
          volumeSize: spec.disk.size,
          ...(spec.disk.iops !== undefined && { iops: spec.disk.iops }),
          ...(spec.disk.throughput !== undefined && { throughput: spec.disk.throughput }),
          encrypted: true,
          deleteOnTermination: true,
        },
        // `poweroff` on the builder ends the bill.
        instanceInitiatedShutdownBehavior: "terminate",
        tags: account.tagsOf(spec),
        volumeTags: account.tagsOf(spec),
        ...(spec.spot && {
          instanceMarketOptions: {
            marketType: "spot",
            spotOptions: { spotInstanceType: "one-time", instanceInterruptionBehavior: "terminate" },
          },
        }),
        ...(spec.nestedVirtualization && { cpuOptions: { nestedVirtualization: "enabled" } }),
      },
      {
        ...child,
        provider: account.plugin,
        dependsOn,
        // These count at birth only: new keys come in over SSH. The image of a running builder is looked up and stays.
        ignoreChanges: ["userData", "keyName"],
        // An instance that is gone, as spot instances may be at any time, is made again.
        replacementTrigger: origin.generation,
        // The plugin repeats a refused request for as long (hashicorp/terraform-provider-aws#43193).
        customTimeouts: { create: "10m" },
      },
    );
    account.owns(instance);
    const address = spec.publicAddress ? instance.publicIp : instance.privateIp;
    const nixos = provisionNixos(
      name,
      {
        ...args,
        alias: spec.alias,
        port: this.port,
        address,
        identity,
        parameters,
        resource: instance,
        timeout: fleet.aws.bootTimeout,
        timeoutKey: "aws.bootTimeout",
        environment: account.environment,
        ec2Instance: instance.id,
      },
      this,
    );
    this.address = nixos.address;
    this.hostKey = identity.publicKey;
    this.generation = nixos.generation;
    this.admin = nixos.admin;
    this.resource = instance;
    this.placement = pulumi
      .all([instance.instanceType, instance.subnetId])
      .apply(([instanceType, subnetId]) => ({ instanceType, subnetId }));
    this.registerOutputs({ address: this.address, placement: this.placement });
  }
}

/**
 * The plugin's own configuration, without what says who asks: that it has from `plugin.ini`, today's each time, also when `destroy` knows
 * nothing but its state.
 */
function pluginSettings(access: AwsAccess): ProviderArgs {
  const { region, endpoints, defaultTags, useDualstackEndpoint, useFipsEndpoint, customCaBundle } = access;
  const { allowedAccountIds, forbiddenAccountIds, stsRegion } = access;
  const given = { defaultTags, useDualstackEndpoint, useFipsEndpoint, customCaBundle, stsRegion };
  return {
    ...access.plugin,
    ...Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined)),
    ...(endpoints && { endpoints: [endpoints] }),
    ...(allowedAccountIds && { allowedAccountIds: [...allowedAccountIds] }),
    ...(forbiddenAccountIds && { forbiddenAccountIds: [...forbiddenAccountIds] }),
    region,
    profile: "nix-builder-fleet",
    // Below the project's folder, where plugins run: a checkout may move.
    sharedConfigFiles: ["src/aws/plugin.ini"],
    // The program has just asked with them; and the genuine plugin would check AWS_ACCESS_KEY_ID instead.
    skipCredentialsValidation: true,
    // It would ask IAM for it, which takes a permission more; only these lists need it.
    skipRequestingAccountId: allowedAccountIds === undefined && forbiddenAccountIds === undefined,
  };
}

function cidrOf(range: string): { cidrIpv6: string } | { cidrIpv4: string } {
  return range.includes(":") ? { cidrIpv6: range } : { cidrIpv4: range };
}

/** One of the four quarters of an IPv4 range: `10.65.0.0/16`, 1 → `10.65.64.0/18`. */
function quarter(range: string, index: number): string {
  const [address = "", bits = ""] = range.split("/");
  const start = address.split(".").reduce((sum, part) => sum * 256 + Number(part), 0);
  const size = 2 ** (32 - Number(bits));
  const first = Math.floor(start / size) * size + (index * size) / 4;
  const parts = [24, 16, 8, 0].map((shift) => Math.floor(first / 2 ** shift) % 256);
  return `${parts.join(".")}/${Number(bits) + 2}`;
}
