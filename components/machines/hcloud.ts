/** Provider `hcloud`: servers of Hetzner Cloud that run nixos/builder.nix. */
import * as command from "@pulumi/command/local/command.js";
import { Firewall } from "@pulumi/hcloud/firewall.js";
import { getImageOutput } from "@pulumi/hcloud/getImage.js";
import { Network } from "@pulumi/hcloud/network.js";
import { NetworkSubnet } from "@pulumi/hcloud/networkSubnet.js";
import { PlacementGroup } from "@pulumi/hcloud/placementGroup.js";
import { Server } from "@pulumi/hcloud/server.js";
import { SshKey } from "@pulumi/hcloud/sshKey.js";
import * as pulumi from "@pulumi/pulumi";
import { builderUsers } from "../../src/bootstrap/builderFiles.ts";
import { cloudConfig } from "../../src/bootstrap/cloudConfig.ts";
import type { Conversion } from "../../src/bootstrap/conversion.ts";
import type { FleetSpec, HcloudBuilderSpec } from "../../src/fleetSpec.ts";
import { labelVariable } from "../../src/hcloud/access.ts";
import { labels, type Kind } from "../../src/hcloud/inventory.ts";
import type { Placement } from "../../src/hcloud/placement.ts";
import type { Candidate } from "../../src/hcloud/schema.ts";
import { pinnedNixpkgs } from "../../src/nixosRelease.ts";
import { commandDefaults, scriptCommand, stackEnvironment } from "../checkout.ts";
import { builderNix, builderParameters, hcloudNix, provisionNixos } from "../nixos.ts";
import { SshIdentity } from "../sshIdentity.ts";
import type { Machine, MachineKeys } from "./machine.ts";

/** Arguments of an `HcloudProject`. */
export interface HcloudProjectArgs {
  readonly spec: FleetSpec;
  readonly adminPublicKey: pulumi.Input<string>;
}

/** What all servers of a fleet share: labels, the administration key, a firewall, and where asked for a network and a group. */
export class HcloudProject extends pulumi.ComponentResource {
  readonly labels: pulumi.Output<Record<string, string>>;
  readonly sshKey: SshKey;
  readonly firewall: Firewall;
  /** The subnet of the private network; `undefined`: there is none. */
  readonly subnet: NetworkSubnet | undefined;
  readonly placementGroup: PlacementGroup | undefined;
  /** For scripts that talk to the API. */
  readonly environment = stackEnvironment();
  /** Servers are made after it and so go before it: its own end deletes what servers there are. */
  readonly servers: pulumi.Resource;
  readonly #held = new Map<string, command.Command>();
  readonly #ids = new Map<Kind, pulumi.Output<string>[]>();

  constructor(name: string, args: HcloudProjectArgs, opts?: pulumi.ComponentResourceOptions) {
    super("nix-builder-fleet:index:HcloudProject", name, {}, opts);
    const { spec } = args;
    const child = { parent: this };
    // The plugin deletes with the token of the last `up`, which may be none any more; the scripts do it with today's.
    const byScripts = { ...child, retainOnDelete: true };
    const newStack = scriptCommand("hcloud/main.ts", "new-stack");
    // Everything carries its label and so depends on it: it goes last, and finds only what the state never knew of.
    const stack = new command.Command(
      `${name}-stack`,
      {
        ...commandDefaults,
        addPreviousOutputInEnv: true,
        create: newStack,
        update: newStack,
        delete: scriptCommand("hcloud/main.ts", "sweep"),
        environment: this.environment,
      },
      child,
    ).stdout.apply((stdout) => stdout.trim());
    this.labels = stack.apply((id): Record<string, string> => ({
      [labels.fleet]: spec.fleet.slice(0, 63),
      [labels.stack]: id,
      [labels.expires]: spec.expires ?? "never",
    }));
    const own = { labels: this.labels };
    for (const builder of spec.builders) {
      if (builder.provider !== "hcloud" || builder.candidates.length === 1) continue;
      this.#held.set(builder.name, this.#hold(builder, spec.hcloud.baseImage));
    }
    this.sshKey = this.owns(
      "ssh_keys",
      new SshKey(`${name}-admin`, { ...own, publicKey: args.adminPublicKey }, byScripts),
    );
    const sourceIps = spec.access?.allowedCidrs ?? [];
    const rules = [
      { direction: "in", protocol: "tcp", port: "22", sourceIps },
      { direction: "in", protocol: "icmp", sourceIps },
    ];
    this.firewall = this.owns("firewalls", new Firewall(`${name}-firewall`, { ...own, rules }, byScripts));
    const { network, spread } = spec.hcloud;
    if (network !== undefined) {
      const { ipRange, zone } = network;
      const whole = this.owns("networks", new Network(`${name}-network`, { ...own, ipRange }, byScripts));
      this.subnet = new NetworkSubnet(
        `${name}-subnet`,
        { networkId: whole.id.apply(Number), type: "cloud", networkZone: zone, ipRange },
        byScripts,
      );
    }
    if (spread) {
      this.placementGroup = this.owns(
        "placement_groups",
        new PlacementGroup(`${name}-spread`, { ...own, type: "spread" }, byScripts),
      );
    }
    this.servers = new command.Command(
      `${name}-servers`,
      {
        ...commandDefaults,
        create: ":",
        update: ":",
        delete: scriptCommand("hcloud/main.ts", "delete-servers"),
        environment: stack.apply((id) => ({ ...this.environment, [labelVariable]: id })),
      },
      {
        ...child,
        dependsOn: [this.sshKey, this.firewall, this.subnet, this.placementGroup].filter((one) => one !== undefined),
      },
    );
    this.registerOutputs({});
  }

