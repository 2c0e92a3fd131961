/** A fleet: keys, machines, builders, the emitted client files, and a smoke test for each builder. */
import * as pulumi from "@pulumi/pulumi";
import { hostNamePart, type BuilderSpec, type FleetSpec } from "../src/fleetSpec.ts";
import { emulationOwner } from "../src/local/plan.ts";
import type { Measurement } from "../src/bootstrap/measure.ts";
import { checkBuildMachines, type BuildMachine, type SshUsers } from "../src/nix/buildMachine.ts";
import type { System } from "../src/nix/system.ts";
import type { Verdict } from "../src/smoke/verdict.ts";
import { Builder, type Administration } from "./builder.ts";
import { ClientDirectory } from "./clientDirectory.ts";
import { ExistingMachine } from "./machines/existing.ts";
import type { AwsAccess } from "../src/aws/access.ts";
import type { AwsLookup } from "../src/aws/lookup.ts";
import { LocalEmulation, LocalMachine } from "./machines/local.ts";
import type * as Aws from "./machines/aws.ts";
import type * as Hcloud from "./machines/hcloud.ts";
import type { Machine, MachineKeys } from "./machines/machine.ts";
import { rendering } from "./rendering.ts";
import { SmokeTest } from "./smokeTest.ts";
import { SigningIdentity } from "./signingIdentity.ts";
import { SshIdentity } from "./sshIdentity.ts";
import { Workspace } from "./workspace.ts";

/** Arguments of a `BuilderFleet`. */
export interface BuilderFleetArgs {
  /** Plain data that alone decides what exists. */
  readonly spec: FleetSpec;
  /** Systems whose emulation the fleet registers on this machine for its local builders. */
  readonly emulated: readonly System[];
  /** Present where the fleet has builders at Hetzner: only then their plugin's package is loaded. */
  readonly hcloud?: { readonly machines: typeof Hcloud };
  /** Present where the fleet has builders at AWS, for the same reason. */
  readonly aws?: {
    readonly machines: typeof Aws;
    readonly access: AwsAccess;
    readonly lookup: AwsLookup;
  };
  /** Folder on this machine for what belongs to the stack. Absolute. */
  readonly directory: string;
}

/** All builders of one stack, verified. */
export class BuilderFleet extends pulumi.ComponentResource {
  /** The builders as clients are told of them, in the order of the configuration; those of services come last. */
  readonly buildMachines: pulumi.Output<BuildMachine[]>;
  /** Alias → user to log in as, by level; nothing for hosts that decide for themselves. */
  readonly sshUsers: pulumi.Output<Record<string, SshUsers>>;
  /** Builder name → verdict of its smoke test. */
  readonly verification: pulumi.Output<Record<string, Verdict>>;
  /** Builder name → what was found on the machine; nothing for a machine that isn't the fleet's to administer. */
  readonly measurement: pulumi.Output<Record<string, Measurement>>;
  /** Builder name → how its administrator gets to it; nothing for a machine that isn't the fleet's to administer. */
  readonly administration: pulumi.Output<Record<string, Administration>>;
  /** Builder name → what a cloud was chosen to make of its candidates, in the cloud's own terms. */
  readonly placements: pulumi.Output<Record<string, object>>;
  /** Key pair of the clients. */
  readonly clientIdentity: SshIdentity;
  /** Client name → OpenSSH private key, for clients whose key pair was made here. A secret. */
  readonly clientPrivateKeys: pulumi.Output<Record<string, string>>;
  /** Nix secret key of the client whose key everybody can have; `undefined` unless it is at `signed`. A secret. */
  readonly clientSigningKey: pulumi.Output<string> | undefined;
  /** Client name → Nix secret key, for other clients at `signed`. A secret. */
  readonly clientSigningKeys: pulumi.Output<Record<string, string>>;
  /** Key pair for administration. */
  readonly adminIdentity: SshIdentity;

