/** Names that every object has: no verb, form or action takes them for something of its own. */
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { describe, expect, it } from "vitest";
import { writeClient } from "../../src/cli/client.ts";
import { doctor } from "../../src/cli/doctor.ts";
import { chooseBuilders, type UsableFleet } from "../../src/cli/stack.ts";
import { verify } from "../../src/cli/verify.ts";
import { parseFleetSpec } from "../../src/fleetSpec.ts";
import { cachix } from "../../src/nix/caches.ts";
import { systemOfThisMachine } from "../../src/nix/system.ts";
import { ownValue } from "../../src/record.ts";
import { checkout } from "../../tools/launch.mjs";

const fleet: UsableFleet = {
  stack: "dev",
  builders: [],
  verification: { x86: { verified: true, alias: "dev-x86", level: "quick", seconds: 1, cases: [] } },
  measurement: {},
  administration: {},
  clientSettings: { directory: "/etc/nix/fleet", localSystems: [], caches: [], clients: [], trust: "full" },
  clientPrivateKey: "SHARED",
  adminPrivateKey: "ADMIN",
  clientPrivateKeys: {},
  clientSigningKeys: {},
};

describe.each(["toString", "constructor", "__proto__", "hasOwnProperty", "valueOf"])("%s", (name) => {
  const noBuilder = `there is no builder '${name}'; the fleet has x86`;

  it("is no builder that can be verified or examined", async () => {
    expect(() => chooseBuilders(fleet, [name])).toThrow(noBuilder);
    await expect(verify(fleet, [name], { recorded: true })).rejects.toThrow(noBuilder);
    await expect(doctor(fleet, [name], {})).rejects.toThrow(noBuilder);
  });

  it("is no client, form or profile", () => {
    expect(() => writeClient(fleet, { client: name, form: "machines" })).toThrow(
      `client '${name}' is not in the configuration`,
    );
    expect(() => writeClient(fleet, { form: name })).toThrow("form");
    expect(() => writeClient(fleet, { form: "machines", profile: name })).toThrow(`profile '${name}' does not exist`);
  });

  it.each(["local/main.ts", "hcloud/main.ts", "aws/main.ts", "client/main.ts"])("is no action of %s", (script) => {
    const { status, stderr } = spawnSync(process.execPath, [`${checkout}/src/${script}`, name], { encoding: "utf8" });
    expect(stderr).toContain("usage: main.ts");
    expect(status).toBe(1);
  });

  it("is no well-known cache, no key of the configuration, no system, and in no record", () => {
    expect(() => cachix(name)).toThrow(/cachix/);
    expect(() => parseFleetSpec("t", JSON.parse(`{"${name}": 1}`) as Record<string, unknown>, "/nowhere")).toThrow(
      name,
    );
    expect(systemOfThisMachine(name, "linux")).toBeUndefined();
    expect(ownValue({}, name)).toBeUndefined();
    expect(ownValue(JSON.parse(`{"${name}": 1}`) as Record<string, number>, name)).toBe(1);
  });
});

it("a builder and a client may be called constructor", async () => {
  const verdict = { verified: true, alias: "dev-constructor", level: "quick", seconds: 1, cases: [] } as const;
  const named = { ...fleet, verification: { constructor: verdict } } as unknown as UsableFleet;
  expect(chooseBuilders(named, ["constructor"])).toEqual([["constructor", verdict]]);
  expect(await verify(named, ["constructor"], { recorded: true })).toBe(0);
  const settings = {
    ...fleet.clientSettings,
    clients: [{ name: "constructor", localSystems: [], trust: "signed" as const }],
  };
  const directory = mkdtempSync(`${tmpdir()}/names-`);
  try {
    // The fleet has no key by that name, so that it is none of its to write.
    const written = writeClient({ ...fleet, clientSettings: settings }, { client: "constructor", directory });
    expect(written).toMatchObject({ needsOwnKey: true });
    expect(existsSync(`${directory}/id_ed25519`)).toBe(false);
  } finally {
    rmSync(directory, { recursive: true });
  }
});
