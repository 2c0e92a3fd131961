import { spawn, type ChildProcess } from "node:child_process";
import { chmodSync, copyFileSync, existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { afterEach, describe, expect, it } from "vitest";
import { removeTree } from "../../src/local/folders.ts";
import { marksOfMachine, runningSshd, stopProcesses } from "../../src/local/processes.ts";
import { processesNaming } from "../support/engine.ts";

describe("stopping what belongs to a builder", () => {
  const directory = mkdtempSync(`${tmpdir()}/fleet-processes-`);
  const mark = `root=${directory}/root`;
  const running: ChildProcess[] = [];
  const start = (program: string, ...words: string[]): ChildProcess => {
    const child = spawn(program, words, { detached: true, stdio: "ignore" });
    running.push(child);
    return child;
  };
  afterEach(() => {
    for (const child of running.splice(0)) child.kill("SIGKILL");
    rmSync(directory, { recursive: true, force: true });
  });

  it("ends its programs with all that descend from them, also those that ignore a polite request", async () => {
    mkdirSync(directory, { recursive: true });
    const nix = `${directory}/nix-daemon`;
    copyFileSync("/bin/sh", nix);
    start(nix, "-c", "trap '' TERM; sleep 61 & wait; sleep 62", mark);
    await expect.poll(() => processesNaming("sleep 61").length).toBeGreaterThan(0);
    await stopProcesses([mark]);
    expect(processesNaming(mark)).toEqual([]);
    expect(processesNaming("sleep 61")).toEqual([]);
  });

  it("leaves alone a person's own program that names the builder's files", async () => {
    const bystander = start("tail", "-f", "/dev/null", mark);
    await expect.poll(() => processesNaming(mark).length).toBeGreaterThan(0);
    await stopProcesses([mark]);
    expect(processesNaming(mark)).toHaveLength(1);
    expect([bystander.exitCode, bystander.signalCode]).toEqual([null, null]);
  });

  it("leaves alone a builder of another checkout whose path ends with this one's", async () => {
    mkdirSync(directory, { recursive: true });
    const sshd = `${directory}/sshd`;
    copyFileSync("/bin/sh", sshd);
    const words = [
      "-c",
      "sleep 63; exit",
      "sshd",
      "-f",
      `/srv${directory}/sshd_config`,
      "--store",
      `local?root=/srv${directory}/root`,
    ];
    const other = start(sshd, ...words);
    await expect.poll(() => processesNaming(`/srv${directory}/root`).length).toBeGreaterThan(0);
    await stopProcesses(marksOfMachine(directory));
    expect([other.exitCode, other.signalCode]).toEqual([null, null]);
    expect(processesNaming(`/srv${directory}/root`)).toHaveLength(1);
    await stopProcesses(marksOfMachine(`/srv${directory}`));
    expect(processesNaming(`/srv${directory}/root`)).toEqual([]);
  });

  it("does not take a process for sshd that has got its number since", async () => {
    mkdirSync(directory, { recursive: true });
    writeFileSync(`${directory}/sshd.pid`, String(process.pid));
    expect(runningSshd(directory)).toBeUndefined();
    const reader = start("tail", "-f", "/dev/null", `${directory}/sshd_config`);
    await expect.poll(() => processesNaming(`${directory}/sshd_config`).length).toBeGreaterThan(0);
    writeFileSync(`${directory}/sshd.pid`, String(reader.pid));
    expect(runningSshd(directory)).toBeUndefined();
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
