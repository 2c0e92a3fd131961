import * as pulumi from "@pulumi/pulumi";
import { beforeAll, describe, expect, it } from "vitest";
import type { BuilderFleet } from "../../components/builderFleet.ts";
import { parseFleetSpec } from "../../src/fleetSpec.ts";
import { generationVariable } from "../../src/local/generation.ts";
import { hostKey, MockEngine, publicKeyOf, secretMark, type Registered } from "../support/mockEngine.ts";

const engine = new MockEngine();
const { registered } = engine;

beforeAll(() => engine.start());

async function deploy(): Promise<{ fleet: BuilderFleet; builders: unknown; verification: unknown }> {
  const { BuilderFleet: Fleet } = await import("../../components/builderFleet.ts");
  const spec = parseFleetSpec(
    "dev",
    {
      builders: [
        { name: "x86", provider: "local", system: "x86_64-linux", maxJobs: 3 },
        { name: "arm", provider: "local", system: "aarch64-linux" },
        { name: "own", provider: "existing", system: "aarch64-linux", address: "::1", hostKey, sshKey: "/keys/own" },
      ],
    },
    "/checkout",
  );
  const fleet = new Fleet("dev", { spec, emulated: ["aarch64-linux"], directory: "/checkout/.fleet/stacks/dev" });
  const settle = <T>(output: pulumi.Output<T>) => new Promise<T>((done) => void output.apply(done));
  return { fleet, builders: await settle(fleet.buildMachines), verification: await settle(fleet.verification) };
}

const find = (name: string, type = "command:"): Registered => engine.find(name, type);

/** What a secret input looks like to the engine. */
const isSecret = (value: unknown) => typeof value === "object" && value !== null && secretMark in value;

describe("the fleet's wiring", () => {
  let result: Awaited<ReturnType<typeof deploy>>;
  beforeAll(async () => {
    registered.length = 0;
    result = await deploy();
  });

  it("tells clients of each builder what was configured, and what was measured where nothing was", () => {
    expect(result.builders).toMatchObject([
      { alias: "dev-x86", maxJobs: 3, speedFactor: 7, systems: ["x86_64-linux"] },
      { alias: "dev-arm", maxJobs: 7, speedFactor: 1, systems: ["aarch64-linux"] },
      { alias: "dev-own", maxJobs: 1, hostName: "::1", port: 22, sshKey: "/keys/own" },
    ]);
  });

  it("puts every builder to the smoke test, after the client's files are written", () => {
    expect(Object.keys(result.verification as object)).toEqual(["x86", "arm", "own"]);
    const names = registered.filter(({ type }) => type.startsWith("command:")).map(({ name }) => name);
    for (const name of ["x86", "arm", "own"]) {
      expect(names.indexOf(`${name}-smoke-test`)).toBeGreaterThan(names.lastIndexOf("client-files"));
    }
  });

  it("pins the host key on every administrative connection, and has none to a host that isn't the fleet's", () => {
    const remote = registered.filter(({ type }) => type.startsWith("command:remote"));
    expect(remote.map(({ name }) => name)).toEqual(["x86-measurement", "arm-measurement"]);
    for (const name of ["x86", "arm"]) {
      const { connection } = find(`${name}-measurement`, "command:remote").inputs;
      expect(JSON.stringify(connection)).toContain(`"hostKey":"${publicKeyOf(`${name}-host-key`)}"`);
    }
  });

  it("sends private keys by standard input alone, as secrets", () => {
    for (const { name, type, inputs } of registered.filter(({ type }) => type === "command:local:Command")) {
      const { stdin, ...rest } = inputs;
      expect(JSON.stringify(rest), `${type} ${name}`).not.toContain("PRIVATE");
      if (JSON.stringify(stdin ?? "").includes("PRIVATE")) expect(isSecret(stdin), name).toBe(true);
    }
    expect(JSON.stringify(find("client-files").inputs["stdin"])).toContain("PRIVATE client");
    expect(JSON.stringify(find("client-files").inputs["stdin"])).not.toContain("PRIVATE admin");
  });

  it("has standard error alone logged, which scripts cut into lines that every plugin can log", () => {
    for (const { name, inputs } of registered.filter(({ type }) => type === "command:local:Command"))
      expect([name, inputs["logging"]]).toEqual([name, "stderr"]);
    for (const { name, inputs } of registered.filter(({ type }) => type === "command:remote:Command"))
      expect([name, inputs["logging"]]).toEqual([name, "none"]);
  });

  it("has a way back for everything that it makes on this machine", () => {
    for (const name of ["workspace", "emulation-aarch64-linux", "x86", "arm", "client-files"]) {
      expect(find(name).inputs["delete"], name).toMatch(/ (sweep|unregister-emulation|remove) /);
    }
  });

  it("tests again what may have changed: specification, host key, generation, client key", () => {
    const environment = find("x86").inputs["environment"] as Record<string, string>;
    const ofMachine = [
      expect.stringContaining('"maxJobs":3') as unknown,
      publicKeyOf("x86-host-key"),
      environment[generationVariable],
    ];
    expect(find("x86-measurement").inputs["triggers"]).toEqual(expect.arrayContaining(ofMachine));
    const ofTest = [...ofMachine, publicKeyOf("client")];
    expect(find("x86-smoke-test").inputs["triggers"]).toEqual(expect.arrayContaining(ofTest));
  });

  it("keeps each resource under its component", () => {
    const fleet = [
      ...["Workspace workspace", "LocalEmulation emulation-aarch64-linux", "ClientDirectory client-files"],
      ...["LocalMachine x86", "LocalMachine arm", "ExistingMachine own"],
      ...["x86", "arm", "own"].map((name) => `Command ${name}-smoke-test`),
      ...["x86", "arm"].map((name) => `Command ${name}-measurement`),
      ...["PrivateKey client", "PrivateKey admin", "PrivateKey builders-signing", "PrivateKey client-signing"],
    ];
    expect(Object.fromEntries(engine.parents)).toEqual({
      "BuilderFleet dev": "",
      ...Object.fromEntries(fleet.map((resource) => [resource, "BuilderFleet dev"])),
      "Command workspace": "Workspace workspace",
      "Command workspace-place": "Workspace workspace",
      "Command emulation-aarch64-linux": "LocalEmulation emulation-aarch64-linux",
      "Command client-files": "ClientDirectory client-files",
      "PrivateKey x86-host-key": "LocalMachine x86",
      "PrivateKey arm-host-key": "LocalMachine arm",
      "Command x86": "LocalMachine x86",
      "Command arm": "LocalMachine arm",
    });
  });
});
