import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { hostname, tmpdir } from "node:os";
import { afterEach, beforeEach, describe, expect, it, onTestFinished, vi } from "vitest";
import { checkout } from "../../tools/launch.mjs";
import { describeLock, dropStaleLocks, lockOwners, noteRun } from "../../tools/staleLocks.ts";

let folder: string;
let locks: string;
let backend: string;
beforeEach(() => {
  folder = mkdtempSync(`${tmpdir()}/fleet-locks-`);
  backend = `file://${folder}/state`;
  locks = `${folder}/state/.pulumi/locks/organization/nix-builder-fleet/dev`;
  mkdirSync(locks, { recursive: true });
});
afterEach(() => {
  vi.restoreAllMocks();
  rmSync(folder, { recursive: true, force: true });
});

const write = (name: string, lock: unknown) => {
  writeFileSync(`${locks}/${name}.json`, typeof lock === "string" ? lock : JSON.stringify(lock));
};
const note = (pid: number | undefined) => {
  noteRun(pid, backend, folder);
};
const drop = () => dropStaleLocks(backend, folder);
const notes = () =>
  readdirSync(`${folder}/.fleet/runs`).flatMap((name) => readdirSync(`${folder}/.fleet/runs/${name}`));

/** Above any pid that Linux gives out. */
const nobody = 2 ** 22 + 1;

it("drops the lock of a run that has ended, and of one whose number another program has now", () => {
  write("dead", { pid: nobody, hostname: hostname() });
  write("reused", { pid: 1, hostname: hostname() });
  note(nobody);
  note(1);
  const { dropped } = drop();
  expect([...dropped].sort((a, b) => a - b)).toEqual([1, nobody]);
  expect(readdirSync(locks)).toEqual([]);
  expect(notes()).toEqual([]);
});

it("drops the lock of a run whose number another program has now, also one that only speaks of Pulumi", async () => {
  const other = spawn(process.execPath, ["-e", "setInterval(() => {}, 1000)", "tools/run.mjs", "pulumi"]);
  onTestFinished(() => void other.kill("SIGKILL"));
  await once(other, "spawn");
  write("reused", { pid: other.pid, hostname: hostname() });
  note(other.pid);
  expect(drop().dropped).toEqual([other.pid]);
});

it("drops the lock of a run that a restart of the machine has ended", () => {
  write("dead", { pid: nobody, hostname: hostname() });
  note(nobody);
  const runs = `${folder}/.fleet/runs/${readdirSync(`${folder}/.fleet/runs`)[0] ?? ""}`;
  renameSync(`${runs}/${notes()[0] ?? ""}`, `${runs}/${nobody}.00000000-0000-0000-0000-000000000000.1`);
  expect(drop()).toEqual({ dropped: [nobody], empty: [] });
});

it("keeps the lock of a process that isn't there and that this checkout hasn't started", () => {
  write("dead", { pid: nobody, hostname: hostname() });
  expect(drop()).toEqual({ dropped: [], empty: [] });
  expect(readdirSync(locks)).toEqual(["dead.json"]);
});

