import { describe, expect, it } from "vitest";
import { describeEvent, describeRefusal } from "../../tools/deployment.ts";

const step = (op: string, types: string, name: string) => ({
  resOutputsEvent: { metadata: { op, urn: `urn:pulumi:dev::nix-builder-fleet::${types}::${name}` } },
});
const fleet = "nix-builder-fleet:index:BuilderFleet";

describe("the progress of a deployment", () => {
  it.each([
    [
      "a started builder",
      step("create", `${fleet}$nix-builder-fleet:index:LocalMachine$command:local:Command`, "x86"),
      "x86: sshd started",
    ],
    ["a key pair", step("create", `${fleet}$tls:index/privateKey:PrivateKey`, "client"), "client: key pair made"],
    [
      "a server, which has no NixOS yet",
      step("create", `${fleet}$nix-builder-fleet:index:HcloudMachine$hcloud:index/server:Server`, "arm"),
      "arm: server made",
    ],
    [
      "NixOS on it",
      step("create", `${fleet}$nix-builder-fleet:index:HcloudMachine$command:local:Command`, "arm-nixos"),
      "arm-nixos: NixOS ready",
    ],
    [
      "a measured one",
      step("update", `${fleet}$command:remote:Command`, "x86-measurement"),
      "x86-measurement: measured",
    ],
    [
      "a verified one",
      step("create-replacement", `${fleet}$command:local:Command`, "x86-smoke-test"),
      "x86-smoke-test: passed",
    ],
    [
      "what goes",
      step("delete", `${fleet}$nix-builder-fleet:index:LocalMachine$command:local:Command`, "x86"),
      "x86: removed",
    ],
    [
      "an error",
      { diagnosticEvent: { severity: "error", message: "builder x86 is not verified\n" } },
      "error: builder x86 is not verified",
    ],
    [
      "an error with a builder's words in it",
      { diagnosticEvent: { severity: "error", message: "x:\n\u001b[2Jb\u202e\n    1.0 s  arm: verified\n" } },
      "error: x:\n  | b\uFFFD\n  |     1.0 s  arm: verified",
    ],
  ])("tells of %s", (_, event, text) => {
    expect(describeEvent(event)).toBe(text);
  });

  it.each([
    ["what stays", step("same", `${fleet}$command:local:Command`, "x86")],
    [
      "the stack's folder",
      step("create", `${fleet}$nix-builder-fleet:index:Workspace$command:local:Command`, "workspace-place"),
    ],
    ["components, which do nothing themselves", step("create", fleet, "dev")],
    ["the old half of a replacement", step("delete-replaced", `${fleet}$command:local:Command`, "x86")],
    ["debugging", { diagnosticEvent: { severity: "debug", message: "…" } }],
    [
      "what set-up has said already",
      { diagnosticEvent: { severity: "warning", message: "using pulumi-resource-tls from $PATH at /x\n" } },
    ],
  ])("is silent on %s", (_, event) => {
    expect(describeEvent(event)).toBeUndefined();
  });
});

describe("a deployment that can't begin", () => {
  const env = { PULUMI_STACK: "dev", PULUMI_CONFIG_PASSPHRASE: "x" };

  it("names the process that it has to wait for", () => {
    const said =
      "error: the stack is currently locked by 1 lock(s). Either wait for the other process(es) to end or delete the " +
      "lock file with `pulumi cancel`.\n  file:///x/.pulumi/locks/organization/nix-builder-fleet/dev/a.json?no_tmp_dir=true: " +
      "created by root@vm-1 (pid 12599) at 2026-11-23T14:00:00Z";
    expect(describeRefusal(said, env)).toMatch(
      /^Nothing was begun: stack dev is locked by process 12599 of root on vm-1 since 2026-11-23T14:00:00Z; .*`npm run pulumi -- cancel --yes --stack dev`\.$/,
    );
  });

  it("says what to do about a wrong passphrase", () => {
    expect(describeRefusal("error: getting stack configuration: incorrect passphrase", env)).toMatch(
      /^The passphrase in PULUMI_CONFIG_PASSPHRASE is not the one that stack dev is encrypted with: /,
    );
  });

  it("says anything else in the CLI's words", () => {
    expect(describeRefusal("error: no such backend", env)).toBe("error: no such backend");
  });
});
