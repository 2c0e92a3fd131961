/** What runs on when the CLI is killed in the middle of a deployment: nothing of it, but the builders that stand already. */
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join, resolve } from "node:path";
import { execa } from "execa";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { machineDirectory } from "../../src/local/plan.ts";
import { runningSshd } from "../../src/local/processes.ts";
import { setUp } from "../../tools/setup/index.ts";
import { processesNaming, TestDeployment } from "../support/engine.ts";
import { system } from "../support/localFleet.ts";

const checkout = resolve(import.meta.dirname, "../..");

describe("a CLI that is killed while a builder is put to the test", () => {
  let directory: string;
  let fleet: TestDeployment;

  beforeEach(async () => {
    directory = mkdtempSync(join(tmpdir(), "fleet-orphans-"));
    mkdirSync(join(directory, "bin"));
    // A build that ends by itself only after the test.
    const build = `#!/bin/sh\necho > ${directory}/builds\nexec sleep 300\n`;
    writeFileSync(join(directory, "bin", "nix-build"), build, { mode: 0o755 });
    const { env } = await setUp();
    fleet = await TestDeployment.create(
      { builders: [{ name: "here", provider: "local", system }] },
      { PATH: `${directory}/bin:${env["PATH"] ?? ""}` },
    );
  });
  afterEach(async () => {
    for (const { pid } of running()) process.kill(pid, "SIGKILL");
    rmSync(join(directory, "bin", "nix-build"));
    await fleet.remove();
    rmSync(directory, { recursive: true, force: true });
  });

  const call = (words: readonly string[], stdio: "pipe" | "ignore") =>
    execa(process.execPath, ["tools/run.mjs", "pulumi", "-C", fleet.project, "--non-interactive", ...words], {
      cwd: checkout,
      env: fleet.env,
      reject: false,
      all: true,
      stdio: ["ignore", stdio, stdio],
      timeout: 120_000,
    });
  const launcher = (...words: string[]) => call(words, "pipe");

  /** Everything that runs with the stack's environment, apart from this test. */
  function running(): { pid: number; program: string }[] {
    return readdirSync("/proc").flatMap((entry) => {
      try {
        const environment = readFileSync(`/proc/${entry}/environ`, "utf8");
        const [program = ""] = readFileSync(`/proc/${entry}/cmdline`, "utf8").split("\0");
        const its = environment.includes(`PULUMI_STACK=${fleet.stack}\0`) && program !== "";
        return its ? [{ pid: Number(entry), program: basename(program) }] : [];
      } catch {
        return [];
      }
    });
  }
  const programs = () => running().map(({ program }) => program);

  /** Starts a deployment, and waits until it builds. */
  async function deploying(stdio: "pipe" | "ignore") {
    const up = call(["up", "--yes", "--skip-preview"], stdio);
    await expect.poll(() => existsSync(join(directory, "builds")), { timeout: 60_000 }).toBe(true);
    const cli = running().find(({ program }) => program === "pulumi")?.pid ?? NaN;
    expect(programs()).toEqual(expect.arrayContaining(["pulumi-language-nodejs", "sleep"]));
    return { up, cli };
  }

  it("leaves nothing behind: the launcher ends it", async () => {
    const { up, cli } = await deploying("pipe");
    process.kill(cli, "SIGKILL");
    const { exitCode, all } = await up;
    expect(exitCode).toBe(137);
    expect(programs()).toEqual([]);
    expect(all).toMatch(/ended what a killed run of the CLI had left: .*pulumi-language-nodejs/);
    expect(runningSshd(machineDirectory(fleet.directory, "here"))).toBeDefined();
  });

  it("leaves nothing behind for the next call, if the launcher was killed with it", async () => {
    // What it prints goes to nobody, as the CLI would hold a pipe open.
    const { up, cli } = await deploying("ignore");
    up.kill("SIGKILL");
    await up;
    // The CLI goes on: it is not for others to end.
    expect((await launcher("stack", "ls")).all).not.toContain("ended what");
    expect(programs()).toContain("pulumi");
    process.kill(cli, "SIGKILL");
    await expect.poll(programs).not.toContain("pulumi");
    // The program sees that its engine is gone, though it waits for nothing but an answer.
    await expect.poll(() => processesNaming(`--stack ${fleet.stack} --pwd`)).toEqual([]);
    expect(programs()).toEqual(expect.arrayContaining(["pulumi-language-nodejs", "sleep"]));
    const { all } = await launcher("stack", "ls");
    expect(programs()).toEqual([]);
    expect(all).toMatch(/ended what a killed run of the CLI had left: .*pulumi-language-nodejs/);
    expect(runningSshd(machineDirectory(fleet.directory, "here"))).toBeDefined();
    expect((await launcher("stack", "ls")).all).not.toContain("ended what");
  });
});
