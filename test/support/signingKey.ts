/** Keys that sign store paths. */
import { generateKeyPairSync } from "node:crypto";
import { signingKey, type SigningKey } from "../../src/nix/signing.ts";

/** A new key pair in Nix's form. */
export function newSigningKey(name: string): SigningKey {
  const { privateKey } = generateKeyPairSync("ed25519");
  return signingKey(name, privateKey.export({ type: "pkcs8", format: "pem" }).toString());
}
