/** Provider `existing`: a host that the person has already. Nothing is installed on it, and nothing of it is ever removed. */
import * as pulumi from "@pulumi/pulumi";
import type { ExistingBuilderSpec } from "../../src/fleetSpec.ts";
import type { SshUsers } from "../../src/nix/buildMachine.ts";
import type { Machine } from "./machine.ts";

/** Arguments of an `ExistingMachine`. */
export interface ExistingMachineArgs {
  /** The builder that the host is. */
  readonly spec: ExistingBuilderSpec;
}

/** A host that is a Nix builder already: it is looked at through the client's key only. */
export class ExistingMachine extends pulumi.ComponentResource implements Machine {
  readonly address: string;
  readonly port: number;
  readonly sshUsers: SshUsers;
  readonly hostKey: string;
  readonly generation: string;

  constructor(name: string, { spec }: ExistingMachineArgs, opts?: pulumi.ComponentResourceOptions) {
    super("nix-builder-fleet:index:ExistingMachine", name, {}, opts);
    this.address = spec.address;
    this.port = spec.port;
    this.sshUsers = { none: spec.user, signed: spec.user, full: spec.user };
    this.hostKey = spec.hostKey;
    this.generation = [spec.address, spec.port, spec.user, spec.hostKey].join(" ");
    this.registerOutputs({ address: this.address, port: this.port });
  }
}
