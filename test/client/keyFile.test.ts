/** Key files as ssh-keygen makes them, and an agent that has them open. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { keyProblem } from "../../src/client/keyFile.ts";

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(`${tmpdir()}/key-file-`);
});
afterAll(() => {
  rmSync(directory, { recursive: true });
});

describe.each([
  ["ed25519", ["-t", "ed25519"]],
  ["RSA as PEM", ["-t", "rsa", "-m", "PEM"]],
  ["ECDSA as PKCS8", ["-t", "ecdsa", "-m", "PKCS8"]],
])("a key file: %s", (name, words) => {
  const make = (passphrase: string): string => {
    const path = `${directory}/${name.replaceAll(" ", "-")}-${passphrase}`;
    execFileSync("ssh-keygen", ["-q", ...words, "-N", passphrase, "-f", path]);
    return path;
  };

  it("is fine without a passphrase", () => {
    expect(keyProblem(make(""))).toBeUndefined();
  });

  it("is refused with one, unless an agent has it open; and the remedy works", () => {
    const path = make("secret");
    vi.stubEnv("SSH_AUTH_SOCK", undefined);
    const problem = keyProblem(path) ?? "";
    expect(problem).toMatch(/^has a passphrase, for which Nix can ask nobody/);

    const [, socket = "", pid = ""] =
      /SSH_AUTH_SOCK=(\S+);[^]*SSH_AGENT_PID=(\d+);/.exec(execFileSync("ssh-agent", ["-s"], { encoding: "utf8" })) ??
      [];
    try {
      vi.stubEnv("SSH_AUTH_SOCK", socket);
      expect(keyProblem(path)).toBe(problem);
      const askpass = `${directory}/askpass`;
      writeFileSync(askpass, "#!/bin/sh\necho secret\n", { mode: 0o700 });
      const env = { ...process.env, SSH_ASKPASS: askpass, SSH_ASKPASS_REQUIRE: "force" };
      execFileSync("ssh-add", ["-q", path], { env, stdio: "ignore" });
      expect(keyProblem(path)).toBeUndefined();
    } finally {
      process.kill(Number(pid));
      vi.unstubAllEnvs();
    }

    const [, command = "false"] = /`(ssh-keygen .*?)`/.exec(problem) ?? [];
    execFileSync("sh", ["-c", command.replace("-p ", "-p -P secret ")], { stdio: "ignore" });
    expect(keyProblem(path)).toBeUndefined();
  });
});

describe("what is no key that ssh can read", () => {
  let key: string;
  beforeAll(() => {
    execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", `${directory}/key`]);
    key = readFileSync(`${directory}/key`, "utf8");
  });
  const file = (text: string, mode = 0o600): string => {
    const path = `${mkdtempSync(`${directory}/`)}/id`;
    writeFileSync(path, text, { mode });
    return path;
  };

  it.each<[string, () => string, RegExp]>([
    ["nothing", () => `${directory}/nowhere`, /^isn't there$/],
    ["a folder", () => directory, /^is no file$/],
    ["an empty file", () => file(""), /^holds no private key$/],
    ["a public key", () => file(readFileSync(`${directory}/key.pub`, "utf8")), /^is a public key$/],
    ["a key that others may read", () => file(key, 0o644), /^is open to others, so that ssh refuses it \(chmod 600\)$/],
    ["a key cut off", () => file(key.slice(0, 150)), /^holds no private key that ssh can read$/],
    ["PuTTY's", () => file("PuTTY-User-Key-File-3: ssh-ed25519\n"), /^is PuTTY's kind of key/],
  ])("%s is said to be", (_, path, words) => {
    expect(keyProblem(path())).toMatch(words);
  });

  it.each([
    ["has line ends of Windows", () => key.replaceAll("\n", "\r\n")],
    ["lacks the line end after its last line", () => key.trimEnd()],
  ])("a key that %s is said to, and the remedy works", (words, text) => {
    const path = file(text());
    const problem = keyProblem(path) ?? "";
    expect(problem.startsWith(words)).toBe(true);
    const [, command = "false"] = /\((.*)\)$/.exec(problem) ?? [];
    execFileSync("sh", ["-c", command]);
    expect(keyProblem(path)).toBeUndefined();
  });
});
