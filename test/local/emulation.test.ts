import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { parseFleetSpec } from "../../src/fleetSpec.ts";
import { emulation, emulationObstacle, registerEmulation, unregisterEmulation } from "../../src/local/emulation.ts";
import { machineDirectory, planLocalBuilders, type LocalPlan } from "../../src/local/plan.ts";
import { findLocalTools, findQemu } from "../../src/local/tools.ts";
import { kernelArch, systems, systemOfThisMachine, type System } from "../../src/nix/system.ts";

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
  it("makes programs of the other architecture run, and takes back just that", ({ skip }) => {
    skip(emulation(owner, foreign) === "machine", "the machine emulates by itself");
    const before = handlers();
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
  });
});

describe("binfmt_misc itself (in a namespace of its own)", () => {
  const obstacle = namespaceObstacle();
  const fleet = (action: string, name: string) =>
    `${process.execPath} --disable-warning=ExperimentalWarning src/local/main.ts ${action}-emulation ${name} ${foreign}`;
  const mounted = "[ -e /proc/sys/fs/binfmt_misc/register ]";
  const mark = "/run/nix-builder-fleet/binfmt-mounted";

  it("is mounted by the first fleet that needs it, and unmounted by the last one that goes", ({ skip }) => {
    skip(obstacle !== undefined, obstacle);
    inNamespace(
      fleet("register", "a"),
      fleet("register", "b"),
      mounted,
      fleet("unregister", "a"),
      mounted,
      fleet("unregister", "b"),
      `! ${mounted}`,
      "[ ! -e /run/nix-builder-fleet ]",
    );
  });

  it("is left mounted where the machine mounted it itself", ({ skip }) => {
    skip(obstacle !== undefined, obstacle);
    const mount = "mount -t binfmt_misc none /proc/sys/fs/binfmt_misc";
    inNamespace(mount, fleet("register", "a"), fleet("unregister", "a"), mounted);
  });

  it("counts as the machine's when the fleet's mark is of another boot; without a mount nothing is in the way of a destroy", ({
    skip,
  }) => {
    skip(obstacle !== undefined, obstacle);
    const mount = "mount -t binfmt_misc none /proc/sys/fs/binfmt_misc";
    const oldMark = `mkdir -p /run/nix-builder-fleet; echo another boot > ${mark}`;
    inNamespace(oldMark, mount, fleet("unregister", "a"), mounted, `[ ! -e ${mark} ]`);
    inNamespace(oldMark, fleet("unregister", "a"), `[ ! -e ${mark} ]`);
    const markOfNow = `mkdir -p /run/nix-builder-fleet; cat /proc/sys/kernel/random/boot_id > ${mark}`;
    inNamespace(markOfNow, fleet("unregister", "a"), `[ ! -e ${mark} ]`);
  });

  it("takes registrations of builders that start at the same moment, of one fleet and of several", ({ skip }) => {
    skip(obstacle !== undefined, obstacle);
    const atOnce = (...owners: string[]) =>
      `${process.execPath} --disable-warning=ExperimentalWarning test/support/registerAtOnce.ts ${foreign} ${owners.join(" ")}`;
    const rounds = Array.from({ length: 5 }, () => [atOnce("a", "a", "a", "a"), atOnce("a", "b", "c", "d")]);
    inNamespace(...rounds.flat(), `! ${mounted}`);
  });
});

/** Runs each command as root of a namespace in which nothing is registered or mounted, and that ends with it. */
function inNamespace(...commands: readonly string[]): void {
  const binfmt = "/proc/sys/fs/binfmt_misc";
  const bare = `while umount ${binfmt} 2>/dev/null; do :; done; exec unshare --user --map-root-user --mount sh -c "$1"`;
  const steps = ["mount -t tmpfs none /run", ...commands].map(
    (step) => `${step} || { echo '${step}: failed' >&2; exit 1; }`,
  );
  execFileSync("unshare", ["--mount", "sh", "-c", bare, "sh", steps.join("\n")], { stdio: "pipe" });
}

/** Why there can be no such namespace here; `undefined`: there can. */
function namespaceObstacle(): string | undefined {
  if (process.getuid?.() !== 0) return "only root may take binfmt_misc away from a namespace";
  if (findQemu(foreign) === undefined) return "there is no static qemu-user";
  try {
    inNamespace("mount -t binfmt_misc none /proc/sys/fs/binfmt_misc");
    return undefined;
  } catch (error) {
    return `a namespace can't have a binfmt_misc of its own (Linux before 6.7): ${error instanceof Error ? error.message : ""}`;
  }
}

