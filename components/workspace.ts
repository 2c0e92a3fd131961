/** The stack's folder on this machine: made first, removed last, with whatever a killed deployment left behind. */
import * as command from "@pulumi/command/local/command.js";
import * as pulumi from "@pulumi/pulumi";
import { generationVariable, wantedGeneration } from "../src/local/generation.ts";
import { isInPlace } from "../src/local/place.ts";
import { commandDefaults, scriptCommand } from "./checkout.ts";

/** Arguments of a `Workspace`. */
export interface WorkspaceArgs {
  /** Absolute path. */
  readonly directory: string;
  /** Owner of the stack's emulations, see `emulationOwner`. */
  readonly owner: string;
}

/** All that lies or runs on this machine depends on it, so that its removal comes last and finds only what was forgotten. */
export class Workspace extends pulumi.ComponentResource {
  /** The folder, once its removal is in the state. */
  readonly directory: pulumi.Output<string>;

  constructor(name: string, args: WorkspaceArgs, opts?: pulumi.ComponentResourceOptions) {
    super("nix-builder-fleet:index:Workspace", name, {}, opts);
    const folder = new command.Command(
      name,
      {
        ...commandDefaults,
        create: ":",
        delete: scriptCommand("local/main.ts", "sweep", args.directory, args.owner),
      },
      { parent: this },
    );
    // A command of its own: whoever makes the folder is sure that its removal is in the state.
    new command.Command(
      `${name}-place`,
      {
        ...commandDefaults,
        create: scriptCommand("local/main.ts", "claim", args.directory, args.owner),
        environment: { [generationVariable]: wantedGeneration(args.directory, isInPlace(args.directory)) },
      },
      { parent: this, dependsOn: folder },
    );
    this.directory = folder.id.apply(() => args.directory);
    this.registerOutputs({ directory: this.directory });
  }
}
