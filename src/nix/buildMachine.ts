/** The one model of a builder: everything a client must know, and nothing else. All client forms are rendered from it. */

/** Nix's two ways of talking to a store over SSH: `ssh-ng` runs `nix-daemon --stdio`, `ssh` runs `nix-store --serve`. */
export type Protocol = "ssh-ng" | "ssh";

/**
 * One entry of `nix.buildMachines`, with the field names of nixpkgs, plus `alias` and `port`.
 *
 * Source of the names: `nixos/modules/config/nix-remote-build.nix` in nixpkgs.
 */
export interface BuildMachine {
  /** What clients call this builder: the `Host` in ssh_config, the `HostKeyAlias`, the host part of the store URI. */
  readonly alias: string;
  /** Address to connect to: a DNS name, an IPv4 address, or an IPv6 address without brackets. */
  readonly hostName: string;
  /** TCP port of sshd. */
  readonly port: number;
  /** Store protocol. */
  readonly protocol: Protocol;
  /** Nix systems it builds for; never empty, because an omitted column means the client's own system. */
  readonly systems: readonly string[];
  /** User to log in as. */
  readonly sshUser: string;
  /** Path, on the client, of the private key; `undefined`: the key that the client directory holds. */
  readonly sshKey?: string;
  /** Derivations it builds at the same time, for one client. At least 1. */
  readonly maxJobs: number;
  /** Weight in the choice of a builder. A whole number of at least 1: Nix up to 2.18 parses no other. */
  readonly speedFactor: number;
  /** Features that derivations may require of it, for instance `big-parallel`. */
  readonly supportedFeatures: readonly string[];
  /** Features that a derivation must require to be built there. Also rendered into the supported ones. */
  readonly mandatoryFeatures: readonly string[];
  /** Base64 of the OpenSSH public host key line (`ssh-ed25519 AAAA…`). */
  readonly publicHostKey: string;
}
