/** The Pulumi program: configuration → fleet → stack outputs. */
import { resolve } from "node:path";
import * as pulumi from "@pulumi/pulumi";
import { BuilderFleet } from "../components/builderFleet.ts";
import { readFleetSpec } from "./config.ts";
import { ConfigurationError } from "./fleetSpec.ts";
import { planLocalBuilders } from "./local/plan.ts";
import { MissingTool } from "./local/tools.ts";
import { clientFiles, clientKeyName } from "./nix/clientFiles.ts";
import { renderNixosModule } from "./nix/nixosModule.ts";

// A killed engine leaves the program behind, and the SDK (3.270) reports its failure to report to the engine for ever, at full
// load. Status 14 is gRPC's UNAVAILABLE: nobody is left to report to.
process.on("unhandledRejection", (reason) => {
  if (typeof reason === "object" && reason !== null && "code" in reason && reason.code === 14) process.exit(1);
});

const directory = resolve(import.meta.dirname, `../.fleet/stacks/${pulumi.getStack()}`);
const { spec, leftOut, emulated } = await plan();
for (const sentence of leftOut) await pulumi.log.warn(sentence);

const fleet = new BuilderFleet(spec.fleet, { spec, emulated, directory });
const files = fleet.buildMachines.apply((all) => clientFiles(all, { directory: spec.clientDirectory }));

/** The model that everything else is rendered from: BuildMachine[], no secrets. */
export const builders = fleet.buildMachines;
/** A NixOS module to import as it is. */
export const nixosModule = fleet.buildMachines.apply((all) =>
  renderNixosModule(all, { sshKey: `${spec.clientDirectory}/${clientKeyName}` }),
);
/** `/etc/nix/machines`, for clients that keep the files in `clientDirectory`. */
export const machines = files.apply((all) => all.machines);
/** `nix.conf`. */
export const nixConf = files.apply((all) => all["nix.conf"]);
/** `ssh_config`. */
export const sshConfig = files.apply((all) => all.ssh_config);
/** `known_hosts`. */
export const knownHosts = files.apply((all) => all.known_hosts);
/** Builder name → what its smoke test found. */
export const verification = fleet.verification;
/** What a host must accept to be a builder for this fleet's clients. */
export const clientPublicKey = fleet.clientIdentity.publicKey;
/** The key that opens the builders to clients. A secret. */
export const clientPrivateKey = fleet.clientIdentity.privateKey;
/** The key that opens root on the builders. A secret. */
export const adminPrivateKey = fleet.adminIdentity.privateKey;

/** Reads the configuration and looks at this machine; what is wrong with them ends the program in one message, without a stack trace. */
async function plan() {
  try {
    return await planLocalBuilders(readFleetSpec(directory), directory);
  } catch (error) {
    if (error instanceof ConfigurationError || error instanceof MissingTool) throw new pulumi.RunError(error.message);
    throw error;
  }
}
