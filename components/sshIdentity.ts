/** An SSH key pair of the fleet: ed25519, made before anything that needs it, kept in the state as a secret. */
import * as pulumi from "@pulumi/pulumi";
import { PrivateKey } from "@pulumi/tls/privateKey.js";

/** A key pair. The resource's name says whose: `client`, `admin`, or the builder's. */
export class SshIdentity extends pulumi.ComponentResource {
  /** OpenSSH private key (PEM). A secret. */
  readonly privateKey: pulumi.Output<string>;
  /** OpenSSH public key line (`ssh-ed25519 AAAA…`), without comment. */
  readonly publicKey: pulumi.Output<string>;

  constructor(name: string, opts?: pulumi.ComponentResourceOptions) {
    super("nix-builder-fleet:index:SshIdentity", name, {}, opts);
    const key = new PrivateKey(name, { algorithm: "ED25519" }, { parent: this });
    this.privateKey = pulumi.secret(key.privateKeyOpenssh);
    this.publicKey = key.publicKeyOpenssh.apply((line) => line.trim());
    this.registerOutputs({ privateKey: this.privateKey, publicKey: this.publicKey });
  }
}
