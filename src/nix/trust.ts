/** What a builder takes from a client: the choice `trust`, of the fleet or of one client. */
import type { Protocol } from "./buildMachine.ts";
import { isAtLeast } from "./version.ts";

/**
 * The levels, the safest first.
 *
 * - `none`: the client's user is in no builder's `trusted-users`. It may build, and bring in sources, derivations, and what somebody whom the
 *   builder trusts has signed: a binary cache, another builder of the fleet. An output that only the client has is refused.
 * - `signed`: the same, and the builders take what the client has signed with the key that the program made for it.
 * - `full`: the client's user is in the builders' `trusted-users`, and can do there what the Nix daemon can.
 */
export const trustLevels = ["none", "signed", "full"] as const;

/** One of `trustLevels`. */
export type Trust = (typeof trustLevels)[number];

/** A client as builders know it. */
export interface ClientKey {
  /** OpenSSH public key line. */
  readonly publicKey: string;
  readonly trust: Trust;
}

/** What `full` means, in the words that are used wherever it is chosen. */
export const fullTrust = "a client of this fleet is root on its builders";

/** The clients at `full`, by name; the one whose key everybody can have is `the shared one`. */
export function rootClientsOf({
  trust,
  clients,
}: {
  readonly trust: Trust;
  readonly clients: readonly { readonly name: string; readonly trust: Trust }[];
}): string[] {
  const all = [{ name: "the shared one", trust }, ...clients];
  return all.flatMap((client) => (client.trust === "full" ? [client.name] : []));
}

/** What is said of a fleet that has such clients. */
export function describeRootClients(names: readonly string[]): string {
  return `trust: full (clients: ${names.join(", ")}): ${fullTrust}`;
}

/**
 * Oldest Nix, on client and builder, with which a row of `builders` works below `full`: the client then sends the closure of the derivation.
 * NixOS/nix#3921, in 2.16; tried with 2.26 and 2.34. An older client sends the bare derivation, which takes a trusted user.
 */
export const oldestForUntrustedRows = "2.16";

/**
 * Whether a client can use a builder as a row of `builders`.
 *
 * @param machine `trust` is `undefined` where nobody knows it; then the row is taken to work.
 * @param builderNix Version of the builder's Nix; `undefined`: not known, and taken to be new enough.
 * @returns `undefined`: it can; else why not, as the end of a sentence.
 */
export function rowObstacle(
  { trust, protocol }: { readonly trust?: Trust | undefined; readonly protocol: Protocol },
  clientNix: string,
  builderNix?: string,
): string | undefined {
  if (trust === undefined || trust === "full") return undefined;
  if (protocol !== "ssh-ng") return `its protocol is ${protocol}, and at trust ${trust} only ssh-ng works`;
  const old = [
    ...(isAtLeast(clientNix, oldestForUntrustedRows) ? [] : [`here it is ${clientNix}`]),
    ...(builderNix === undefined || isAtLeast(builderNix, oldestForUntrustedRows) ? [] : [`there it is ${builderNix}`]),
  ];
  if (old.length === 0) return undefined;
  return `at trust ${trust} a row of \`builders\` needs Nix ${oldestForUntrustedRows} or newer on both sides, and ${old.join(" and ")}`;
}
