import { spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync, chmodSync, existsSync } from "node:fs";
import { tmpdir } from "node:os";
import { afterEach, describe, expect, it } from "vitest";
import { removeTree } from "../../src/local/folders.ts";
import { runningSshd, stopProcesses } from "../../src/local/processes.ts";
import { processesNaming } from "../support/engine.ts";

describe("stopping what belongs to a builder", () => {
  const mark = `root=/nowhere/${String(process.pid)}/root`;
  const bystander = spawn("sleep", ["60"]);
  afterEach(() => {
    bystander.kill();
  });

  it("ends marked processes with all that descend from them, also those that ignore a polite request, and no other", async () => {
    spawn("sh", ["-c", "trap '' TERM; sleep 61 & wait; sleep 62", mark], {
      detached: true,
      stdio: ["ignore", "ignore", "ignore"],
    });
    await expect.poll(() => processesNaming("sleep 61").length).toBeGreaterThan(0);
    await stopProcesses([mark]);
    expect(processesNaming(mark)).toEqual([]);
    expect(processesNaming("sleep 61")).toEqual([]);
    expect(bystander.exitCode).toBeNull();
    expect(bystander.signalCode).toBeNull();
  });

  it("does not take a process for sshd that has got its number since", () => {
    const directory = mkdtempSync(`${tmpdir()}/fleet-pid-`);
    writeFileSync(`${directory}/sshd.pid`, String(process.pid));
    expect(runningSshd(directory)).toBeUndefined();
    rmSync(directory, { recursive: true });
  });
});

describe("removing a builder's folder", () => {
  it("removes read-only store paths, and the empty folders above, up to the checkout's own", () => {
    const checkout = mkdtempSync(`${tmpdir()}/fleet-tree-`);
    const machine = `${checkout}/.fleet/stacks/dev/machines/x86`;
    mkdirSync(`${machine}/root/nix/store/path`, { recursive: true });
    writeFileSync(`${machine}/root/nix/store/path/file`, "");
    chmodSync(`${machine}/root/nix/store/path`, 0o555);
    mkdirSync(`${checkout}/.fleet/state`);
    removeTree(machine);
    expect(existsSync(`${checkout}/.fleet/stacks`)).toBe(false);
    expect(existsSync(`${checkout}/.fleet/state`)).toBe(true);
    rmSync(checkout, { recursive: true });
  });

  it("keeps a folder above that still holds something", () => {
    const checkout = mkdtempSync(`${tmpdir()}/fleet-tree-`);
    for (const name of ["x86", "arm"]) mkdirSync(`${checkout}/.fleet/stacks/dev/machines/${name}`, { recursive: true });
    removeTree(`${checkout}/.fleet/stacks/dev/machines/x86`);
    expect(existsSync(`${checkout}/.fleet/stacks/dev/machines/arm`)).toBe(true);
    rmSync(checkout, { recursive: true });
  });
});
