/** Generates a key pair and writes it in every form that `tls.PrivateKey` has as output. */
import { type KeyObject, createHash, generateKeyPairSync } from "node:crypto";
import sshpk from "sshpk";
import type { KeyParameters } from "./plugin.ts";

/** All texts in PEM and OpenSSH form end with a line end. */
export interface GeneratedKey {
  /** Of the public key in DER form: see `keyId`. */
  id: string;
  /** PKCS#1 for RSA, SEC1 for ECDSA, PKCS#8 for ED25519. */
  privateKeyPem: string;
  privateKeyPemPkcs8: string;
  /** Empty for ECDSA with the curve P224, which OpenSSH doesn't have; so are the OpenSSH forms of the public key. */
  privateKeyOpenssh: string;
  publicKeyPem: string;
  publicKeyOpenssh: string;
  /** Pairs of hexadecimal digits with colons between them, without "MD5:". */
  publicKeyFingerprintMd5: string;
  /** With "SHA256:". */
  publicKeyFingerprintSha256: string;
}

export function generateKey(parameters: KeyParameters): GeneratedKey {
  const { publicKey, privateKey } = keyPair(parameters);
  const pkcs8 = privateKey.export({ type: "pkcs8", format: "pem" }).toString();
  return {
    id: keyId(publicKey.export({ type: "spki", format: "der" })),
    privateKeyPem: privateKey.export({ type: PEM_TYPE[parameters.algorithm], format: "pem" }).toString(),
    privateKeyPemPkcs8: pkcs8,
    publicKeyPem: publicKey.export({ type: "spki", format: "pem" }).toString(),
    ...(parameters.algorithm === "ECDSA" && parameters.ecdsaCurve === "P224" ? NO_OPENSSH : opensshForms(pkcs8)),
  };
}

/**
 * SHA-1 in hexadecimal, of the bytes without what is white space at their end when taken for UTF-8: terraform-provider-tls
 * takes them for a text and trims it (`hashForState`). At their beginning there is none: DER starts with the byte of "0".
 */
export function keyId(der: Buffer): string {
  return createHash("sha1").update(der.toString("latin1").replace(WHITE_SPACE_AT_END, ""), "latin1").digest("hex");
}

/** Unicode's property White_Space, as Go's strings.TrimSpace has it, each character of the pattern being one byte. */
const WHITE_SPACE_AT_END =
  /(?:[\t-\r ]|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80)+$/;

const PEM_TYPE = { RSA: "pkcs1", ECDSA: "sec1", ED25519: "pkcs8" } as const;
const NO_OPENSSH = {
  privateKeyOpenssh: "",
  publicKeyOpenssh: "",
  publicKeyFingerprintMd5: "",
  publicKeyFingerprintSha256: "",
};

function keyPair({ algorithm, ecdsaCurve, rsaBits }: KeyParameters): { publicKey: KeyObject; privateKey: KeyObject } {
  if (algorithm === "RSA") return generateKeyPairSync("rsa", { modulusLength: rsaBits });
  if (algorithm === "ECDSA") return generateKeyPairSync("ec", { namedCurve: ecdsaCurve.replace("P", "P-") });
  return generateKeyPairSync("ed25519");
}

function opensshForms(pkcs8: string): typeof NO_OPENSSH {
  const key = sshpk.parsePrivateKey(pkcs8, "pkcs8");
  key.comment = "";
  const blob = key.toPublic().toBuffer("rfc4253");
  const type = blob.subarray(4, 4 + blob.readUInt32BE(0)).toString();
  return {
    privateKeyOpenssh: key.toString("ssh"),
    publicKeyOpenssh: `${type} ${blob.toString("base64")}\n`,
    publicKeyFingerprintMd5: createHash("md5").update(blob).digest("hex").match(/../g)?.join(":") ?? "",
    publicKeyFingerprintSha256: `SHA256:${createHash("sha256").update(blob).digest("base64").replace(/=+$/, "")}`,
  };
}
