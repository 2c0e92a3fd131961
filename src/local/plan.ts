/** What this machine must have for a fleet, looked at before anything is made. */
import { createHash } from "node:crypto";
import { existsSync, readFileSync, statSync } from "node:fs";
import type { FleetSpec, LocalBuilderSpec } from "../fleetSpec.ts";
import { systemOfThisMachine, type System } from "../nix/system.ts";
import { emulation, emulationObstacle } from "./emulation.ts";
import { formerPlace, refuseTakenPort, runningSocket, socketOf } from "./machine.ts";
import { runningSshd } from "./processes.ts";
import { sandboxObstacle } from "./sandbox.ts";
import { checkNixVersion, findLocalTools, MissingTool } from "./tools.ts";

/** The fleet as this machine can carry it. */
export interface LocalPlan {
  /** The fleet without the builders that can't be here. */
  readonly spec: FleetSpec;
  /** One sentence for each builder that was left out. */
  readonly leftOut: readonly string[];
  /** Systems whose emulation the fleet registers, because the machine doesn't have it. */
  readonly emulated: readonly System[];
}

/**
 * Looks at what the fleet needs here: for local builders Nix, sshd, a shell, an emulation, a free port; for others their key.
 *
 * A builder that can't be emulated here is left out; one that is here already isn't, because that would delete it.
 *
 * @param directory Folder of the stack's local builders.
 * @throws MissingTool or Error, in words, when a builder of this machine's own system can't be made, or one that is here can't go on.
 */
export async function planLocalBuilders(spec: FleetSpec, directory: string): Promise<LocalPlan> {
  const leftOut: string[] = [];
  const emulated = new Set<System>();
  const builders: FleetSpec["builders"][number][] = [];
  const owner = emulationOwner(spec.fleet, directory);
  let nixChecked = false;
  for (const builder of spec.builders) {
    if (builder.provider === "local") {
      const obstacle = foreignObstacle(owner, builder);
      if (obstacle !== undefined && existsSync(machineDirectory(directory, builder.name))) {
        // To leave it out now would be to delete what it built.
        throw new MissingTool(
          `builder '${builder.name}' (${builder.system}) can't go on: ${obstacle}; ` +
            "mend that, or take the builder out of the configuration to have it and its store deleted",
        );
      }
      if (obstacle !== undefined) {
        leftOut.push(`builder '${builder.name}' (${builder.system}) is left out: ${obstacle}`);
        continue;
      }
      const tools = findLocalTools(builder.system);
      if (!nixChecked) checkNixVersion(tools.nixDaemon);
      nixChecked = true;
      const noSandbox = sandboxObstacle();
      if (noSandbox !== undefined) throw new MissingTool(`builder '${builder.name}' can't be here: ${noSandbox}`);
      // Of a checkout that was moved, the builders still run where it was; the deployment ends them first.
      const moved = formerPlace(directory) !== undefined;
      if (!moved && runningSocket(machineDirectory(directory, builder.name)) !== socketOf(builder)) {
        await refuseTakenPort(builder.name, builder).catch((error: unknown) => {
          throw new MissingTool(error instanceof Error ? error.message : String(error));
        });
      }
      if (builder.system !== systemOfThisMachine() && emulation(owner, builder.system) !== "machine") {
        emulated.add(builder.system);
      }
    }
    if (builder.provider === "existing" && builder.sshKey !== undefined)
      refuseUnusableKey(builder.name, builder.sshKey);
    builders.push(builder);
  }
  if (builders.length === 0) throw new MissingTool(`no builder is left:\n${leftOut.join("\n")}`);
  return { spec: { ...spec, builders }, leftOut, emulated: [...emulated] };
}

/** Name under which a fleet registers emulation on this machine: its own, and another for each checkout's stack. */
export function emulationOwner(fleet: string, directory: string): string {
  return `${fleet}-${createHash("sha256").update(directory).digest("hex").slice(0, 8)}`;
}

/** Folder of one local builder. */
export function machineDirectory(directory: string, name: string): string {
  return `${directory}/machines/${name}`;
}

/**
 * The generation that a builder is to have: the one it has while it runs, the next one otherwise.
 *
 * @param emulated The emulation that the fleet registered for it, without which it runs no build; `undefined`: it needs none.
 */
export function wantedGeneration(
  directory: string,
  emulated?: { readonly owner: string; readonly system: System },
): string {
  const path = `${directory}/generation`;
  const generation = existsSync(path) ? Number(readFileSync(path, "utf8")) : 0;
  const runs =
    runningSshd(directory) !== undefined &&
    (emulated === undefined || emulation(emulated.owner, emulated.system) !== "none");
  return String(runs ? generation : generation + 1);
}

function refuseUnusableKey(name: string, path: string): void {
  const problem = keyProblem(path);
  if (problem === undefined) return;
  throw new MissingTool(
    `builder '${name}': sshKey ${path} ${problem}; it must be a private key file that you may read`,
  );
}

/** Why ssh can't use a private key, as far as that shows without its passphrase; `undefined`: it may be able to. */
function keyProblem(path: string): string | undefined {
  try {
    const file = statSync(path);
    if (!file.isFile()) return "is no file";
    const text = readFileSync(path, "utf8");
    if (/^(ssh|ecdsa|sk)-\S+ AAAA/.test(text)) return "is a public key";
    if (!/^-----BEGIN ([A-Z0-9]+ )*PRIVATE KEY-----/m.test(text)) return "holds no private key";
    // ssh looks at the mode of files of this user alone.
    return file.uid === process.getuid?.() && (file.mode & 0o077) !== 0
      ? "is open to others, so that ssh refuses it (chmod 600)"
      : undefined;
  } catch {
    return "can't be read";
  }
}

/** Why a builder for another architecture can't be here; a builder of this machine's own system has to be. */
function foreignObstacle(owner: string, builder: LocalBuilderSpec): string | undefined {
  if (builder.system === systemOfThisMachine()) return undefined;
  const obstacle = emulationObstacle(owner, builder.system);
  if (obstacle !== undefined) return obstacle;
  try {
    findLocalTools(builder.system);
    return undefined;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}
