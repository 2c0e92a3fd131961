/** `npm start`, and which stack it, `npm run pulumi` and `npx fleet` take: in a checkout of its own. */
import { spawn, type ChildProcess } from "node:child_process";
import {
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { hostname, tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { createInterface } from "node:readline";
import { execa } from "execa";
import { stringify } from "yaml";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { emulation } from "../../src/local/emulation.ts";
import { runningSshd } from "../../src/local/processes.ts";
import { kernelArch, type System } from "../../src/nix/system.ts";
import { cacheDirectory } from "../../tools/launch.mjs";
import type { Emulation } from "../../tools/setup/emulation.ts";
import { findProgram } from "../../tools/setup/host.ts";
import { setUp, type Toolchain } from "../../tools/setup/index.ts";
import { cleanEnvironment, copyOfCheckout, runInCheckout, type Ended } from "../support/checkoutCopy.ts";
import { system } from "../support/localFleet.ts";

/** Why no builder of this system can be left out here and then had; `undefined`: one can. */
function noLeftOutBuilder(foreign: System, { qemu }: Emulation): string | undefined {
  if (process.getuid?.() !== 0) return "only root may register an emulation";
  if (qemu === undefined) return "no emulator can be had on this machine";
  const installed = ["/usr/bin", "/usr/libexec/qemu-binfmt"].some((place) => qemu.startsWith(`${place}/`));
  if (installed || emulation("start-test", foreign) !== "none") return `this machine runs ${foreign} by itself`;
  return undefined;
}

describe("npm start", () => {
  const folder = mkdtempSync(join(tmpdir(), "fleet-start-"));
  const checkout = copyOfCheckout(join(folder, "checkout"));
  const state = join(checkout, ".fleet", "state");
  let toolchain: Toolchain;
  let env: NodeJS.ProcessEnv;
  let first: Ended;

  const run = (script: string, words: readonly string[], more: NodeJS.ProcessEnv = {}): Promise<Ended> =>
    runInCheckout(checkout, { ...env, ...more }, [join(checkout, script), ...words]);
  const start = (words: readonly string[] = [], more?: NodeJS.ProcessEnv) =>
    run("tools/run.mjs", ["start", ...words], more);
  const pulumi = (...words: string[]) => run("tools/run.mjs", ["pulumi", ...words]);
  const fleet = (...words: string[]) => run("tools/fleet.mjs", words);

  beforeAll(async () => {
    // The plugins and logins of whoever runs the tests are their own.
    toolchain = await setUp();
    env = { ...cleanEnvironment(toolchain.env), PULUMI_HOME: join(folder, "pulumi") };
    writeFileSync(
      join(checkout, "Pulumi.dev.yaml"),
      stringify({ config: { "nix-builder-fleet:builders": [{ name: "here", provider: "local", system }] } }),
    );
    first = await start();
  });
  afterAll(async () => {
    const { exitCode, output } = await pulumi("destroy", "--stack", "dev", "--yes", "--skip-preview");
    rmSync(folder, { recursive: true, force: true });
    expect(exitCode, output).toBe(0);
    // Of genuine plugins on the person's own PATH the CLI warns by itself.
    if (findProgram("pulumi-resource-command") === undefined) expect(output).not.toContain("from $PATH");
  });

  it("deploys dev, shows what is verified, and says what to try next", () => {
    expect(first.exitCode, first.output).toBe(0);
    expect(first.output).toContain("Deploying stack dev");
    expect(first.output).toMatch(/^here +\S+-linux +127\.\S+ +in \d+\.\d s$/m);
    expect(first.output).toContain("Client files: .fleet/stacks/dev/client");
    expect(first.output).toMatch(/npx fleet build docs\/hello\.nix -A \w+$/m);
    expect(first.output).toMatch(/npm run pulumi -- destroy$/m);
    expect(first.output).not.toContain("from $PATH");
  });

  it("keeps what it made from other users", () => {
    expect(statSync(join(checkout, ".fleet")).mode & 0o777).toBe(0o700);
  });

  it("has nothing to do the second time", async () => {
    const { exitCode, output } = await start();
    expect(exitCode, output).toBe(0);
    expect(output).toContain("Stack dev stands as it was deployed, and its builders run: nothing to do.");
    expect(output).toMatch(/^here +\S+-linux +127\.\S+ +in \d+\.\d s$/m);
  });

  it("deploys again when the configuration, the state, a file of the client or a builder is not as it was left", async () => {
    const deploys = async (): Promise<void> => {
      const again = await start();
      expect(again.exitCode, again.output).toBe(0);
      expect(again.output).toContain("Deploying stack dev");
      expect((await start()).output).toContain("nothing to do");
    };
    const configuration = join(checkout, "Pulumi.dev.yaml");
    writeFileSync(configuration, `${readFileSync(configuration, "utf8")}# a comment\n`);
    await deploys();
    rmSync(join(checkout, ".fleet/stacks/dev/client/known_hosts"));
    await deploys();
    writeFileSync(join(checkout, ".fleet/stacks/dev/client/nix.conf"), "max-jobs = 1\n");
    await deploys();
    process.kill(Number(readFileSync(join(checkout, ".fleet/stacks/dev/machines/here/sshd.pid"), "utf8")));
    await expect.poll(() => runningSshd(join(checkout, ".fleet/stacks/dev/machines/here"))).toBeUndefined();
    const revived = await start();
    expect(revived.output).toContain("here: sshd started");
    expect((await start()).output).toContain("nothing to do");
  });

  it("deploys again when its record is torn, or a file of a builder is missing", async () => {
    const record = join(checkout, ".fleet/stacks/dev/deployed.json");
    for (const torn of ["", readFileSync(record, "utf8").slice(0, 100)]) {
      writeFileSync(record, torn);
      const { exitCode, output } = await start();
      expect(exitCode, output).toBe(0);
      expect(output).toContain("Deploying stack dev");
    }
    expect((await start()).output).toContain("nothing to do");
    const settings = join(checkout, ".fleet/stacks/dev/machines/here/conf/nix.conf");
    renameSync(settings, `${settings}.away`);
    const { output } = await start();
    renameSync(`${settings}.away`, settings);
    expect(output).toContain("Deploying stack dev");
    expect(output).not.toMatch(/^ +at /m);
  });

  it("says again what it warned of, and goes on when that is mended", async ({ skip }) => {
    const foreign: System = system === "x86_64-linux" ? "aarch64-linux" : "x86_64-linux";
    const reason = noLeftOutBuilder(foreign, toolchain.emulation);
    skip(reason !== undefined, reason);
    const configuration = join(checkout, "Pulumi.dev.yaml");
    const before = readFileSync(configuration, "utf8");
    const builders = [system, foreign].map((its) => ({
      name: its === system ? "here" : "emulated",
      provider: "local",
      system: its,
    }));
    writeFileSync(configuration, stringify({ config: { "nix-builder-fleet:builders": builders } }));
    // A machine without the emulator, where apt has none either.
    const bare = join(folder, "bare");
    const shell = `busybox-${kernelArch(system)}`;
    mkdirSync(join(bare, "nix-builder-fleet", "bin"), { recursive: true });
    symlinkSync(join(cacheDirectory(), "bin", shell), join(bare, "nix-builder-fleet", "bin", shell));
    writeFileSync(join(bare, "apt-get"), "#!/bin/sh\nexit 100\n", { mode: 0o755 });
    const path = (env["PATH"] ?? "").split(delimiter).filter((entry) => entry !== join(cacheDirectory(), "bin"));
    const without = { XDG_CACHE_HOME: bare, PATH: [bare, ...path].join(delimiter) };
    for (let time = 0; time < 2; time++) {
      const { exitCode, output } = await start([], without);
      expect(exitCode, output).toBe(0);
      expect(output).toContain(`warning: builder 'emulated' (${foreign}) is left out`);
      expect(output).not.toContain("nothing to do");
    }
    const mended = await start();
    expect(mended.exitCode, mended.output).toBe(0);
    expect(mended.output).toMatch(new RegExp(`^emulated +${foreign} +127\\.`, "m"));
    expect((await start()).output).toContain("nothing to do");
    writeFileSync(configuration, before);
  });

  it("waits for nobody, but says who is deploying", async () => {
    const other: ChildProcess = spawn(process.execPath, ["-e", "process.stdin.resume()"], { argv0: "pulumi" });
    await new Promise((resolve) => other.once("spawn", resolve));
    const locks = join(state, ".pulumi", "locks", "organization", "nix-builder-fleet", "dev");
    const lock = { pid: other.pid, username: "somebody", hostname: hostname(), timestamp: new Date().toISOString() };
    mkdirSync(locks, { recursive: true });
    writeFileSync(join(locks, "1.json"), JSON.stringify(lock));
    writeFileSync(join(checkout, "Pulumi.dev.yaml"), "# something to deploy\n", { flag: "a" });
    const { exitCode, output } = await start();
    rmSync(join(locks, "1.json"));
    other.kill();
    expect(exitCode).not.toBe(0);
    expect(output).toContain(`stack dev is locked by process ${String(other.pid)} of somebody on`);
    expect(output).toContain("that process is running: wait for it to end");
    expect(output).not.toContain("pulumi cancel");
  });

  it.each([
    ["npm start", () => start(["--stack", "nope"])],
    ["npx fleet, before the command", () => fleet("--stack", "nope", "status")],
    ["npx fleet, after the command", () => fleet("status", "--stack", "nope")],
  ])("ends, for a stack that isn't there, with those that are: %s", async (_, call) => {
    const { exitCode, output } = await call();
    expect(exitCode).toBe(1);
    expect(output).toContain(`stack 'nope' does not exist in file://${state} (there are dev); make it with`);
    expect(output).toContain("npm run pulumi -- stack init nope");
  });

  it("makes nothing in a backend of the person's own", async () => {
    const backend = join(folder, "backend");
    mkdirSync(backend);
    const own = { PULUMI_BACKEND_URL: `file://${backend}`, PULUMI_CONFIG_PASSPHRASE: "x" };
    const { exitCode, output } = await start([], own);
    expect(exitCode).toBe(1);
    expect(output).toContain(`stack 'dev' does not exist in file://${backend} (there is none)`);
  });

  it("takes the stack that is selected, as all commands do, and fails when its deployment fails", async () => {
    expect((await pulumi("stack", "init", "second")).exitCode).toBe(0);
    // Deployments run with another home of Pulumi's than the rest.
    expect((await pulumi("preview")).output).toContain("(second)");
    const { exitCode, output } = await start();
    expect(output).toContain("Deploying stack second");
    expect(output).toContain("builders: [] is not allowed");
    expect(output).toContain("The fleet is not up");
    expect(exitCode).not.toBe(0);
    expect((await fleet("status")).output).toContain("stack 'second' has no fleet");
  });

  it("is cancelled by a Ctrl-C: the CLI ends in good order, and the next one goes on", async () => {
    const builders = ["here", "there"].map((name) => ({ name, provider: "local", system }));
    writeFileSync(join(checkout, "Pulumi.dev.yaml"), stringify({ config: { "nix-builder-fleet:builders": builders } }));
    const started = execa(process.execPath, [join(checkout, "tools/run.mjs"), "start", "--stack", "dev"], {
      cwd: checkout,
      env,
      extendEnv: false,
      all: true,
      reject: false,
      stdin: "ignore",
      detached: true,
      timeout: 120_000,
    });
    let interrupted = false;
    for await (const line of createInterface({ input: started.all })) {
      if (interrupted || !line.includes("there-host-key: key pair made")) continue;
      interrupted = true;
      process.kill(-(started.pid ?? NaN), "SIGINT"); // as a terminal does: to all of the process group
    }
    const { exitCode, all: output } = await started;
    expect(exitCode, output).toBeGreaterThan(0);
    expect(output).toContain("cancelling: waiting for what is under way to end");
    expect(output).toContain("Cancelled, the fleet is not up: `npm start");
    const { checkpoint } = JSON.parse(
      readFileSync(join(state, ".pulumi/stacks/nix-builder-fleet/dev.json"), "utf8"),
    ) as { checkpoint: { latest: { pending_operations?: unknown[] } } };
    expect(checkpoint.latest.pending_operations ?? []).toEqual([]);
    const again = await start(["--stack", "dev"]);
    expect(again.exitCode, again.output).toBe(0);
    expect(again.output).not.toContain("dropped the lock of an earlier run");
    expect(again.output).toMatch(/^there +\S+-linux +127\.\S+ +in \d+\.\d s$/m);
  });

  it("names the stack in what to try next where a plain call would take the selected one", async () => {
    const { exitCode, output } = await start(["--stack", "dev"]);
    expect(exitCode, output).toBe(0);
    expect(output).toMatch(/npx fleet --stack dev build docs\/hello\.nix/);
    expect(output).toMatch(/npm run pulumi -- destroy --stack dev$/m);
  });
});
