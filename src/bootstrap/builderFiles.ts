/** The files of a NixOS builder, the same for every provider: what nixos/builder.nix finds beside it. */
import { createHash } from "node:crypto";
import { basename } from "node:path";
import type { BuildLimits } from "./defaults.ts";
import type { ClientKey, Trust } from "../nix/trust.ts";

/** Folder on the builder; NixOS and the conversion leave /etc/nixos alone. */
export const builderDirectory = "/etc/nixos/nix-builder";

/** User that clients log in as, by their level: only that of `full` is in `trusted-users`. */
export const builderUsers = {
  none: "nix-builder",
  signed: "nix-builder",
  full: "nix-builder-trusted",
} as const satisfies Readonly<Record<Trust, string>>;

/**
 * Beside the module on a builder that has, or once had, clients at `full`: they were root there. Nothing removes it, a snapshot has it too.
 */
export const trustingMark = `${builderDirectory}/has-trusted-clients`;

/** What nixos/builder.nix reads from parameters.json. */
export interface BuilderParameters extends BuildLimits {
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
 * A client's key is restricted twice, here and by sshd's `Match User`, and is never in root's file.
 */
export function keyFiles({ clients, adminPublicKey }: BuilderKeys): Readonly<Record<string, string>> {
  const ofClients = [...new Set(Object.values(builderUsers))].map((user) => {
    const own = clients.filter(({ trust }) => builderUsers[trust] === user);
    return [`keys/${user}`, own.map(({ publicKey }) => `restrict ${publicKey.trim()}\n`).join("")] as const;
  });
  const trusting = clients.some(({ trust }) => trust === "full");
  return {
    "keys/root": `${adminPublicKey.trim()}\n`,
    ...Object.fromEntries(ofClients),
    ...(trusting && { [basename(trustingMark)]: "Clients at `trust: full` are, or were, root on this builder.\n" }),
  };
}

/** Whose signatures a builder takes, and its own key. */
export interface BuilderSigning {
  /** Nix public keys, `NAME:BASE64`. */
  readonly trustedPublicKeys: readonly string[];
  /** Nix secret key, `NAME:BASE64`. */
  readonly signingKey: string;
}

/**
 * What Nix on the builder reads of signatures, path below `builderDirectory` → text, for root's eyes only. They come over the administrator's
 * connection, never in user data, and count once the daemon was restarted.
 */
export function signingFiles({ trustedPublicKeys, signingKey }: BuilderSigning): Readonly<Record<string, string>> {
  const settings = [
    `secret-key-files = ${builderDirectory}/${signingDirectory}/key`,
    `extra-trusted-public-keys = ${trustedPublicKeys.join(" ")}`,
  ];
  return {
    [`${signingDirectory}/key`]: `${signingKey}\n`,
    [`${signingDirectory}/nix.conf`]: `${settings.join("\n")}\n`,
  };
}

/** Folder of `signingFiles`, below `builderDirectory`. */
export const signingDirectory = "signing";

/**
 * The modules and their parameters, path below `builderDirectory` → text.
 *
 * @param hcloudNix Text of nixos/hcloud.nix, for a server at Hetzner.
 */
export function moduleFiles(
  parameters: BuilderParameters,
  builderNix: string,
  hcloudNix?: string,
): Readonly<Record<string, string>> {
  return {
    "builder.nix": builderNix,
    ...(hcloudNix !== undefined && { "hcloud.nix": hcloudNix }),
    "parameters.json": `${JSON.stringify(parameters, null, 2)}\n`,
  };
}

/** Names a state of the module's files: kept on the builder, it tells whether NixOS runs what the fleet wants. */
export function appliedMark(files: Readonly<Record<string, string>>): string {
  return createHash("sha256").update(JSON.stringify(files)).digest("hex");
}
