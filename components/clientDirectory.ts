/** The emitted client files on this machine: what the smoke test and `npx fleet` use, gone with the stack. */
import * as command from "@pulumi/command/local/command.js";
import * as pulumi from "@pulumi/pulumi";
import { clientDirectoryFiles, holdsClientFiles } from "../src/client/directory.ts";
import { generationVariable, wantedGeneration } from "../src/local/generation.ts";
import type { BuildMachine } from "../src/nix/buildMachine.ts";
import type { Cache } from "../src/nix/caches.ts";
import { commandDefaults, scriptCommand } from "./checkout.ts";
import { rendering } from "./rendering.ts";

/** Arguments of a `ClientDirectory`. */
export interface ClientDirectoryArgs {
  /** Absolute path. */
  readonly directory: string;
  readonly machines: pulumi.Input<readonly BuildMachine[]>;
  /** Sessions on one connection, see `FleetSpec`. */
  readonly maxSessions: number | undefined;
  /** Binary caches beside the fleet. */
  readonly caches: readonly Cache[];
  /** OpenSSH private key of the client. */
  readonly privateKey: pulumi.Input<string>;
  /** Nix secret key with which it signs; `undefined`: nothing. */
  readonly signingKey: pulumi.Input<string> | undefined;
}

/** A folder with `machines`, `nix.conf`, `ssh_config`, `known_hosts`, `id_ed25519`, and `signing-key` at the level `signed`. */
export class ClientDirectory extends pulumi.ComponentResource {
  /** The folder, once the files are in it. */
  readonly directory: pulumi.Output<string>;

  constructor(name: string, args: ClientDirectoryArgs, opts?: pulumi.ComponentResourceOptions) {
    super("nix-builder-fleet:index:ClientDirectory", name, {}, opts);
    const { directory, maxSessions, caches } = args;
    const write = scriptCommand("client/main.ts", "write", directory);
    const files = pulumi
      .all([args.machines, args.privateKey, args.signingKey])
      .apply(([machines, privateKey, signingKey]) =>
        rendering(() => clientDirectoryFiles(machines, { directory, maxSessions, caches, privateKey, signingKey })),
      );
    const written = new command.Command(
      name,
      {
        ...commandDefaults,
        create: write,
        update: write,
        delete: scriptCommand("client/main.ts", "remove", directory),
        stdin: pulumi.secret(files.apply((all) => JSON.stringify(all))),
        environment: {
          [generationVariable]: files.apply((all) => wantedGeneration(directory, holdsClientFiles(directory, all))),
        },
      },
      { parent: this },
    );
    this.directory = written.id.apply(() => directory);
    this.registerOutputs({ directory: this.directory });
  }
}
