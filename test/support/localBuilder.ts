/** A real builder for one test: sshd on a loopback address of its own, pinned host key, Nix behind it. */
import type { BuildMachine } from "../../src/nix/buildMachine.ts";
import { LocalFleet } from "./localFleet.ts";

/** A running builder and what a client needs for it. */
export interface LocalBuilder {
  readonly machine: BuildMachine;
  /** Text of the private key that it accepts. */
  readonly clientPrivateKey: string;
  /** Folder for the test's own files, removed with the builder. */
  readonly directory: string;
  /** Folder that its store lies in. */
  readonly storeRoot: string;
  stop(): Promise<void>;
}

/** Starts a builder for this machine's own system. */
export async function startLocalBuilder(alias = "here"): Promise<LocalBuilder> {
  const fleet = await LocalFleet.start({ alias, maxJobs: 4 });
  const { machine, local } = fleet.builder(alias);
  return {
    machine,
    clientPrivateKey: fleet.client.privateKey,
    directory: fleet.root,
    storeRoot: `${local.directory}/root`,
    stop: () => fleet.stop(),
  };
}
