import { cpSync, existsSync, mkdirSync, readdirSync, renameSync, symlinkSync } from "node:fs";
import { basename, resolve } from "node:path";
import { execa } from "execa";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { runningSshd } from "../../src/local/processes.ts";
import { machineDirectory } from "../../src/local/plan.ts";
import { processesNaming, TestDeployment } from "../support/engine.ts";

const checkout = resolve(import.meta.dirname, "../..");
// At an address of its own choice, the builder must not stumble over the one that still runs where the checkout was.
const x86 = { name: "x86", provider: "local", system: "x86_64-linux", address: "127.63.9.1", port: 2298 };
const arm = { name: "arm", provider: "local", system: "aarch64-linux" };

describe("a checkout that is moved while its fleet stands", () => {
  let fleet: TestDeployment;
  let before: string;
  let after: string;
  const stackIn = (place: string) => `${place}/.fleet/stacks/${fleet.stack}`;

  beforeEach(async () => {
    fleet = await TestDeployment.create({ builders: [x86, arm] });
    before = `${fleet.project}/before`;
    after = `${fleet.project}/after`;
    mkdirSync(before);
    for (const name of ["src", "components", "package.json", "Pulumi.yaml"]) {
      cpSync(`${checkout}/${name}`, `${before}/${name}`, { recursive: true });
    }
    symlinkSync(`${checkout}/node_modules`, `${before}/node_modules`);
    cpSync(`${fleet.project}/Pulumi.${fleet.stack}.yaml`, `${before}/Pulumi.${fleet.stack}.yaml`);
    expect(await deploy(before, "up")).toBe("done");
    expect(left(before)).not.toEqual([]);
  });
  afterEach(() => fleet.remove());

  const deploy = async (place: string, command: "up" | "destroy"): Promise<string> => {
    const { exitCode, all } = await execa(
      "pulumi",
      [command, "--yes", "--skip-preview", "--suppress-progress", "--color", "never", "--non-interactive"],
      { cwd: place, env: fleet.env, all: true, reject: false, stdin: "ignore" },
    );
    return exitCode === 0 ? "done" : all;
  };
  const left = (place: string): string[] => [
    ...processesNaming(stackIn(place)),
    ...readdirSync("/proc/sys/fs/binfmt_misc").filter((name) => name.startsWith(`nix-builder-fleet-${fleet.stack}-`)),
  ];

  it("goes on where it is now, and nothing where it was", async () => {
    const registration = left(before).at(-1);
    renameSync(before, after);
    expect(await deploy(after, "up")).toBe("done");
    expect(processesNaming(stackIn(before))).toEqual([]);
    expect(left(after)).not.toContain(registration);
    for (const name of ["x86", "arm"]) expect(runningSshd(machineDirectory(stackIn(after), name))).toBeDefined();
    expect(await deploy(after, "destroy")).toBe("done");
    expect(left(after)).toEqual([]);
    expect(existsSync(`${after}/.fleet/stacks`)).toBe(false);
  });

  it("can be destroyed at once", async () => {
    renameSync(before, after);
    expect(await deploy(after, "destroy")).toBe("done");
    expect([...left(before), ...left(after)]).toEqual([]);
    expect(existsSync(`${after}/.fleet/stacks`)).toBe(false);
  });

  it("is left alone by a copy of it, which has builders of its own", async () => {
    fleet.configure({ builders: [{ ...x86, address: undefined }, arm] });
    cpSync(`${fleet.project}/Pulumi.${fleet.stack}.yaml`, `${before}/Pulumi.${fleet.stack}.yaml`);
    expect(await deploy(before, "up")).toBe("done");
    const sshd = runningSshd(machineDirectory(stackIn(before), "x86"));
    cpSync(before, after, { recursive: true, verbatimSymlinks: true });
    expect(await deploy(after, "up")).toBe("done");
    expect(runningSshd(machineDirectory(stackIn(before), "x86"))).toBe(sshd);
    expect(await deploy(after, "destroy")).toBe("done");
    expect(runningSshd(machineDirectory(stackIn(before), "x86"))).toBe(sshd);
    // The two shared one state, as no two checkouts do: what the first made is swept by hand.
    const script = `${before}/src/local/main.ts`;
    const owner = left(before)
      .at(-1)
      ?.replace(/^nix-builder-fleet-(.*)-aarch64$/, "$1");
    await execa(process.execPath, [script, "sweep", stackIn(before), owner ?? basename(before)]);
    expect(left(before)).toEqual([]);
  });

  it("is left alone by the destroy of a copy that came with its state and was never deployed", async () => {
    const state = await fleet.pulumi("stack", "export", "--file", `${fleet.project}/state.json`);
    expect(state.exitCode, state.output).toBe(0);
    const standing = () => ({
      sshds: ["x86", "arm"].map((name) => runningSshd(machineDirectory(stackIn(before), name))),
      registration: left(before).at(-1),
      gone: ["place", "client/id_ed25519", "machines/x86/root", "machines/arm/root"].filter(
        (name) => !existsSync(`${stackIn(before)}/${name}`),
      ),
    });
    const asDeployed = standing();
    expect(asDeployed.gone).toEqual([]);
    cpSync(before, after, { recursive: true, verbatimSymlinks: true });
    expect(await deploy(after, "destroy")).toBe("done");
    expect(standing()).toEqual(asDeployed);
    expect(existsSync(`${after}/.fleet/stacks`)).toBe(false);
    // The two share one state here, as no two checkouts do: the first gets its own back.
    const restored = await fleet.pulumi("stack", "import", "--file", `${fleet.project}/state.json`);
    expect(restored.exitCode, restored.output).toBe(0);
    expect(await deploy(before, "destroy")).toBe("done");
    expect(left(before)).toEqual([]);
    expect(existsSync(`${before}/.fleet/stacks`)).toBe(false);
  });
});
