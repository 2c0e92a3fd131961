/** Provider `hcloud`: servers of Hetzner Cloud that run nixos/builder.nix. */
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import * as command from "@pulumi/command/local/command.js";
import { Firewall } from "@pulumi/hcloud/firewall.js";
import { getImageOutput } from "@pulumi/hcloud/getImage.js";
import { Network } from "@pulumi/hcloud/network.js";
import { NetworkSubnet } from "@pulumi/hcloud/networkSubnet.js";
import { PlacementGroup } from "@pulumi/hcloud/placementGroup.js";
import { Server } from "@pulumi/hcloud/server.js";
import { SshKey } from "@pulumi/hcloud/sshKey.js";
import * as pulumi from "@pulumi/pulumi";
import {
  appliedMark,
  builderUser,
  keyFiles,
  moduleFiles,
  type BuilderParameters,
} from "../../src/bootstrap/builderFiles.ts";
import { cloudConfig } from "../../src/bootstrap/cloudConfig.ts";
import type { FleetSpec, HcloudBuilderSpec } from "../../src/fleetSpec.ts";
import { accessVariables } from "../../src/hcloud/access.ts";
import { HcloudApi, type HcloudAccess } from "../../src/hcloud/api.ts";
import { clearOrphans, labels, type Kind } from "../../src/hcloud/inventory.ts";
import type { Placement } from "../../src/hcloud/placement.ts";
import type { Candidate } from "../../src/hcloud/schema.ts";
import type { Provisioning } from "../../src/provision/provision.ts";
import { commandDefaults, scriptCommand } from "../checkout.ts";
import { SshIdentity } from "../sshIdentity.ts";
import type { Machine, MachineKeys } from "./machine.ts";

/** Arguments of an `HcloudProject`. */
export interface HcloudProjectArgs {
  readonly spec: FleetSpec;
  /** How this program itself talks to the API; the plugin has the same from the stack's configuration. */
  readonly access: pulumi.Input<HcloudAccess>;
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
  readonly environment: pulumi.Output<Record<string, string>>;
  /** Removes what a killed deployment left of the same thing, right before it is made. */
  readonly hooks: (kind: Kind) => pulumi.ResourceHookBinding;

  constructor(name: string, args: HcloudProjectArgs, opts?: pulumi.ComponentResourceOptions) {
    super("nix-builder-fleet:index:HcloudProject", name, {}, opts);
    const { spec } = args;
    const child = { parent: this };
    const access = pulumi.output(args.access);
    this.environment = access.apply(({ token, endpoint }): Record<string, string> => {
      return { [accessVariables.token]: token, ...(endpoint && { [accessVariables.endpoint]: endpoint }) };
    });
    this.hooks = (kind) => ({
      beforeCreate: [
        async ({ newInputs }) => {
          await clearOrphans(new HcloudApi(await value(access)), kind, newInputs);
        },
      ],
    });
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
        logging: "stderr",
      },
      child,
    ).stdout.apply((stdout) => stdout.trim());
    this.labels = stack.apply((id): Record<string, string> => ({
      [labels.fleet]: spec.fleet.slice(0, 63),
      [labels.stack]: id,
      [labels.expires]: spec.expires ?? "never",
    }));
    const named = stack.apply((id) => `nix-builder-fleet-${id.slice(0, 8)}`);
    const common = { name: named, labels: this.labels };
    this.sshKey = new SshKey(
      `${name}-admin`,
      {
        ...common,
        // Names are unique: a new key is there before the old one goes.
        name: pulumi.interpolate`${named}-${pulumi.output(args.adminPublicKey).apply(nameOfKey)}`,
        publicKey: args.adminPublicKey,
      },
      { ...child, hooks: this.hooks("ssh_keys") },
    );
    const sourceIps = spec.access?.allowedCidrs ?? [];
    this.firewall = new Firewall(
      `${name}-firewall`,
      {
        ...common,
        rules: [
          { direction: "in", protocol: "tcp", port: "22", sourceIps },
          { direction: "in", protocol: "icmp", sourceIps },
        ],
      },
      { ...child, hooks: this.hooks("firewalls") },
    );
    const { network, spread } = spec.hcloud;
    if (network !== undefined) {
      const { ipRange } = network;
      const own = new Network(`${name}-network`, { ...common, ipRange }, { ...child, hooks: this.hooks("networks") });
      this.subnet = new NetworkSubnet(
        `${name}-subnet`,
        { networkId: own.id.apply(Number), type: "cloud", networkZone: network.zone, ipRange },
        child,
      );
    }
    if (spread) {
      this.placementGroup = new PlacementGroup(
        `${name}-spread`,
        { ...common, type: "spread" },
        { ...child, hooks: this.hooks("placement_groups") },
      );
    }
    this.registerOutputs({});
  }
}

/** Arguments of an `HcloudMachine`. */
export interface HcloudMachineArgs extends MachineKeys {
  readonly spec: HcloudBuilderSpec;
  readonly fleet: FleetSpec;
  readonly project: HcloudProject;
}

