import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { checkHostKey, toHostKey, toPublicHostKey } from "../../src/ssh/hostKey.ts";
import { temporaryDirectory } from "../nix/realNix.ts";

const line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPIQCZc54poJ8vqawd8TraNryQeJnvH1eLpIDgbiqymM";

test.each(["ed25519", "ecdsa", "rsa"])("a %s key made by ssh-keygen goes through all encodings", (type) => {
  using directory = temporaryDirectory();
  const file = `${directory.path}/key`;
  execFileSync("ssh-keygen", ["-q", "-t", type, "-N", "", "-C", "root@some host", "-f", file]);
  const hostKey = checkHostKey(readFileSync(`${file}.pub`, "utf8"));
  expect(hostKey.split(" ")).toHaveLength(2);
  expect(toHostKey(toPublicHostKey(hostKey))).toBe(hostKey);
});

test("base64 -w0 of the .pub file, which nixpkgs asks for, is understood", () => {
  expect(toHostKey(Buffer.from(`${line} root@builder\n`).toString("base64"))).toBe(line);
});

test.each([
  ["nothing", ""],
  ["the key without its type", line.split(" ")[1] ?? ""],
  ["another type before the same key", line.replace("ssh-ed25519", "ssh-rsa")],
  ["an unknown type", line.replace("ssh-ed25519", "ssh-dss")],
  ["a key cut short", line.slice(0, -4)],
  ["a key with more behind it", `${line}AAAA`],
  ["two lines", `${line}\n${line}`],
  ["a line for another host hidden behind the comment", `${line} x\n* ${line}`],
  ["a known_hosts line", `x86 ${line}`],
  ["options before it", `restrict ${line}`],
  ["a private key", "-----BEGIN OPENSSH PRIVATE KEY-----"],
])("%s is refused", (_, text) => {
  expect(() => checkHostKey(text)).toThrow(expect.objectContaining({ field: "hostKey" }) as Error);
  expect(() => toHostKey(Buffer.from(text).toString("base64"))).toThrow(
    expect.objectContaining({ field: "publicHostKey" }) as Error,
  );
});

test("a host key where its base64 belongs is refused", () => {
  expect(() => toHostKey(line)).toThrow(/publicHostKey is .* but allowed is the base64 of an OpenSSH public host key/);
});
