/** A key pair that signs store paths, made before anything that needs it, kept in the state as a secret. */
import * as pulumi from "@pulumi/pulumi";
import { PrivateKey } from "@pulumi/tls/privateKey.js";
import { signingKey } from "../src/nix/signing.ts";

/** A key pair in Nix's form. The resource's name says whose. One resource, as `SshIdentity` is. */
export class SigningIdentity extends PrivateKey {
  /** Nix secret key, `NAME:BASE64`. A secret. */
  readonly secretKey: pulumi.Output<string>;
  /** Nix public key, `NAME:BASE64`. */
  readonly publicKey: pulumi.Output<string>;

  /** @param signer What its signatures are called. */
  constructor(name: string, signer: string, opts?: pulumi.CustomResourceOptions) {
    super(name, { algorithm: "ED25519" }, opts);
    const pair = pulumi.secret(this.privateKeyPemPkcs8).apply((pem) => signingKey(signer, pem));
    this.secretKey = pair.apply(({ secretKey }) => secretKey);
    this.publicKey = pulumi.unsecret(pair.apply(({ publicKey }) => publicKey));
  }
}
