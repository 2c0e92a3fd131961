/** The Pulumi program: configuration → fleet → stack outputs. */
import { resolve } from "node:path";
import { type Client, connectivityState } from "@grpc/grpc-js";
import * as pulumi from "@pulumi/pulumi";
import { BuilderFleet } from "../components/builderFleet.ts";
import { rendering } from "../components/rendering.ts";
import { readAwsAccess, readFleetSpec, requireHcloudAccess } from "./config.ts";
import { ConfigurationError, type FleetSpec } from "./fleetSpec.ts";
import { planLocalBuilders } from "./local/plan.ts";
import { refuseWithoutRoom } from "./local/room.ts";
import { installedNixVersion, MissingTool } from "./local/tools.ts";
import { formOptions, forms, type FormName } from "./nix/forms.ts";
import { NotExpressible } from "./nix/invalidValue.ts";
import { stackNameProblem } from "./stackName.ts";
import { describeRootClients, rootClientsOf } from "./nix/trust.ts";

// The SDK takes a stack trace for every resource and has each frame looked up in source maps: a third of the program's time.
// Node's type stripping keeps lines and columns, so V8's own traces are right without.
Reflect.deleteProperty(Error, "prepareStackTrace");

// A killed engine leaves the program behind, and the SDK (3.270) reports its failure to report to the engine for ever, at full
// load. Status 14 is gRPC's UNAVAILABLE: nobody is left to report to.
process.on("unhandledRejection", (reason) => {
  if (typeof reason === "object" && reason !== null && "code" in reason && reason.code === 14) process.exit(1);
});

watchEngine();

// The SDK tells the engine what became of each resource as a debug message, with secrets in clear; the engine shows that with `--debug`,
// and writes it to its logs and to what `--json` prints.
Object.assign(pulumi.log, { debug: () => Promise.resolve() });

const badName = stackNameProblem(pulumi.getStack());
if (badName !== undefined) throw new pulumi.RunError(badName);
const directory = resolve(import.meta.dirname, `../.fleet/stacks/${pulumi.getStack()}`);
const { spec, leftOut, doWithout, emulated, hcloud, aws } = await plan();
for (const sentence of [...leftOut, ...(doWithout === undefined ? [] : [doWithout])]) await pulumi.log.warn(sentence);
// No warning: it is as configured, and a deployment without any need not be made again by `npm start`, which says the same by its table.
for (const sentence of openness(spec)) await pulumi.log.info(sentence);

const fleet = new BuilderFleet(spec.fleet, {
  spec,
  emulated,
  directory,
  ...(hcloud && { hcloud }),
  ...(aws && { aws }),
});
const options = formOptions({ ...spec, directory: spec.clientDirectory });

/** The model that everything else is rendered from: BuildMachine[], no secrets. */
export const builders = fleet.buildMachines;
/** Alias → user to log in as, by level: `builders` has that of the client whose key everybody can have. */
export const sshUsers = fleet.sshUsers;
/** A NixOS module to import as it is. */
export const nixosModule = rendered("nixosModule");
/** The same for nix-darwin. */
export const darwinModule = rendered("darwinModule");
/** What home-manager can do of it. */
export const homeManagerModule = rendered("homeManagerModule");
/** `/etc/nix/machines`, for clients that keep the files in `clientDirectory`. */
export const machines = rendered("machines");
/** `nix.conf`. */
export const nixConf = rendered("nixConf");
/** `ssh_config`. */
export const sshConfig = rendered("sshConfig");
/** `known_hosts`. */
export const knownHosts = rendered("knownHosts");
/** A reusable GitHub Actions workflow; one line that says why not for a fleet that no runner reaches, such as one on this machine. */
export const githubWorkflow = rendered("githubWorkflow");
/** What `npx fleet client` needs beside the builders to render each form for each client. */
export const clientSettings = { ...options, trust: spec.trust, clients: spec.clients };
/** Builder name → what was chosen of its candidates, in the cloud's own terms; only of builders in a cloud. */
export const placements = fleet.placements;
/** Builder name → what its smoke test found. */
export const verification = fleet.verification;
/** Builder name → what was measured on it. */
export const measurement = fleet.measurement;
/** Builder name → user and peculiarities for its administrator, who also needs `adminPrivateKey`. */
export const administration = fleet.administration;
/** What a host must accept to be a builder for this fleet's clients. */
export const clientPublicKey = fleet.clientIdentity.publicKey;
/** The key that opens the builders to clients. A secret. */
export const clientPrivateKey = fleet.clientIdentity.privateKey;
/** Client name → private key, for `clients` whose key pair was made here. A secret. */
export const clientPrivateKeys = pulumi.secret(fleet.clientPrivateKeys);
/** The key with which the same client signs what it builds; empty but at the level `signed`. A secret. */
export const clientSigningKey = fleet.clientSigningKey ?? pulumi.secret("");
/** Client name → the same, for `clients` at `signed`. A secret. */
export const clientSigningKeys = pulumi.secret(fleet.clientSigningKeys);
/** The key that opens root on the builders. A secret. */
export const adminPrivateKey = fleet.adminIdentity.privateKey;

