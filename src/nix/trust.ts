/** What a builder takes from a client: the choice `trust`, of the fleet or of one client. */

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
