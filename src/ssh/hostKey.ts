/**
 * A builder's public host key in its three encodings.
 *
 * `hostKey`: the OpenSSH line, `ssh-ed25519 AAAA…`. `publicHostKey`: that line in base64, as Nix wants it. `knownHosts`: lines
 * of host names and `hostKey`, as ssh wants them (`knownHosts.ts`).
 */
import { InvalidValue } from "../nix/invalidValue.ts";

/** Key types that sshd offers without certificates. DSA is left out: OpenSSH refuses it by default since 7.0. */
const keyTypes = ["ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa"];

/** Key types that a client may log in with: those of security keys (FIDO) besides. `nixos/builder.nix` lists what signs with them. */
export const clientKeyTypes = [...keyTypes, "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"];

/**
 * The OpenSSH line in its shortest form: type and key, without comment and line end.
 *
 * The comment goes because it is free text, and because two files of one key must pin the same thing.
 *
 * @param field name of the value in an error
 * @throws InvalidValue if it isn't exactly one public key line whose inner type is the one that it says
 */
export function checkHostKey(hostKey: string, field = "hostKey"): string {
  return checkPublicKey(hostKey, field, keyTypes);
}

/**
 * The same for the key that a client logs in with, which may also live in a security key.
 *
 * @throws InvalidValue as `checkHostKey`
 */
export function checkClientKey(publicKey: string, field = "publicKey"): string {
  return checkPublicKey(publicKey, field, clientKeyTypes);
}

/**
 * `hostKey` → `publicHostKey`, like `base64 -w0 ssh_host_ed25519_key.pub` without the comment.
 *
 * @throws InvalidValue as `checkHostKey`
 */
export function toPublicHostKey(hostKey: string, field?: string): string {
  return Buffer.from(checkHostKey(hostKey, field)).toString("base64");
}

/**
 * `publicHostKey` → `hostKey`.
 *
 * @throws InvalidValue if it isn't base64 or doesn't hold a public key line
 */
export function toHostKey(publicHostKey: string, field = "publicHostKey"): string {
  const line = decodeBase64(publicHostKey);
  if (line === undefined || publicHostKey.length > 8192) {
    throw new InvalidValue(field, publicHostKey, "the base64 of an OpenSSH public host key line");
  }
  return checkHostKey(line.toString("utf8"), field);
}

function checkPublicKey(publicKey: string, field: string, types: readonly string[]): string {
  const line = publicKey.replace(/\r?\n$/, "");
  const [type, key] = line.split(/[ \t]+/);
  const oneLine = !/[\r\n\0]/.test(line);
  if (oneLine && type !== undefined && types.includes(type) && key !== undefined && keyTypeOf(key) === type) {
    return `${type} ${key}`;
  }
  throw new InvalidValue(
    field,
    publicKey,
    `one OpenSSH public key line: a type (${types.join(", ")}), a space, the key in base64`,
  );
}

/** The type that stands inside the key's own encoding (RFC 4253, 6.6), or `undefined` where there is none. */
function keyTypeOf(key: string): string | undefined {
  const bytes = decodeBase64(key);
  if (bytes === undefined || bytes.length < 4) return undefined;
  const end = 4 + bytes.readUInt32BE(0);
  const type = bytes.subarray(4, end).toString("latin1");
  const wholeEd25519 = type !== "ssh-ed25519" || (bytes.length === end + 36 && bytes.readUInt32BE(end) === 32);
  return end < bytes.length && wholeEd25519 ? type : undefined;
}

/** Node decodes anything; this takes only what encodes back to the same text. */
function decodeBase64(text: string): Buffer | undefined {
  const bytes = Buffer.from(text, "base64");
  return text !== "" && bytes.toString("base64") === text ? bytes : undefined;
}
