/** What the script that runs local builders is told: the contract between the program and `main.ts`. */
import type { BuildLimits } from "../bootstrap/defaults.ts";
import type { System } from "../nix/system.ts";
import type { ClientKey } from "../nix/trust.ts";

/** One local builder, sent as JSON on the script's standard input because it holds the private host key. */
export interface LocalMachine extends BuildLimits {
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
  /** Keys that may run the two Nix protocols, each at its client's level. */
  readonly clients: readonly ClientKey[];
  /** Nix public keys, `NAME:BASE64`, whose signatures the builder takes beside Nix's own. */
  readonly trustedPublicKeys: readonly string[];
  /** Nix secret key, `NAME:BASE64`, with which it signs what it builds. */
  readonly signingKey: string;
  /** OpenSSH public key line: may run any command. */
  readonly adminPublicKey: string;
}
