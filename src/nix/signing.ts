/** Keys that sign store paths, in Nix's own form. */
import { createPrivateKey } from "node:crypto";
import { InvalidValue } from "./invalidValue.ts";

/** A key pair as Nix reads it. */
export interface SigningKey {
  /** `NAME:BASE64`, the base64 of seed and public key: the one line of a file that `secret-key-files` names. */
  readonly secretKey: string;
  /** `NAME:BASE64` as in `trusted-public-keys`. */
  readonly publicKey: string;
}

/**
 * @param name What its signatures are called: letters, digits and hyphens.
 * @param pem An ed25519 private key, PKCS #8.
 * @throws InvalidValue for another name, Error for another kind of key
 */
export function signingKey(name: string, pem: string): SigningKey {
  if (!/^[a-z][a-z0-9-]*$/.test(name))
    throw new InvalidValue("signing key", name, "lower-case letters, digits and hyphens");
  const { crv, d, x } = createPrivateKey(pem).export({ format: "jwk" });
  if (crv !== "Ed25519" || d === undefined || x === undefined)
    throw new Error(`the signing key ${name} is not ed25519`);
  const [seed, publicPart] = [Buffer.from(d, "base64url"), Buffer.from(x, "base64url")];
  return {
    secretKey: `${name}:${Buffer.concat([seed, publicPart]).toString("base64")}`,
    publicKey: `${name}:${publicPart.toString("base64")}`,
  };
}
