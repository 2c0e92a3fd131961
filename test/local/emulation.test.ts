import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { afterEach, describe, expect, it, vi } from "vitest";
import { parseFleetSpec } from "../../src/fleetSpec.ts";
import { emulation, emulationObstacle, registerEmulation, unregisterEmulation } from "../../src/local/emulation.ts";
import { machineDirectory, planLocalBuilders } from "../../src/local/plan.ts";
import { findLocalTools } from "../../src/local/tools.ts";
import { systems, systemOfThisMachine } from "../../src/nix/system.ts";

const native = systemOfThisMachine();
const foreign = systems.find((system) => system !== native) ?? "aarch64-linux";
const owner = `test-${String(process.pid)}`;
const handlers = () => {
  const folder = "/proc/sys/fs/binfmt_misc";
  return existsSync(folder) ? readdirSync(folder).filter((name) => name !== "register" && name !== "status") : [];
};

afterEach(() => {
  vi.restoreAllMocks();
});

describe.skipIf(process.getuid?.() !== 0)("emulation (skipped unless root, who alone may register it)", () => {
  it("makes programs of the other architecture run, and takes back just that", () => {
    const before = handlers();
    if (emulation(owner, foreign) === "machine") {
      expect(before.length).toBeGreaterThan(0);
      return;
    }
    registerEmulation(owner, foreign);
    try {
      registerEmulation(owner, foreign);
      expect(emulation(owner, foreign)).toBe("fleet");
      const busybox = findLocalTools(foreign).shell;
      expect(`${execFileSync(busybox, ["uname", "-m"], { encoding: "utf8" }).trim()}-linux`).toBe(foreign);
    } finally {
      unregisterEmulation(owner, foreign);
    }
    unregisterEmulation(owner, foreign);
    expect(emulation(owner, foreign)).toBe("none");
    expect(handlers()).toEqual(before);
    return undefined;
  });
});

describe("an ordinary user on a machine without emulation", () => {
  it("is told in one line why a builder is left out, and gets the others", async () => {
    vi.spyOn(process, "getuid").mockReturnValue(1000);
    const builders = systems.map((system) => ({ name: system.slice(0, 3), provider: "local", system }));
    const spec = parseFleetSpec(owner, { builders }, "/nowhere");
    const plan = await planLocalBuilders(spec, "/nowhere");
    if (emulationObstacle(owner, foreign) === undefined) {
      expect(plan.leftOut).toEqual([]);
      return;
    }
    expect(plan.spec.builders.map(({ system }) => system)).toEqual([native]);
    expect(plan.leftOut).toEqual([
      expect.stringMatching(
        /^builder '\w+' \(.*-linux\) is left out: .*(qemu-user-static \(Debian 12, Ubuntu\) or qemu-user-binfmt \(Debian 13|no static qemu-user)/,
      ),
    ]);
    expect(plan.emulated).toEqual([]);
    return undefined;
  });

  it("does not lose a builder that is here already, with all it built, when its emulation can't be had any more", async () => {
    vi.spyOn(process, "getuid").mockReturnValue(1000);
    if (emulationObstacle(owner, foreign) === undefined) return;
    const directory = mkdtempSync(`${tmpdir()}/fleet-plan-`);
    mkdirSync(machineDirectory(directory, "arm"), { recursive: true });
    const builders = [
      { name: "x86", provider: "local", system: native },
      { name: "arm", provider: "local", system: foreign },
    ];
    const spec = parseFleetSpec(owner, { builders }, directory);
    await expect(planLocalBuilders(spec, directory)).rejects.toThrow(
      /^builder 'arm' \(.*-linux\) can't go on: .*; mend that, or take the builder out of the configuration/,
    );
    rmSync(directory, { recursive: true });
  });

  it("is told so when no builder is left at all", async () => {
    vi.spyOn(process, "getuid").mockReturnValue(1000);
    if (emulationObstacle(owner, foreign) === undefined) return;
    const spec = parseFleetSpec(owner, { builders: [{ name: "a", provider: "local", system: foreign }] }, "/nowhere");
    await expect(planLocalBuilders(spec, "/nowhere")).rejects.toThrow(/no builder is left:\nbuilder 'a'/);
  });
});
