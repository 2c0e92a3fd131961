import { describe, expect, it } from "vitest";
import { describeEvent } from "../../tools/deployment.ts";

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
    [
      "a verified one",
      step("create-replacement", `${fleet}$nix-builder-fleet:index:SmokeTest$command:local:Command`, "x86-smoke-test"),
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
  ])("tells of %s", (_, event, text) => {
    expect(describeEvent(event)).toBe(text);
  });

  it.each([
    ["what stays", step("same", `${fleet}$command:local:Command`, "x86")],
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
