import * as pulumi from "@pulumi/pulumi";
import { beforeAll, describe, expect, it } from "vitest";
import type { BuilderFleet } from "../../components/builderFleet.ts";
import { parseFleetSpec } from "../../src/fleetSpec.ts";

const measured = `bootId = boot
arch = x86_64
cpus = 7
memoryMiB = 65536
diskMiB = 1000
diskFreeMiB = 900
kvm = false
nixVersion = 2.8.0
nixSystems = x86_64-linux
nixFeatures = big-parallel
sandbox = true
cores = 0
minFree = 0
maxFree = 0
maxStartups =
`;
const hostKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPIQCZc54poJ8vqawd8TraNryQeJnvH1eLpIDgbiqymM";

interface Registered {
  readonly type: string;
  readonly name: string;
  readonly inputs: Record<string, unknown>;
}

const registered: Registered[] = [];

beforeAll(async () => {
  await pulumi.runtime.setMocks(
    {
      newResource: ({ type, name, inputs }) => {
        registered.push({ type, name, inputs: inputs as Record<string, unknown> });
        const key = { privateKeyOpenssh: `PRIVATE ${name}`, publicKeyOpenssh: `${hostKey}\n` };
        const stdout = type.startsWith("command:remote") ? measured : `{"verified":true,"alias":"${name}","seconds":1}`;
        return { id: `${name}-id`, state: { ...(inputs as object), ...(type.startsWith("tls:") ? key : { stdout }) } };
      },
      call: () => ({}),
    },
    "nix-builder-fleet",
    "dev",
  );
});

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

const find = (name: string, type = "command:"): Registered => {
  const found = registered.find((resource) => resource.name === name && resource.type.startsWith(type));
  if (found === undefined) throw new Error(`${type} ${name} was not registered`);
  return found;
};

/** What a secret input looks like to the engine. */
const isSecret = (value: unknown) =>
  typeof value === "object" && value !== null && "4dabf18193072939515e22adb298388d" in value;

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
    for (const { inputs } of remote) expect(JSON.stringify(inputs["connection"])).toContain(hostKey);
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

  it("has a way back for everything that it makes on this machine", () => {
    for (const name of ["workspace", "emulation-aarch64-linux", "x86", "arm", "client-files"]) {
      expect(find(name).inputs["delete"], name).toMatch(/ (sweep|unregister-emulation|remove) /);
    }
  });

  it("tests again what may have changed: specification, host key, generation, client key", () => {
    const triggers = JSON.stringify(find("x86-smoke-test").inputs["triggers"]);
    expect(triggers).toContain(String.raw`\"maxJobs\":3`);
    expect(triggers).toContain(hostKey);
  });

  it("keeps each resource under its component", async () => {
    const urn = await new Promise<string>((done) => void result.fleet.clientIdentity.urn.apply(done));
    expect(urn).toContain("nix-builder-fleet:index:BuilderFleet$nix-builder-fleet:index:SshIdentity::client");
  });
});