  constructor(name: string, args: BuilderFleetArgs, opts?: pulumi.ComponentResourceOptions) {
    super("nix-builder-fleet:index:BuilderFleet", name, {}, opts);
    const { spec, directory } = args;
    const child = { parent: this };
    this.clientIdentity = new SshIdentity("client", child);
    this.adminIdentity = new SshIdentity("admin", child);
    const identities = new Map(
      spec.clients
        .filter(({ publicKey }) => publicKey === undefined)
        .map(({ name: client }) => [client, new SshIdentity(`client-${client}`, child)]),
    );
    const identityOf = (client: string): SshIdentity => {
      const identity = identities.get(client);
      if (identity === undefined) throw new pulumi.ResourceError(`client ${client} has no key`, this);
      return identity;
    };
    this.clientPrivateKeys = pulumi.all(
      Object.fromEntries([...identities].map(([client, { privateKey }]) => [client, privateKey])),
    );
    const signer = (whose: string) =>
      new SigningIdentity(`${whose}-signing`, `${hostNamePart(spec.fleet)}-${whose}`, child);
    // One for all builders: each takes what any of them has built, so keys of their own would keep nothing apart.
    const builderSigning = signer("builders");
    const ownSigning = spec.trust === "signed" ? signer("client") : undefined;
    const signing = spec.clients
      .filter(({ trust }) => trust === "signed")
      .map(({ name: client }) => [client, signer(`client-${client}`)] as const);
    this.clientSigningKey = ownSigning?.secretKey;
    this.clientSigningKeys = pulumi.all(
      Object.fromEntries(signing.map(([client, { secretKey }]) => [client, secretKey])),
    );
    const keys: MachineKeys = {
      clients: pulumi.all([
        { publicKey: this.clientIdentity.publicKey, trust: spec.trust },
        ...spec.clients.map(({ name: client, publicKey, trust }) => {
          return { publicKey: publicKey ?? identityOf(client).publicKey, trust };
        }),
      ]),
      trustedPublicKeys: pulumi.all([
        builderSigning.publicKey,
        ...spec.caches.map(({ publicKey }) => publicKey),
        ...(ownSigning === undefined ? [] : [ownSigning.publicKey]),
        ...signing.map(([, { publicKey }]) => publicKey),
      ]),
      signingKey: builderSigning.secretKey,
      adminPublicKey: this.adminIdentity.publicKey,
      adminPrivateKey: this.adminIdentity.privateKey,
    };
    const owner = emulationOwner(spec.fleet, directory);
    const workspace = new Workspace("workspace", { directory, owner }, child);
    const onThisMachine = { ...child, dependsOn: workspace };
    const emulations = new Map(
      args.emulated.map((system) => [
        system,
        new LocalEmulation(`emulation-${system}`, { owner, system, directory }, onThisMachine),
      ]),
    );
    const hcloud = args.hcloud && {
      ...args.hcloud,
      project: new args.hcloud.machines.HcloudProject("hcloud", { spec, adminPublicKey: keys.adminPublicKey }, child),
    };
    const aws = args.aws && {
      ...args.aws,
      account: new args.aws.machines.AwsAccount(
        "aws",
        { spec, access: args.aws.access, lookup: args.aws.lookup, adminPublicKey: keys.adminPublicKey },
        child,
      ),
    };
    const inCloud = { ...keys, fleet: spec, stackDirectory: workspace.directory };
    const machineFor = (builder: BuilderSpec): Machine => {
      switch (builder.provider) {
        case "local": {
          const emulation = emulations.get(builder.system);
          return new LocalMachine(builder.name, { ...keys, spec: builder, directory, emulation }, onThisMachine);
        }
        case "existing":
          return new ExistingMachine(builder.name, { spec: builder }, child);
        case "hcloud": {
          if (hcloud === undefined) throw new Error("the provider hcloud was not loaded");
          const { project, machines } = hcloud;
          return new machines.HcloudMachine(builder.name, { ...inCloud, spec: builder, project }, child);
        }
        case "aws": {
          if (aws === undefined) throw new Error("the provider aws was not loaded");
          const { account, machines } = aws;
          return new machines.AwsMachine(builder.name, { ...inCloud, spec: builder, account }, child);
        }
      }
    };
    const levels = [...new Set(["none" as const, spec.trust, ...spec.clients.map(({ trust }) => trust)])].toSorted();
    const placements: [name: string, placement: pulumi.Input<object>][] = [];
    const builders = spec.builders.map((builder) => {
      const machine = machineFor(builder);
      if (machine.placement !== undefined) placements.push([builder.name, machine.placement]);
      return {
        spec: builder,
        builder: new Builder(builder.name, { spec: builder, machine, trust: spec.trust, levels }, child),
      };
    });
    this.placements = pulumi.output(Object.fromEntries(placements));
    hcloud?.project.deleteOrphans();
    aws?.account.deleteOrphans();
    // In their one form, in which nixos/client.nix takes them from the stack's output.
    this.buildMachines = pulumi
      .all([...builders.map(({ builder }) => builder.buildMachine), ...spec.serviceBuilders])
      .apply((all) => rendering(() => checkBuildMachines(all)));
    this.sshUsers = pulumi
      .all(builders.map(({ builder }) => builder.buildMachine))
      .apply((all) =>
        Object.fromEntries(all.flatMap(({ alias, sshUsers }) => (sshUsers === undefined ? [] : [[alias, sshUsers]]))),
      );
    const byName = <T>(of: (builder: Builder) => pulumi.Output<T | undefined>): pulumi.Output<Record<string, T>> =>
      pulumi
        .all(builders.map(({ spec: { name }, builder }) => of(builder).apply((value) => ({ name, value }))))
        .apply((all) =>
          Object.fromEntries(all.flatMap(({ name, value }) => (value === undefined ? [] : [[name, value as T]]))),
        );
    this.measurement = byName(({ measurement }) => measurement);
    this.administration = byName(({ administration }) => administration);
    const client = new ClientDirectory(
      "client-files",
      {
        directory: `${directory}/client`,
        machines: this.buildMachines,
        maxSessions: spec.maxSessions,
        caches: spec.caches,
        privateKey: this.clientIdentity.privateKey,
        signingKey: this.clientSigningKey,
      },
      onThisMachine,
    );
    const verdictOf = ({ spec: builderSpec, builder }: (typeof builders)[number]): pulumi.Output<Verdict> => {
      const { alias, name: builderName } = builderSpec;
      const { smoke: level, smokeTimeout: timeout } = spec;
      if (level === "off") return pulumi.output({ verified: false, alias, level, seconds: 0, cases: [] });
      const smokeTest = new SmokeTest(
        `${builderName}-smoke-test`,
        {
          spec: builderSpec,
          clientDirectory: client.directory,
          trust: spec.trust,
          measurement: builder.measurement,
          level,
          timeout,
          triggers: [...builder.triggers, spec.trust, this.clientIdentity.publicKey],
        },
        child,
      );
      return smokeTest.verdict;
    };
    this.verification = pulumi.output(
      Object.fromEntries(builders.map((builder) => [builder.spec.name, verdictOf(builder)])),
    );
    this.registerOutputs({ buildMachines: this.buildMachines, verification: this.verification });
  }
}
