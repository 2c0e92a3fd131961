/** A builder: a machine, measured from the inside where that is possible, as clients are told of it. */
import * as remote from "@pulumi/command/remote/command.js";
import * as pulumi from "@pulumi/pulumi";
import { defaultsFor } from "../src/bootstrap/defaults.ts";
import {
  measureCommand,
  measureScript,
  parseMeasurement,
  type Measurement,
  type Peculiarities,
} from "../src/bootstrap/measure.ts";
import type { BuilderSpec } from "../src/fleetSpec.ts";
import type { BuildMachine } from "../src/nix/buildMachine.ts";
import type { Trust } from "../src/nix/trust.ts";
import { toPublicHostKey } from "../src/ssh/hostKey.ts";
import type { Machine } from "./machines/machine.ts";

/** How an administrator gets to a builder. */
export interface Administration {
  readonly user: string;
  readonly peculiarities: Peculiarities;
}

/** Arguments of a `Builder`. */
export interface BuilderArgs {
  readonly spec: BuilderSpec;
  readonly machine: Machine;
  /** Level of the client whose key everybody can have. */
  readonly trust: Trust;
}

/** What Nix sees of a machine: plain values, and one resource where there is something to measure. */
export class Builder {
  /** The entry of `nix.buildMachines`. */
  readonly buildMachine: pulumi.Output<BuildMachine>;
  /** What the machine says of itself; `undefined` where the fleet has no administrative connection. */
  readonly measurement: pulumi.Output<Measurement | undefined>;
  /** How its administrator gets to it, without the key; `undefined` where the fleet has no administrative connection. */
  readonly administration: pulumi.Output<Administration | undefined>;
  /** Values on whose change everything proven of the builder is proven again. */
  readonly triggers: readonly pulumi.Input<string>[];

  /** @param opts Of the measurement. */
  constructor(name: string, { spec, machine, trust }: BuilderArgs, opts?: pulumi.CustomResourceOptions) {
    this.triggers = [JSON.stringify(spec), machine.generation, machine.hostKey];
    const features = [...spec.supportedFeatures, ...spec.mandatoryFeatures];
    this.measurement =
      machine.admin === undefined
        ? pulumi.output(undefined)
        : new remote.Command(
            `${name}-measurement`,
            {
              connection: machine.admin,
              create: measureCommand,
              stdin: pulumi
                .output(machine.sshUsers)
                .apply((sshUsers) =>
                  measureScript(
                    { name, system: spec.system, features, sshUser: sshUsers[trust] },
                    machine.peculiarities,
                  ),
                ),
              triggers: [...this.triggers],
              addPreviousOutputInEnv: false,
              logging: "none",
            },
            // pulumi.secret(connection) would make what is printed a secret too; it holds none.
            { ...opts, ...(machine.resource && { deletedWith: machine.resource }) },
          ).stdout.apply(parseMeasurement);
    this.administration = pulumi
      .output(machine.admin?.user)
      .apply((user) => (user === undefined ? undefined : { user, peculiarities: machine.peculiarities ?? {} }));
    this.buildMachine = pulumi
      .all([machine.address, machine.port, machine.sshUsers, machine.hostKey, this.measurement])
      .apply(([hostName, port, sshUsers, hostKey, measurement]): BuildMachine => {
        const defaults = measurement && defaultsFor(measurement, machine.peculiarities?.emulated);
        return {
          alias: spec.alias,
          hostName,
          port,
          protocol: spec.protocol,
          systems: [spec.system],
          sshUser: sshUsers[trust],
          ...(spec.provider !== "existing" && { trust, sshUsers }),
          maxJobs: spec.maxJobs ?? defaults?.maxJobs ?? 1,
          speedFactor: spec.speedFactor ?? defaults?.speedFactor ?? 1,
          supportedFeatures: spec.supportedFeatures,
          mandatoryFeatures: spec.mandatoryFeatures,
          publicHostKey: toPublicHostKey(hostKey),
          ...(spec.provider === "existing" && spec.sshKey !== undefined && { sshKey: spec.sshKey }),
        };
      });
  }
}
