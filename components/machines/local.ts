/** Provider `local`: builders on this very machine, each with an sshd, a host key and a Nix store of its own. */
import { userInfo } from "node:os";
import * as command from "@pulumi/command/local/command.js";
import * as pulumi from "@pulumi/pulumi";
import type { LocalBuilderSpec } from "../../src/fleetSpec.ts";
import { generationVariable } from "../../src/local/generation.ts";
import { machineDirectory, machineGeneration } from "../../src/local/plan.ts";
import type { LocalMachine as Description } from "../../src/local/spec.ts";
import { findLocalTools } from "../../src/local/tools.ts";
import type { Peculiarities } from "../../src/bootstrap/measure.ts";
import type { SshUsers } from "../../src/nix/buildMachine.ts";
import { systemOfThisMachine, type System } from "../../src/nix/system.ts";
import { commandDefaults, scriptCommand } from "../checkout.ts";
import { SshIdentity } from "../sshIdentity.ts";
import type { Machine, MachineKeys } from "./machine.ts";

/** Arguments of a `LocalEmulation`. */
export interface LocalEmulationArgs {
  /** Whose registration it is, see `emulationOwner`: two fleets don't share one. */
  readonly owner: string;
  /** Foreign system whose programs are to run here. */
  readonly system: System;
  /** Folder of the stack that needs it. */
  readonly directory: string;
}

/** Programs of another architecture run on this machine while it exists: a binfmt_misc registration for qemu-user. */
export class LocalEmulation extends pulumi.ComponentResource {
  /** Whose registration it is. */
  readonly owner: string;

  constructor(name: string, args: LocalEmulationArgs, opts?: pulumi.ComponentResourceOptions) {
    super("nix-builder-fleet:index:LocalEmulation", name, {}, opts);
    this.owner = args.owner;
    new command.Command(
      name,
      {
        ...commandDefaults,
        create: scriptCommand("local/main.ts", "register-emulation", args.owner, args.system),
        delete: scriptCommand("local/main.ts", "unregister-emulation", args.owner, args.system, args.directory),
      },
      { parent: this },
    );
    this.registerOutputs({});
  }
}

/** Arguments of a `LocalMachine`. */
export interface LocalMachineArgs extends MachineKeys {
  /** The builder that the machine is for. */
  readonly spec: LocalBuilderSpec;
  /** Folder of the stack's local builders. */
  readonly directory: string;
  /** The emulation that it depends on; `undefined`: it needs none of the fleet's. */
  readonly emulation: LocalEmulation | undefined;
}

/** An sshd on a loopback address in front of a Nix store below the checkout. Found dead, it is started again with all it had. */
export class LocalMachine extends pulumi.ComponentResource implements Machine {
  readonly address: pulumi.Output<string>;
  readonly port: pulumi.Output<number>;
  readonly sshUsers: pulumi.Output<SshUsers>;
  readonly hostKey: pulumi.Output<string>;
  readonly admin: NonNullable<Machine["admin"]>;
  readonly peculiarities: Peculiarities;
  readonly resource: pulumi.Resource;
  readonly generation: pulumi.Output<string>;

  constructor(name: string, args: LocalMachineArgs, opts?: pulumi.ComponentResourceOptions) {
    super("nix-builder-fleet:index:LocalMachine", name, {}, opts);
    const { spec } = args;
    const directory = machineDirectory(args.directory, spec.name);
    const generation = machineGeneration(
      directory,
      args.emulation && { owner: args.emulation.owner, system: spec.system },
    );
    const identity = new SshIdentity(`${name}-host-key`, { parent: this });
    const description = pulumi
      .all([identity.privateKey, args.clients, args.trustedPublicKeys, args.signingKey, args.adminPublicKey])
      .apply(([hostPrivateKey, clients, trustedPublicKeys, signingKey, adminPublicKey]): Description => {
        return {
          directory,
          address: spec.address,
          port: spec.port,
          system: spec.system,
          timeout: spec.timeout,
          maxSilentTime: spec.maxSilentTime,
          features: [...spec.supportedFeatures, ...spec.mandatoryFeatures],
          hostPrivateKey,
          clients,
          trustedPublicKeys,
          signingKey,
          adminPublicKey,
          ...(spec.maxJobs !== undefined && { maxJobs: spec.maxJobs }),
          ...(args.emulation && { emulatedFor: args.emulation.owner }),
        };
      });
    const start = scriptCommand("local/main.ts", "start");
    const sshd = new command.Command(
      name,
      {
        ...commandDefaults,
        create: start,
        update: start,
        delete: scriptCommand("local/main.ts", "remove", directory),
        stdin: pulumi.secret(description.apply((value) => JSON.stringify(value))),
        environment: { [generationVariable]: generation },
      },
      { parent: this, ...(args.emulation && { dependsOn: args.emulation }) },
    );
    // Whoever needs the machine waits until it listens.
    const whenStarted = <T>(value: T): pulumi.Output<T> => sshd.id.apply(() => value);
    const user = userInfo().username;
    this.address = whenStarted(spec.address);
    this.port = whenStarted(spec.port);
    this.sshUsers = whenStarted({ none: user, signed: user, full: user });
    this.hostKey = identity.publicKey;
    this.generation = pulumi.output(generation);
    this.peculiarities = {
      // A login's PATH need not have it, for instance of a Nix in ~/.nix-profile.
      path: findLocalTools(spec.system).nix,
      emulated: spec.system !== systemOfThisMachine(),
      nixConfDir: `${directory}/conf`,
      ownStore: `${directory}/root`,
      sshdConfig: `${directory}/sshd_config`,
    };
    this.resource = sshd;
    this.admin = {
      host: this.address,
      port: this.port,
      user,
      privateKey: args.adminPrivateKey,
      hostKey: this.hostKey,
    };
    this.registerOutputs({ address: this.address, port: this.port });
  }
}
