/** What the script that runs local builders is told: the contract between the program and `main.ts`. */
import type { System } from "../nix/system.ts";

/** One local builder, sent as JSON on the script's standard input because it holds the private host key. */
export interface LocalMachine {
  /** Folder of its own; holds everything, the Nix store included. */
  readonly directory: string;
  /** IPv4 loopback address and TCP port of its sshd. */
  readonly address: string;
  readonly port: number;
  readonly system: System;
  /** Owner of the emulation of `system`, registered again after a reboot; `undefined`: not the fleet's task. */
  readonly emulatedFor?: string;
  /** Derivations at once for one connection; `undefined`: from the machine's size. */
  readonly maxJobs?: number;
  readonly features: readonly string[];
  /** OpenSSH private key, PEM. */
  readonly hostPrivateKey: string;
  /** OpenSSH public key lines: may do nothing but speak the two Nix protocols. */
  readonly clientPublicKeys: readonly string[];
  /** OpenSSH public key line: may run any command. */
  readonly adminPublicKey: string;
}