describe("a run that goes on", () => {
  let cli: ChildProcess;
  beforeEach(async () => {
    cli = spawn(process.execPath, ["-e", "setInterval(() => {}, 1000)"], {
      argv0: "/opt/pulumi/bin/pulumi",
      stdio: "ignore",
    });
    await once(cli, "spawn");
    write("alive", { pid: cli.pid, hostname: hostname() });
    note(cli.pid);
  });
  afterEach(() => cli.kill("SIGKILL"));

  it("keeps its lock", () => {
    expect(drop()).toEqual({ dropped: [], empty: [] });
    expect(readdirSync(locks)).toEqual(["alive.json"]);
    expect(notes()).toHaveLength(1);
  });

  it("keeps its lock when it is another user's, and /proc shows nothing of it", () => {
    // What kill(2) answers about others; root, as whom tests may run, would be told of itself only.
    vi.spyOn(process, "kill").mockImplementation(() => {
      throw Object.assign(new Error("kill EPERM"), { code: "EPERM" });
    });
    write("alive", { pid: nobody, hostname: hostname() });
    note(nobody);
    expect(drop()).toEqual({ dropped: [], empty: [] });
    expect(readdirSync(locks)).toEqual(["alive.json"]);
  });

  it("keeps its lock when it is looked at from a container that has this machine's name", ({ skip }) => {
    const namespace = ["--user", "--map-root-user", "--pid", "--fork", "--mount-proc"];
    const inside = (...command: string[]) =>
      execFileSync("unshare", [...namespace, ...command], { encoding: "utf8", stdio: "pipe" });
    try {
      inside("true");
    } catch {
      skip("This machine allows no PID namespaces.");
    }
    const script = `import { dropStaleLocks } from "${checkout}/tools/staleLocks.ts";
      console.log(JSON.stringify(dropStaleLocks(${JSON.stringify(backend)}, ${JSON.stringify(folder)})));`;
    writeFileSync(`${folder}/look.mts`, script);
    const said: unknown = JSON.parse(inside(process.execPath, `${folder}/look.mts`));
    expect(said).toEqual({ dropped: [], empty: [] });
    expect(readdirSync(locks)).toEqual(["alive.json"]);
    expect(notes()).toHaveLength(1);
  });
});

it("keeps the lock of another machine, what is no lock, and those of a backend that is no folder", () => {
  write("elsewhere", { pid: nobody, hostname: "another-machine" });
  write("nonsense", "{}");
  note(nobody);
  const nothing = { dropped: [], empty: [] };
  expect(drop()).toEqual(nothing);
  expect(readdirSync(locks)).toHaveLength(2);
  expect(dropStaleLocks("s3://bucket", folder)).toEqual(nothing);
  expect(dropStaleLocks(undefined, folder)).toEqual(nothing);
});

describe("who holds a lock", () => {
  const owner = (pid: number, host = hostname()) => ({
    pid,
    hostname: host,
    username: "ann",
    timestamp: "2026-11-25T16:00:00Z",
  });
  const cancel = "`npm run pulumi -- cancel --yes --stack dev`";

  it("is read from the lock, for this stack alone", () => {
    write("a", owner(7));
    expect(lockOwners(backend, "dev")).toEqual([owner(7)]);
    expect(lockOwners(backend, "organization/nix-builder-fleet/dev")).toEqual([owner(7)]);
    expect(lockOwners(backend, "prod")).toEqual([]);
  });

  it("is not that of another project's stack with the name, in a folder that projects share", () => {
    const others = locks.replace("nix-builder-fleet", "website");
    mkdirSync(others, { recursive: true });
    writeFileSync(`${others}/a.json`, JSON.stringify(owner(7)));
    expect(lockOwners(backend, "dev")).toEqual([]);
    expect(lockOwners(backend, "me/dev")).toEqual([]);
    expect(lockOwners(backend, "organization/website/dev")).toEqual([owner(7)]);
  });

  it("is told with what to do about it: wait, while that process runs", async () => {
    const cli = spawn(process.execPath, ["-e", "setInterval(() => {}, 1000)"], { argv0: "pulumi", stdio: "ignore" });
    try {
      await once(cli, "spawn");
      const pid = cli.pid ?? 0;
      expect(describeLock("dev", owner(pid))).toBe(
        `Nothing was begun: stack dev is locked by process ${pid} of ann on ${hostname()} since 2026-11-25T16:00:00Z; ` +
          `that process is running: wait for it to end, or ask it to (\`kill -INT ${pid}\`).`,
      );
    } finally {
      cli.kill("SIGKILL");
    }
  });

  it.each([
    ["has ended, as far as can be seen", owner(nobody), "that process isn't to be seen here"],
    ["is on another machine", owner(7, "vm-2"), "whether that process runs only vm-2 knows"],
  ])("is told with the command that drops it, where that process %s", (_, holder, text) => {
    const said = describeLock("dev", holder);
    expect(said).toContain(text);
    expect(said).toContain(cancel);
  });
});