  /** Notes that something is the fleet's: what carries its label and was never noted is left of a killed deployment. */
  owns<T extends pulumi.CustomResource>(kind: Kind, resource: T): T {
    this.#ids.set(kind, [...(this.#ids.get(kind) ?? []), resource.id]);
    return resource;
  }

  /** Labels of one builder's server. */
  labelsOf({ name }: HcloudBuilderSpec): pulumi.Output<Record<string, string>> {
    return this.labels.apply((common): Record<string, string> => ({ ...common, [labels.builder]: name }));
  }

  /**
   * Where a builder's server goes. With one candidate that is known in previews; with several, places are held first, for all
   * builders, and only then given up one by one for the builders' own servers: two builders never count on one place.
   */
  placeOf(spec: HcloudBuilderSpec): {
    readonly serverType: pulumi.Input<string>;
    readonly location: pulumi.Input<string>;
  } {
    const [only, ...others] = spec.candidates;
    if (only !== undefined && others.length === 0) return only;
    const held = this.#held.get(spec.name);
    if (held === undefined) throw new Error(`no place is held for ${spec.name}`);
    const release = scriptCommand("hcloud/main.ts", "release");
    const released = new command.Command(
      `${spec.name}-place`,
      {
        ...commandDefaults,
        create: release,
        update: release,
        stdin: this.labelsOf(spec).apply((own) => JSON.stringify(own)),
        environment: this.environment,
        triggers: [held.stdout],
      },
      { parent: this, dependsOn: [...this.#held.values()] },
    );
    const place = pulumi.all([held.stdout, released.id]).apply(([stdout]) => JSON.parse(stdout) as Candidate);
    return { serverType: place.serverType, location: place.location };
  }

  #hold(spec: HcloudBuilderSpec, image: string): command.Command {
    const hold = scriptCommand("hcloud/main.ts", "place");
    const wanted = this.labelsOf(spec).apply((own): Placement => {
      return { alias: spec.alias, candidates: spec.candidates, labels: own, image };
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
      { parent: this },
    );
  }

  /** To be called when all is noted: deletes what a killed deployment made without writing it down. */
  deleteOrphans(): void {
    const keep = pulumi.all(Object.fromEntries([...this.#ids].map(([kind, ids]) => [kind, pulumi.all(ids)])));
    const tidy = scriptCommand("hcloud/main.ts", "delete-orphans");
    new command.Command(
      "hcloud-orphans",
      {
        ...commandDefaults,
        create: tidy,
        update: tidy,
        stdin: pulumi.all([keep, this.labels]).apply(([ids, own]) => JSON.stringify({ keep: ids, labels: own })),
        environment: this.environment,
      },
      { parent: this },
    );
  }
}

/** Arguments of an `HcloudMachine`. */
export interface HcloudMachineArgs extends MachineKeys {
  readonly spec: HcloudBuilderSpec;
  readonly fleet: FleetSpec;
  readonly project: HcloudProject;
  /** The stack's folder on this machine. */
  readonly stackDirectory: pulumi.Input<string>;
}

/** A server that became a NixOS builder. Its keys and settings change over SSH; only its place and size replace it. */
export class HcloudMachine extends pulumi.ComponentResource implements Machine {
  readonly address: pulumi.Output<string>;
  readonly port = 22;
  readonly sshUsers = builderUsers;
  readonly hostKey: pulumi.Output<string>;
  readonly admin: NonNullable<Machine["admin"]>;
  readonly resource: pulumi.Resource;
  readonly generation: pulumi.Output<string>;
  /** Which of the candidates it is. */
  readonly placement: pulumi.Output<Candidate>;

  constructor(name: string, args: HcloudMachineArgs, opts?: pulumi.ComponentResourceOptions) {
    super("nix-builder-fleet:index:HcloudMachine", name, {}, opts);
    const { spec, fleet, project } = args;
    const child = { parent: this };
    const identity = new SshIdentity(`${name}-host-key`, child);
    const wantedPlace = project.placeOf(spec);
    const parameters = builderParameters(spec, fleet, fleet.hcloud);
    const { subnet, placementGroup } = project;
    const server = new Server(
      name,
      {
        serverType: wantedPlace.serverType,
        location: wantedPlace.location,
        image: imageOf(spec, fleet, this),
        userData: pulumi.secret(
          pulumi
            .all([identity.privateKey, identity.publicKey, args.clients, args.adminPublicKey])
            .apply(([hostPrivateKey, hostPublicKey, clients, adminPublicKey]) =>
              cloudConfig({
                hostPrivateKey,
                hostPublicKey,
                clients,
                adminPublicKey,
                parameters,
                builderNix,
                hcloudNix,
                conversion: spec.image.kind === "infect" ? conversionOf(spec, fleet) : undefined,
              }),
            ),
        ),
        sshKeys: [project.sshKey.id],
        firewallIds: [project.firewall.id.apply(Number)],
        labels: project.labelsOf(spec),
        publicNets: [{ ipv4Enabled: spec.ipv4, ipv6Enabled: spec.ipv6 }],
        ...(subnet && { networks: [{ networkId: subnet.networkId }] }),
        ...(placementGroup && { placementGroupId: placementGroup.id.apply(Number) }),
      },
      {
        ...child,
        // All three count at birth only; a change would replace the server for what is done over SSH.
        ignoreChanges: ["userData", "sshKeys", "image"],
        // The plugin can't delete a server that is gone already; `hcloud-servers` and `hcloud-orphans` can.
        retainOnDelete: true,
        dependsOn: project.servers,
      },
    );
    project.owns("servers", server);
    const address = spec.ipv4 ? server.ipv4Address : server.ipv6Address;
    const nixos = provisionNixos(
      name,
      {
        ...args,
        alias: spec.alias,
        port: this.port,
        address,
        identity,
        parameters,
        resource: server,
        timeout: fleet.hcloud.bootTimeout,
        timeoutKey: "hcloud.bootTimeout",
      },
      this,
    );
    this.address = nixos.address;
    this.hostKey = identity.publicKey;
    this.generation = nixos.generation;
    this.admin = nixos.admin;
    this.resource = server;
    this.placement = pulumi
      .all([server.serverType, server.location])
      .apply(([serverType, location]) => ({ serverType, location }));
    this.registerOutputs({ address: this.address, placement: this.placement });
  }
}

function conversionOf({ system }: HcloudBuilderSpec, { hcloud }: FleetSpec): Conversion {
  return { system, nix: hcloud.nixArchives[system], nixpkgs: hcloud.nixpkgs ?? pinnedNixpkgs[hcloud.nixosRelease] };
}

function imageOf(
  { image, system }: HcloudBuilderSpec,
  fleet: FleetSpec,
  parent: pulumi.Resource,
): pulumi.Input<string> {
  if (image.kind === "infect") return fleet.hcloud.baseImage;
  if ("id" in image) return String(image.id);
  const withArchitecture = system === "aarch64-linux" ? "arm" : "x86";
  return getImageOutput({ withSelector: image.selector, withArchitecture, mostRecent: true }, { parent }).apply(
    ({ id }) => String(id),
  );
}
