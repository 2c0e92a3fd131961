/** An SSH key pair of the fleet: ed25519, made before anything that needs it, kept in the state as a secret. */
import * as pulumi from "@pulumi/pulumi";
import { PrivateKey } from "@pulumi/tls/privateKey.js";

/**
 * A key pair. The resource's name says whose: `client`, `admin`, or the builder's.
 *
 * It is one resource, and no component around one: every step of every resource writes the whole state anew.
 */
export class SshIdentity extends PrivateKey {
  /** OpenSSH private key (PEM). A secret. */
  readonly privateKey: pulumi.Output<string>;
  /** OpenSSH public key line (`ssh-ed25519 AAAA…`), without comment. */
  readonly publicKey: pulumi.Output<string>;

  constructor(name: string, opts?: pulumi.CustomResourceOptions) {
    super(name, { algorithm: "ED25519" }, opts);
    this.privateKey = pulumi.secret(this.privateKeyOpenssh);
    this.publicKey = this.publicKeyOpenssh.apply((line) => line.trim());
  }
}