/** A server that became a NixOS builder. Its keys and settings change over SSH; only its place and size replace it. */
export class HcloudMachine extends pulumi.ComponentResource implements Machine {
  readonly address: pulumi.Output<string>;
  readonly port = 22;
  readonly sshUser = builderUser;
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
    const ownLabels = project.labels.apply((common): Record<string, string> => ({
      ...common,
      [labels.builder]: spec.name,
    }));
    const wantedPlace = this.#place(name, args, ownLabels);
    const parameters = builderParameters(spec, fleet);
    const { subnet, placementGroup } = project;
    const server = new Server(
      name,
      {
        name: spec.alias,
        serverType: wantedPlace.serverType,
        location: wantedPlace.location,
        image: imageOf(spec, fleet, this),
        userData: pulumi.secret(
          pulumi
            .all([identity.privateKey, identity.publicKey, args.clientPublicKey, args.adminPublicKey])
            .apply(([hostPrivateKey, hostPublicKey, clientPublicKey, adminPublicKey]) =>
              cloudConfig({
                hostPrivateKey,
                hostPublicKey,
                clientPublicKey,
                adminPublicKey,
                parameters,
                builderNix,
                conversion:
                  spec.image.kind === "infect"
                    ? { ...fleet.hcloud.nixosInfect, nixosRelease: fleet.hcloud.nixosRelease }
                    : undefined,
              }),
            ),
        ),
        sshKeys: [project.sshKey.id],
        firewallIds: [project.firewall.id.apply(Number)],
        labels: ownLabels,
        publicNets: [{ ipv4Enabled: spec.ipv4, ipv6Enabled: spec.ipv6 }],
        ...(subnet && { networks: [{ networkId: subnet.networkId }] }),
        ...(placementGroup && { placementGroupId: placementGroup.id.apply(Number) }),
      },
      {
        ...child,
        // All three count at birth only; a change would replace the server for what is done over SSH.
        ignoreChanges: ["userData", "sshKeys", "image"],
        // Its name is unique, and clients shall see one builder, not two.
        deleteBeforeReplace: true,
        hooks: project.hooks("servers"),
        ...(subnet && { dependsOn: subnet }),
      },
    );
    const address = spec.ipv4
      ? server.ipv4Address
      : spec.ipv6
        ? server.ipv6Address
        : server.networks.apply((networks) => networks?.[0]?.ip ?? "");
    const wanted = pulumi
      .all([address, identity.publicKey, args.adminPrivateKey, args.adminPublicKey, args.clientPublicKey])
      .apply(([host, hostKey, adminPrivateKey, adminPublicKey, clientPublicKey]): Provisioning => {
        const files = moduleFiles(parameters, builderNix);
        return {
          alias: spec.alias,
          address: host,
          port: this.port,
          hostKey,
          adminPrivateKey,
          keyFiles: keyFiles({ clientPublicKey, adminPublicKey }),
          moduleFiles: files,
          applied: appliedMark(files),
          timeout: fleet.hcloud.bootTimeout,
        };
      });
    const run = scriptCommand("provision/main.ts");
    const provisioned = new command.Command(
      `${name}-nixos`,
      {
        ...commandDefaults,
        create: run,
        update: run,
        stdin: pulumi.secret(wanted.apply((text) => JSON.stringify(text))),
        // The key that opened it the last time brings in a new one.
        addPreviousOutputInEnv: true,
        triggers: [server.id],
        logging: "stderr",
      },
      { ...child, deletedWith: server, additionalSecretOutputs: ["stdout"] },
    );
    const whenProvisioned = (output: pulumi.Output<string>): pulumi.Output<string> =>
      pulumi.all([output, provisioned.id]).apply(([known]) => known);
    this.address = whenProvisioned(address);
    this.hostKey = identity.publicKey;
    this.generation = whenProvisioned(server.id);
    this.resource = server;
    this.placement = pulumi
      .all([server.serverType, server.location])
      .apply(([serverType, location]) => ({ serverType, location }));
    this.admin = {
      host: this.address,
      port: this.port,
      user: "root",
      privateKey: args.adminPrivateKey,
      hostKey: this.hostKey,
    };
    this.registerOutputs({ address: this.address, placement: this.placement });
  }

  /** With one candidate its place is known in previews; with several, Hetzner is asked once, and the answer stays in the state. */
  #place(
    name: string,
    { spec, fleet, project }: HcloudMachineArgs,
    ownLabels: pulumi.Output<Record<string, string>>,
  ): { readonly serverType: pulumi.Input<string>; readonly location: pulumi.Input<string> } {
    const [only, ...others] = spec.candidates;
    if (only !== undefined && others.length === 0) return only;
    const wanted = ownLabels.apply((all): Placement => {
      return { alias: spec.alias, candidates: spec.candidates, labels: all, image: fleet.hcloud.baseImage };
    });
    const keep = scriptCommand("hcloud/main.ts", "place");
    const placed = new command.Command(
      `${name}-placement`,
      {
        ...commandDefaults,
        create: keep,
        update: keep,
        stdin: wanted.apply((text) => JSON.stringify(text)),
        environment: project.environment,
        logging: "stderr",
      },
      { parent: this },
    ).stdout.apply((stdout) => JSON.parse(stdout) as Candidate);
    return { serverType: placed.serverType, location: placed.location };
  }
}

const builderNix = readFileSync(resolve(import.meta.dirname, "../../nixos/builder.nix"), "utf8");

function builderParameters(spec: HcloudBuilderSpec, fleet: FleetSpec): BuilderParameters {
  return {
    provider: "hcloud",
    maxJobs: spec.maxJobs ?? null,
    systemFeatures: [...new Set([...spec.supportedFeatures, ...spec.mandatoryFeatures])],
    keepDays: 14,
    automaticUpgrades: fleet.hcloud.automaticUpgrades,
  };
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

/** The start of a key's own text, fit for a name. */
function nameOfKey(publicKey: string): string {
  return (publicKey.split(" ")[1] ?? "").replaceAll(/[^A-Za-z0-9]/g, "").slice(-8);
}

function value<T>(output: pulumi.Output<T>): Promise<T> {
  return new Promise((done) => {
    output.apply(done);
  });
}
