/** The files of a NixOS builder, the same for every provider: what nixos/builder.nix finds beside it. */
import { createHash } from "node:crypto";
import type { ClientKey, Trust } from "../nix/trust.ts";

/** Folder on the builder; NixOS and nixos-infect leave /etc/nixos alone. */
export const builderDirectory = "/etc/nixos/nix-builder";

/** User that clients log in as, by their level: only that of `full` is in `trusted-users`. */
export const builderUsers = {
  none: "nix-builder",
  signed: "nix-builder",
  full: "nix-builder-trusted",
} as const satisfies Readonly<Record<Trust, string>>;

/** What nixos/builder.nix reads from parameters.json. */
export interface BuilderParameters {
  readonly provider: "hcloud" | "aws";
  /** Derivations at once; `null`: by the machine's size, see `defaults.ts`. */
  readonly maxJobs: number | null;
  /** Whether a client is fully trusted: only then there is a user whom Nix trusts. */
  readonly trustedClients: boolean;
  /** `system-features` of Nix. */
  readonly systemFeatures: readonly string[];
  /** Days for which garbage collection keeps what was built or fetched. */
  readonly keepDays: number;
  /** Whether NixOS upgrades itself every night, without rebooting. */
  readonly automaticUpgrades: boolean;
}

/** Public keys that a builder accepts. */
export interface BuilderKeys {
  /** May run the two Nix protocols, as the user of their level. */
  readonly clients: readonly ClientKey[];
  /** May do anything, as root. */
  readonly adminPublicKey: string;
}

/**
 * sshd's authorized keys, path below `builderDirectory` → text.
 *
 * A client's key is restricted twice, here and by sshd's `Match User`: nixos-infect strips options from root's file, so it
 * must never be there.
 */
export function keyFiles({ clients, adminPublicKey }: BuilderKeys): Readonly<Record<string, string>> {
  const ofClients = [...new Set(Object.values(builderUsers))].map((user) => {
    const own = clients.filter(({ trust }) => builderUsers[trust] === user);
    return [`keys/${user}`, own.map(({ publicKey }) => `restrict ${publicKey.trim()}\n`).join("")] as const;
  });
  return { "keys/root": `${adminPublicKey.trim()}\n`, ...Object.fromEntries(ofClients) };
}

/** The module and its parameters, path below `builderDirectory` → text. */
export function moduleFiles(parameters: BuilderParameters, builderNix: string): Readonly<Record<string, string>> {
  return { "builder.nix": builderNix, "parameters.json": `${JSON.stringify(parameters, null, 2)}\n` };
}

/** Names a state of the module's files: kept on the builder, it tells whether NixOS runs what the fleet wants. */
export function appliedMark(files: Readonly<Record<string, string>>): string {
  return createHash("sha256").update(JSON.stringify(files)).digest("hex");
}