/** Said at every deployment that has clients at `full`. */
function openness(spec: FleetSpec): string[] {
  const rootClients = rootClientsOf(spec);
  if (rootClients.length === 0 || spec.builders.every(({ provider }) => provider === "existing")) return [];
  return [describeRootClients(rootClients)];
}

function rendered(form: FormName): pulumi.Output<string> {
  return fleet.buildMachines.apply((all) => {
    try {
      return rendering(() => forms[form].render(all, options));
    } catch (error) {
      // Not every fleet can be said in every form; that is no reason not to deploy it.
      if (error instanceof NotExpressible) return `# ${error.message}\n`;
      throw error;
    }
  });
}

/** Ends the program as soon as nobody listens at the engine's address any more, whatever it is waiting for. */
function watchEngine(): void {
  const engine = pulumi.runtime.getEngine() as Client | undefined;
  const channel = engine?.getChannel();
  if (channel === undefined) return;
  const watch = (): void => {
    const state = channel.getConnectivityState(false);
    if (state === connectivityState.SHUTDOWN) return; // The program has ended by itself.
    if (state === connectivityState.TRANSIENT_FAILURE) process.exit(1);
    // A connection that was lost is tried again only if somebody wants to know.
    if (state === connectivityState.IDLE) channel.getConnectivityState(true);
    channel.watchConnectivityState(state, Infinity, watch);
  };
  watch();
}

/** Reads the configuration and looks at this machine; what is wrong with them ends the program in one message, without a stack trace. */
async function plan() {
  try {
    const local = await planLocalBuilders(readFleetSpec(directory, installedNixVersion), directory);
    refuseWithoutRoom(directory, local.spec.builders);
    const usesHcloud = local.spec.builders.some(({ provider }) => provider === "hcloud");
    if (usesHcloud) requireHcloudAccess();
    const hcloud = usesHcloud ? { machines: await import("../components/machines/hcloud.ts") } : undefined;
    return { ...local, hcloud, aws: await planAws(local.spec) };
  } catch (error) {
    if (error instanceof ConfigurationError || error instanceof MissingTool) throw new pulumi.RunError(error.message);
    throw error;
  }
}

/** Looks at AWS, if the fleet has builders there: only then the SDK and the plugin's package are loaded. */
async function planAws(spec: FleetSpec) {
  if (!spec.builders.some(({ provider }) => provider === "aws")) return undefined;
  const access = readAwsAccess();
  const { lookAtAws } = await import("./aws/preflight.ts");
  try {
    const lookup = await lookAtAws(access, spec);
    return { access, lookup, machines: await import("../components/machines/aws.ts") };
  } catch (error) {
    if (error instanceof Error && ["AwsError", "NotAtAws"].includes(error.name))
      throw new ConfigurationError(error.message);
    throw error;
  }
}
