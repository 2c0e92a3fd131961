/** What cloud machines of every provider have in common once they exist: they become, and stay, what nixos/builder.nix says. */
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import * as command from "@pulumi/command/local/command.js";
import * as pulumi from "@pulumi/pulumi";
import {
  appliedMark,
  keyFiles,
  moduleFiles,
  signingFiles,
  type BuilderParameters,
} from "../src/bootstrap/builderFiles.ts";
import type { AwsBuilderSpec, FleetSpec, HcloudBuilderSpec } from "../src/fleetSpec.ts";
import { rootClientsOf } from "../src/nix/trust.ts";
import type { Provisioning } from "../src/provision/provision.ts";
import { commandDefaults, scriptCommand } from "./checkout.ts";
import type { Machine, MachineKeys } from "./machines/machine.ts";
import type { SshIdentity } from "./sshIdentity.ts";

/** The module that every builder runs. */
export const builderNix = readFileSync(resolve(import.meta.dirname, "../nixos/builder.nix"), "utf8");

/** What a server at Hetzner boots by. */
export const hcloudNix = readFileSync(resolve(import.meta.dirname, "../nixos/hcloud.nix"), "utf8");

/** The parameters of nixos/builder.nix for a builder in a cloud. */
export function builderParameters(
  spec: HcloudBuilderSpec | AwsBuilderSpec,
  fleet: Pick<FleetSpec, "trust" | "clients">,
  { automaticUpgrades }: { readonly automaticUpgrades: boolean },
): BuilderParameters {
  return {
    provider: spec.provider,
    maxJobs: spec.maxJobs ?? null,
    timeout: spec.timeout,
    maxSilentTime: spec.maxSilentTime,
    trustedClients: rootClientsOf(fleet).length > 0,
    systemFeatures: [...new Set([...spec.supportedFeatures, ...spec.mandatoryFeatures])],
    keepDays: 14,
    automaticUpgrades,
  };
}

/** What `provisionNixos` needs to know of a machine. */
export interface NixosArgs
  extends
    Pick<MachineKeys, "adminPrivateKey" | "adminPublicKey" | "clients" | "trustedPublicKeys" | "signingKey">,
    Pick<Provisioning, "alias" | "port" | "timeout" | "timeoutKey"> {
  /** What the machine lives in; another one is provisioned anew. */
  readonly resource: pulumi.CustomResource;
  /** Where it is reached as soon as it exists. */
  readonly address: pulumi.Input<string>;
  readonly identity: SshIdentity;
  readonly parameters: BuilderParameters;
  /** For a script that talks to the provider's API. */
  readonly environment?: pulumi.Input<Record<string, string>>;
  /** The stack's folder on this machine. */
  readonly stackDirectory: pulumi.Input<string>;
  /** As in `Provisioning`. */
  readonly ec2Instance?: pulumi.Input<string>;
}

/** The part of `Machine` that holds once NixOS answers. */
export type NixosMachine = Required<Pick<Machine, "admin">> & {
  readonly [Field in "address" | "generation"]: pulumi.Output<string>;
};

/**
 * Waits until the machine is a NixOS builder; changed keys and settings are brought in over SSH.
 *
 * @param parent The machine's component.
 */
export function provisionNixos(name: string, args: NixosArgs, parent: pulumi.Resource): NixosMachine {
  const { alias, port, timeout, timeoutKey, parameters, resource, identity, environment } = args;
  const wanted = pulumi
    .output({
      address: args.address,
      hostKey: identity.publicKey,
      adminPrivateKey: args.adminPrivateKey,
      stackDirectory: args.stackDirectory,
      adminPublicKey: args.adminPublicKey,
      clients: args.clients,
      trustedPublicKeys: args.trustedPublicKeys,
      signingKey: args.signingKey,
      ec2Instance: args.ec2Instance,
    })
    .apply(({ adminPublicKey, clients, trustedPublicKeys, signingKey, ec2Instance, ...known }): Provisioning => {
      const files = moduleFiles(parameters, builderNix, parameters.provider === "hcloud" ? hcloudNix : undefined);
      return {
        ...known,
        alias,
        port,
        keyFiles: keyFiles({ clients, adminPublicKey }),
        signingFiles: signingFiles({ trustedPublicKeys, signingKey }),
        moduleFiles: files,
        applied: appliedMark(files),
        timeout,
        timeoutKey,
        ...(ec2Instance !== undefined && { ec2Instance }),
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
      ...(environment && { environment }),
      // The key that opened it the last time brings in a new one.
      addPreviousOutputInEnv: true,
      triggers: [resource.id],
    },
    { parent, deletedWith: resource, additionalSecretOutputs: ["stdout"] },
  );
  const whenProvisioned = (value: pulumi.Input<string>): pulumi.Output<string> =>
    pulumi.all([value, provisioned.id]).apply(([known]) => known);
  const address = whenProvisioned(args.address);
  return {
    address,
    generation: whenProvisioned(resource.id),
    admin: { host: address, port, user: "root", privateKey: args.adminPrivateKey, hostKey: identity.publicKey },
  };
}
