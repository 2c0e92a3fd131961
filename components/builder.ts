/** A builder: a machine, measured from the inside where that is possible, as clients are told of it. */
import { resolve } from "node:path";
import * as remote from "@pulumi/command/remote/command.js";
import * as pulumi from "@pulumi/pulumi";
import { defaultsFor } from "../src/bootstrap/defaults.ts";
import {
  measureCommand,
  measurementLimits,
  measuredUsers,
  measureScript,
  parseMeasurement,
  type Measurement,
  type Peculiarities,
} from "../src/bootstrap/measure.ts";
import type { BuilderSpec } from "../src/fleetSpec.ts";
import { gateHost, gatePort, openGate, type Gate } from "../src/gate.ts";
import type { BuildMachine } from "../src/nix/buildMachine.ts";
import type { Trust } from "../src/nix/trust.ts";
import { toPublicHostKey } from "../src/ssh/hostKey.ts";
import type { Machine } from "./machines/machine.ts";

/**
 * Where `remote.Command` connects in place of the machine, which could otherwise send without end, or keep it waiting for ever.
 *
 * @param name Of the builder.
 */
function gateTo(name: string, admin: NonNullable<Machine["admin"]>): pulumi.Output<Gate> {
  const whole = `${resolve(import.meta.dirname, "..")} ${pulumi.getStack()} ${name}`;
  // The port is known though the machine isn't yet.
  const port = gatePort(whole);
  if (pulumi.runtime.isDryRun()) return pulumi.output({ port, close: () => undefined });
  return pulumi.all([admin.host, admin.port]).apply(([host, adminPort = 22]) =>
    openGate(whole, { host, port: adminPort }, measurementLimits, (reason) => {
      void pulumi.log.error(
        `builder '${name}' was cut off while it was measured: ${reason}. Look at that machine, or take it out of the fleet.`,
      );
    }),
  );
}

/** @throws pulumi.RunError where the machine printed something else: the program ends in that one message, without a stack trace. */
function readMeasurement(name: string, printed: string): Measurement {
  try {
    return parseMeasurement(printed);
  } catch (error) {
    throw new pulumi.RunError(`builder '${name}': ${error instanceof Error ? error.message : String(error)}`);
  }
}

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
  /** All levels that its clients have. */
  readonly levels: readonly Trust[];
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
  constructor(name: string, { spec, machine, trust, levels }: BuilderArgs, opts?: pulumi.CustomResourceOptions) {
    this.triggers = [JSON.stringify(spec), levels.join(" "), machine.generation, machine.hostKey];
    this.measurement =
      machine.admin === undefined
        ? pulumi.output(undefined)
        : this.#measure(name, { spec, machine, levels }, machine.admin, opts);
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

  #measure(
    name: string,
    { spec, machine, levels }: Omit<BuilderArgs, "trust">,
    admin: NonNullable<Machine["admin"]>,
    opts: pulumi.CustomResourceOptions | undefined,
  ): pulumi.Output<Measurement> {
    const features = [...spec.supportedFeatures, ...spec.mandatoryFeatures];
    const gate = gateTo(name, admin);
    const { stdout } = new remote.Command(
      `${name}-measurement`,
      {
        connection: { ...admin, host: gateHost, port: gate.apply(({ port }) => port) },
        create: measureCommand,
        stdin: pulumi
          .output(machine.sshUsers)
          .apply((sshUsers) =>
            measureScript(
              { name, system: spec.system, features, users: measuredUsers(sshUsers, levels) },
              machine.peculiarities,
            ),
          ),
        triggers: [...this.triggers],
        addPreviousOutputInEnv: false,
        logging: "none",
      },
      // pulumi.secret(connection) would make what is printed a secret too; it holds none.
      { ...opts, ...(machine.resource && { deletedWith: machine.resource }) },
    );
    return pulumi.all([stdout, gate]).apply(([printed, { close }]) => {
      close();
      return readMeasurement(name, printed);
    });
  }
}
