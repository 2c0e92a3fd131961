import { describe, expect, it } from "vitest";
import { quoted } from "../../src/machineText.ts";
import { explainFailure, type LoginKey } from "../../src/smoke/failure.ts";

/** Messages as Nix 2.8 to 2.34 and OpenSSH 9 print them. */
describe("the reason of a failed build, in words", () => {
  it.each<[string, string, boolean]>([
    ["Host key verification failed.\r\nerror: failed to start SSH connection to 'x86'", "another host key", false],
    ["root@127.0.0.9: Permission denied (publickey).\nerror: cannot connect to 'root@x86'", "refuses the key", false],
    [
      "ssh: connect to host 127.0.0.9 port 22: Connection refused\nerror: failed to start SSH connection",
      "nothing listens",
      true,
    ],
    ["ssh: connect to host 192.0.2.1 port 22: Connection timed out", "over the network", true],
    [
      "kex_exchange_identification: read: Connection reset by peer\nConnection reset by 127.0.0.9 port 22",
      "takes connections and drops them",
      true,
    ],
    ["ssh: Could not resolve hostname nowhere: Name or service not known", "does not resolve", true],
    ['Load key "/k": error in libcrypto\nroot@h: Permission denied (publickey).', "can't use the private key", false],
    [
      "error: a 'aarch64-linux' with features {} is required to build '/nix/store/x.drv', but I am a 'x86_64-linux' with features {}",
      "check `system`",
      false,
    ],
    ["error: cannot add path '/nix/store/x' because it lacks a valid signature", "set `trust: signed`", false],
    ["error: cannot add path '/nix/store/x' because it lacks a signature by a trusted key", "`nix store sign`", false],
    ["error: you are not privileged to build input-addressed derivations", "Nix 2.16 or newer on both sides", false],
    [
      "error: cannot open connection to remote store 'ssh-ng://root@x86': error: Nix daemon disconnected unexpectedly (maybe it crashed?)",
      "no Nix answers",
      true,
    ],
    [
      "warning: unable to download 'https://c/nix-cache-info': Could not resolve hostname (6)\nerror: Cannot build '/nix/store/x.drv'.\n       Reason: platform mismatch",
      "check `system`",
      false,
    ],
    ["error: protocol mismatch with 'x86'", "no Nix answers", true],
    ["error: cloning builder process: Operation not permitted", "user namespaces", false],
    ["error: clone() failed: Operation not permitted", "user namespaces", false],
    [
      "error: this system does not support the kernel namespaces that are required for sandboxing; use '--no-sandbox' to disable sandboxing",
      "apparmor_restrict_unprivileged_userns",
      false,
    ],
    [
      "error: cannot perform a sandboxed build because user namespaces are not enabled; check /proc/sys/user/max_user_namespaces",
      "user.max_user_namespaces",
      false,
    ],
    ["error: setting up a private mount namespace: Operation not permitted", "build sandbox", false],
    ["error: unable to make '/' private: Permission denied", "build sandbox", false],
    ["error: opening file '/proc/4711/uid_map': Permission denied", "build sandbox", false],
    ["error: opening lock file '/nix/var/nix/db/big-lock': Permission denied", "may not write to its store", false],
    ["error: creating directory '/nix/store': Permission denied", "may not write to its store", false],
    [
      "bash: /home/me/fleet/.fleet/stacks/dev/machines/x86/nix-ssh: Permission denied\nerror: cannot open connection to remote store 'ssh-ng://me@dev-x86': error: unexpected end-of-file",
      "noexec",
      false,
    ],
    ["sh: 1: /mnt/nix-ssh: Permission denied\nerror: protocol mismatch with 'me@dev-x86'", "noexec", false],
    [
      "error: cannot connect to socket at '/nix/var/nix/daemon-socket/socket': Connection refused",
      "a running daemon",
      true,
    ],
    [
      "me@127.0.0.9: Permission denied (publickey,gssapi-with-mic,keyboard-interactive).\nerror: cannot connect to 'me@x86'",
      "refuses the key",
      false,
    ],
    ["error: writing to file: No space left on device", "disk is full", false],
  ])("%s", (output, reason, mayPass) => {
    const failure = explainFailure(output, "client");
    expect(failure.reason).toContain(reason);
    expect(failure.mayPass).toBe(mayPass);
  });

  it.each([
    [
      "cannot build on 'ssh-ng://root@t': error: cannot open connection to remote store 'ssh-ng://root@t': error: protocol mismatch, got 'Welcome\n              Connection timed out'\nFailed to find a machine for remote build!\nderivation: x.drv",
      "  | Welcome\n  | Connection timed out",
    ],
    [
      "error: 'nix-store --serve' protocol mismatch from 't', got 'Welcome\n       \uFFFD\uFFFDRT\uFFFD'",
      "  | Welcome",
    ],
    ["error: cannot open connection to remote store 'ssh-ng://t': error: protocol mismatch, got 'hioixd", "  | hi"],
  ])("quotes what a login printed where Nix should answer, whatever it says: %s", (said, printed) => {
    const { reason, mayPass } = explainFailure(said, "client");
    expect(reason).toContain("~/.bashrc");
    expect(reason.endsWith(`It printed:\n${printed}`), reason).toBe(true);
    expect(mayPass).toBe(false);
  });

  it.each<[LoginKey, string]>([
    ["client", "stack output clientPublicKey"],
    ["administrator", "it refuses the administrator's key, which a deployment gives it"],
    [{ file: "/k" }, "it refuses the key /k (`sshKey`). The builder must have what `ssh-keygen -y -f /k` prints"],
  ])("says of the key that was refused what to do about that one: %j", (key, words) => {
    const { reason } = explainFailure("me@127.0.0.9: Permission denied (publickey).", key);
    expect(reason).toContain(words);
    expect(reason.includes("clientPublicKey")).toBe(key === "client");
  });

  it("does not blame the sandbox for a build that clones something", () => {
    const { reason } = explainFailure(
      "Cloning into 'source'...\nerror: git clone failed\nerror: builder failed",
      "client",
    );
    expect(reason).not.toContain("sandbox");
  });

  it("blames neither ssh nor the store for what a build was denied", () => {
    const said = "touch: cannot touch '/etc/x': Permission denied\nerror: builder failed with exit code 1";
    expect(explainFailure(said, "client").reason).toBe(`Nix said:\n${quoted(said)}`);
    const refused = "curl: (7) Failed to connect to 127.0.0.1 port 80: Connection refused\nerror: builder failed";
    expect(explainFailure(refused, "client").reason).toBe(`Nix said:\n${quoted(refused)}`);
  });

  it("shows the last lines of what it doesn't know", () => {
    expect(explainFailure("one\ntwo\nthree\nfour\nfive\n", "client").reason).toBe(
      "Nix said:\n  | two\n  | three\n  | four\n  | five",
    );
    expect(explainFailure("", "client").reason).toBe("Nix failed without a word");
  });
});
