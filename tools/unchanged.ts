/**
 * Whether a deployment would find nothing to do, told without the engine: the program, its configuration, the state and the client's
 * files are those of the last deployment that succeeded, and every builder runs. Only for fleets that are on this machine alone: what is
 * elsewhere may have changed unseen.
 */
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { emulation } from "../src/local/emulation.ts";
import { emulationOwner } from "../src/local/plan.ts";
import { isRunning } from "../src/local/processes.ts";
import { systems, systemOfThisMachine } from "../src/nix/system.ts";
import { filesBelow } from "./files.ts";
import { checkout } from "./launch.mjs";
import { backendOf, ownBackend, project } from "./stack.ts";
import { withoutSalt } from "./stackFile.ts";

/** Stack outputs; secrets among them are not readable. */
type Outputs = Readonly<Record<string, unknown>>;

/** Folders whose files decide what a deployment does. */
const programFolders = ["src", "components", "nixos", "tools/plugins"];

/**
 * Notes a deployment that succeeded without a warning: what was warned of, such as a builder that was left out, has its cause outside of
 * all that is looked at here, and may be mended. Does nothing in a backend of the person's own, whose state others may change.
 *
 * @param outputs Of the stack.
 */
export function rememberDeployment(env: NodeJS.ProcessEnv, stack: string, outputs: Outputs): void {
  const fingerprint = fingerprintOf(env, stack);
  if (fingerprint === undefined || !existsSync(stackFolder(stack))) return;
  const draft = `${recordPath(stack)}.${String(process.pid)}`;
  writeFileSync(draft, JSON.stringify({ fingerprint, outputs }), { mode: 0o600 });
  renameSync(draft, recordPath(stack));
}

/** The outputs of the last deployment, if nothing has changed since and everything runs; `undefined`: deploy. */
export function unchangedDeployment(env: NodeJS.ProcessEnv, stack: string): Outputs | undefined {
  try {
    const record = JSON.parse(readFileSync(recordPath(stack), "utf8")) as { fingerprint: string; outputs: Outputs };
    return record.fingerprint === fingerprintOf(env, stack) && everythingRuns(stack, record.outputs)
      ? record.outputs
      : undefined;
  } catch {
    return undefined; // A record or a builder's file that is missing or torn: a deployment mends it, or says what is wrong.
  }
}

function everythingRuns(stack: string, { builders }: Outputs): boolean {
  const folder = stackFolder(stack);
  const machines = existsSync(`${folder}/machines`) ? readdirSync(`${folder}/machines`) : [];
  if (!Array.isArray(builders) || builders.length !== machines.length) return false;
  const owner = emulationOwner(stack, folder);
  return machines.every((name) => {
    const directory = `${folder}/machines/${name}`;
    if (!isRunning(directory)) return false;
    const settings = readFileSync(`${directory}/conf/nix.conf`, "utf8");
    const system = systems.find((candidate) => settings.includes(`system = ${candidate}\n`));
    return system !== undefined && (system === systemOfThisMachine() || emulation(owner, system) !== "none");
  });
}

function fingerprintOf(env: NodeJS.ProcessEnv, stack: string): string | undefined {
  if (backendOf(env) !== ownBackend()) return undefined;
  const state = join(checkout, ".fleet", "state", ".pulumi", "stacks", project, `${stack}.json`);
  const configuration = join(checkout, `Pulumi.${stack}.yaml`);
  if (!existsSync(state) || !existsSync(configuration)) return undefined;
  const hash = createHash("sha256").update(JSON.stringify([process.version, process.getuid?.(), checkout]));
  hash.update(withoutSalt(readFileSync(configuration, "utf8"))).update(readFileSync(state));
  for (const file of ["Pulumi.yaml", "package-lock.json", ...programFiles()]) {
    hash.update(`\0${file}\0`).update(readFileSync(join(checkout, file)));
  }
  for (const name of ["machines", "nix.conf", "ssh_config", "known_hosts", "id_ed25519"]) {
    const file = join(stackFolder(stack), "client", name);
    hash.update(`\0${name}\0`).update(existsSync(file) ? readFileSync(file) : "");
  }
  return hash.digest("hex");
}

function programFiles(): string[] {
  return programFolders
    .flatMap((folder) => filesBelow(join(checkout, folder)).sort())
    .map((path) => relative(checkout, path));
}

function stackFolder(stack: string): string {
  return join(checkout, ".fleet", "stacks", stack);
}

function recordPath(stack: string): string {
  return join(stackFolder(stack), "deployed.json");
}
