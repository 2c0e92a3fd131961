/** What this machine must have for a fleet, looked at before anything is made. */
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { keyProblem } from "../client/keyFile.ts";
import type { FleetSpec } from "../fleetSpec.ts";
import { systemOfThisMachine, type System } from "../nix/system.ts";
import { emulation, emulationObstacle } from "./emulation.ts";
import { wantedGeneration } from "./generation.ts";
import { refuseTakenSocket } from "./machine.ts";
import { formerPlace } from "./place.ts";
import { isRunning } from "./processes.ts";
import { sandboxObstacle } from "./sandbox.ts";
import { checkNixVersion, findLocalTools, MissingTool, networkObstacle } from "./tools.ts";

/** The fleet as this machine can carry it. */
export interface LocalPlan {
  /** The fleet without the builders that can't be here. */
  readonly spec: FleetSpec;
  /** One sentence for each builder that was left out. */
  readonly leftOut: readonly string[];
  /** What the builders that are here do without, in a sentence; `undefined`: nothing. */
  readonly doWithout: string | undefined;
  /** Systems whose emulation the fleet registers, because the machine doesn't have it. */
  readonly emulated: readonly System[];
}

/**
 * Looks at what the fleet needs here: for local builders Nix, sshd, a shell, an emulation, a free port; for others their key.
 *
 * A builder that can't be emulated here is left out; one that is here already isn't, because that would delete it.
 *
 * @param directory Folder of the stack's local builders.
 * @param native This machine's system; `undefined` where it is none that a builder can have.
 * @throws MissingTool or Error, in words, when a builder of this machine's own system can't be made, or one that is here can't go on.
 */
export async function planLocalBuilders(
  spec: FleetSpec,
  directory: string,
  native = systemOfThisMachine(),
): Promise<LocalPlan> {
  const leftOut: string[] = [];
  const emulated = new Set<System>();
  const builders: FleetSpec["builders"][number][] = [];
  const owner = emulationOwner(spec.fleet, directory);
  let nixChecked = false;
  let doWithout: string | undefined;
  for (const builder of spec.builders) {
    if (builder.provider === "local") {
      const obstacle = builder.system === native ? undefined : foreignObstacle(owner, builder.system);
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
      if (!nixChecked) {
        checkNixVersion(tools.nixDaemon);
        doWithout = networkObstacle(tools.container);
      }
      nixChecked = true;
      const noSandbox = sandboxObstacle();
      if (noSandbox !== undefined) throw new MissingTool(`builder '${builder.name}' can't be here: ${noSandbox}`);
      // Of a checkout that was moved, the builders still run where it was; the deployment ends them first.
      const moved = formerPlace(directory) !== undefined;
      if (!moved) {
        await refuseTakenSocket(machineDirectory(directory, builder.name), builder).catch((error: unknown) => {
          throw new MissingTool(error instanceof Error ? error.message : String(error));
        });
      }
      if (builder.system !== native && emulation(owner, builder.system) !== "machine") {
        emulated.add(builder.system);
      }
    }
    if (builder.provider === "existing" && builder.sshKey !== undefined)
      refuseUnusableKey(builder.name, builder.sshKey);
    builders.push(builder);
  }
  if (builders.length === 0) throw new MissingTool(`no builder is left:\n${leftOut.join("\n")}`);
  return { spec: { ...spec, builders }, leftOut, doWithout, emulated: [...emulated] };
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
 * The generation that a builder is to have, see `generation.ts`: a new one unless it runs.
 *
 * @param emulated The emulation that the fleet registered for it, without which it runs no build; `undefined`: it needs none.
 */
export function machineGeneration(
  directory: string,
  emulated?: { readonly owner: string; readonly system: System },
): string {
  const runs =
    isRunning(directory) && (emulated === undefined || emulation(emulated.owner, emulated.system) !== "none");
  return wantedGeneration(directory, runs);
}

function refuseUnusableKey(name: string, path: string): void {
  const problem = keyProblem(path);
  if (problem === undefined) return;
  throw new MissingTool(
    `builder '${name}': sshKey ${path} ${problem}; it must be a private key file that you may read`,
  );
}

/** Why a builder for another architecture can't be here. */
function foreignObstacle(owner: string, system: System): string | undefined {
  const obstacle = emulationObstacle(owner, system);
  if (obstacle !== undefined) return obstacle;
  try {
    findLocalTools(system);
    return undefined;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}
