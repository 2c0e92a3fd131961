/** The one contract between providers and builders: what a machine is, whoever made it. */
import type * as pulumi from "@pulumi/pulumi";
import type { types } from "@pulumi/command";
import type { Peculiarities } from "../../src/bootstrap/measure.ts";
import type { SshUsers } from "../../src/nix/buildMachine.ts";
import type { ClientKey } from "../../src/nix/trust.ts";

/** A machine that can become a builder. */
export interface Machine {
  /** Address that clients connect to. */
  readonly address: pulumi.Input<string>;
  /** TCP port of its sshd. */
  readonly port: pulumi.Input<number>;
  /** User that clients log in as, by their level. */
  readonly sshUsers: pulumi.Input<SshUsers>;
  /** OpenSSH public host key line, pinned: known before the machine was reached for the first time. */
  readonly hostKey: pulumi.Input<string>;
  /** How root is reached, with `hostKey` set; `undefined` on a machine that isn't the fleet's to administer. */
  readonly admin?: types.input.remote.ConnectionArgs;
  /** What is unusual about its Nix, for whoever looks at it from the inside. Default: nothing. */
  readonly peculiarities?: Peculiarities;
  /** What the machine lives in: when it is deleted, nothing on it needs deleting. `undefined`: nothing of the stack's. */
  readonly resource?: pulumi.Resource;
  /** Where a cloud has put it, in the cloud's own terms; `undefined` where there is no choice. */
  readonly placement?: pulumi.Input<object>;
  /** Changes whenever it may have become another machine, or was started anew: what was proven before then is proven again. */
  readonly generation: pulumi.Input<string>;
}

/** What every provider is given beside its own part of the builder's specification. */
export interface MachineKeys {
  /** Keys that may run the two Nix protocols, each at its client's level: the fleet's client key, and one for each client. */
  readonly clients: pulumi.Input<readonly ClientKey[]>;
  /** Nix public keys, `NAME:BASE64`, whose signatures the builders take: the builders' own, signing clients', the caches'. */
  readonly trustedPublicKeys: pulumi.Input<readonly string[]>;
  /** Nix secret key, `NAME:BASE64`, with which the builder signs what it builds. A secret. */
  readonly signingKey: pulumi.Input<string>;
  /** Public key that may administer. */
  readonly adminPublicKey: pulumi.Input<string>;
  /** Private key of the same, for the administrative connection. */
  readonly adminPrivateKey: pulumi.Input<string>;
}