describe("the plan, on a machine of either architecture", () => {
  const cache = mkdtempSync(`${tmpdir()}/fleet-cache-`);
  const bin = `${cache}/nix-builder-fleet/bin`;
  beforeEach(() => {
    mkdirSync(bin, { recursive: true });
    vi.stubEnv("XDG_CACHE_HOME", cache);
    const path = (process.env["PATH"] ?? "").split(delimiter);
    vi.stubEnv("PATH", path.filter((folder) => !folder.endsWith("/nix-builder-fleet/bin")).join(delimiter));
    // Another machine's tools: there for the plan, which runs none of them.
    for (const arch of systems.map(kernelArch)) {
      for (const program of [`qemu-${arch}-static`, `busybox-${arch}`])
        writeFileSync(`${bin}/${program}`, "", { mode: 0o755 });
    }
  });
  afterEach(() => {
    vi.unstubAllEnvs();
    rmSync(cache, { recursive: true });
  });

  const plan = (native: System) => {
    const builders = systems.map((system) => ({ name: kernelArch(system).slice(0, 3), provider: "local", system }));
    return planLocalBuilders(parseFleetSpec(owner, { builders }, "/nowhere"), "/nowhere", native);
  };
  const kept = ({ spec }: LocalPlan) =>
    spec.builders.map((builder) => (builder.provider === "local" ? builder.system : undefined));

  describe.each([
    ["x64", "x86_64-linux", "aarch64-linux"],
    ["arm64", "aarch64-linux", "x86_64-linux"],
  ] as const)("%s", (arch, own, other) => {
    it(`builds for ${own} itself, and emulates ${other}`, async ({ skip }) => {
      skip(emulation(owner, other) === "machine", `programs of ${other} run here without the fleet`);
      vi.spyOn(process, "getuid").mockReturnValue(0);
      expect(systemOfThisMachine(arch, "linux")).toBe(own);
      const found = await plan(own);
      expect(kept(found)).toEqual(systems);
      expect(found).toMatchObject({ leftOut: [], emulated: [other] });
    });

    it(`leaves ${other} out for an ordinary user`, async ({ skip }) => {
      skip(emulation(owner, other) === "machine", `programs of ${other} run here without the fleet`);
      vi.spyOn(process, "getuid").mockReturnValue(1000);
      const found = await plan(own);
      expect(kept(found)).toEqual([own]);
      expect(found.leftOut).toEqual([expect.stringContaining(`(${other}) is left out: only root may register`)]);
      expect(found.emulated).toEqual([]);
    });

    it(`has no builder for ${other} without its qemu`, async ({ skip }) => {
      skip(emulation(owner, other) === "machine", `programs of ${other} run here without the fleet`);
      rmSync(`${bin}/qemu-${kernelArch(other)}-static`);
      skip(findQemu(other) !== undefined, "the machine has its own");
      vi.spyOn(process, "getuid").mockReturnValue(0);
      const found = await plan(own);
      expect(kept(found)).toEqual([own]);
      expect(found.leftOut).toEqual([expect.stringContaining("there is no static qemu-user for it")]);
    });
  });
});

describe("an ordinary user on a machine without emulation", () => {
  const possible = "an ordinary user has emulation here";

  it("is told in one line why a builder is left out, and gets the others", async ({ skip }) => {
    vi.spyOn(process, "getuid").mockReturnValue(1000);
    skip(emulationObstacle(owner, foreign) === undefined, possible);
    const builders = systems.map((system) => ({ name: system.slice(0, 3), provider: "local", system }));
    const spec = parseFleetSpec(owner, { builders }, "/nowhere");
    const plan = await planLocalBuilders(spec, "/nowhere");
    expect(plan.spec.builders.map(({ system }) => system)).toEqual([native]);
    expect(plan.leftOut).toEqual([
      expect.stringMatching(
        /^builder '\w+' \(.*-linux\) is left out: .*(qemu-user-static \(Debian 12, Ubuntu\) or qemu-user-binfmt \(Debian 13|no static qemu-user)/,
      ),
    ]);
    expect(plan.emulated).toEqual([]);
  });

  it("does not lose a builder that is here already, with all it built, when its emulation can't be had any more", async ({
    skip,
  }) => {
    vi.spyOn(process, "getuid").mockReturnValue(1000);
    skip(emulationObstacle(owner, foreign) === undefined, possible);
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

  it("is told so when no builder is left at all", async ({ skip }) => {
    vi.spyOn(process, "getuid").mockReturnValue(1000);
    skip(emulationObstacle(owner, foreign) === undefined, possible);
    const spec = parseFleetSpec(owner, { builders: [{ name: "a", provider: "local", system: foreign }] }, "/nowhere");
    await expect(planLocalBuilders(spec, "/nowhere")).rejects.toThrow(/no builder is left:\nbuilder 'a'/);
  });
});
