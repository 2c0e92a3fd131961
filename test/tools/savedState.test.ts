/** What a full disk leaves of a state, and what becomes of it. Where it says so, on a real file system that is full. */
import { execFileSync, spawnSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname } from "node:path";
import { gzipSync } from "node:zlib";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { checkout } from "../../tools/launch.mjs";
import { keepStates, repairStates } from "../../tools/savedState.ts";
import { dropStaleLocks } from "../../tools/staleLocks.ts";

let folder: string;
let backend: string;
beforeEach(() => {
  folder = mkdtempSync(`${tmpdir()}/saved-state-`);
  backend = `file://${folder}`;
});
afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

const state = (hour: number) =>
  JSON.stringify({
    version: 3,
    checkpoint: { latest: { manifest: { time: `2026-11-25T${hour}:00:00.5Z` }, resources: ["x".repeat(5000)] } },
  });
const torn = state(23).slice(0, 4096);
const at = (path: string) => `${folder}/.pulumi/${path}`;
function write(files: Readonly<Record<string, string | Uint8Array>>): void {
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(dirname(at(name)), { recursive: true });
    writeFileSync(at(name), content);
  }
}
const stack = "stacks/nix-builder-fleet/dev.json";
const restored = (hour: number) =>
  expect.stringMatching(
    `^the state of stack dev was cut off, as a full disk does: it is that of 2026-11-25T${hour}:`,
  ) as string;

describe("a state that is cut off", () => {
  it.each([
    ["empty", ""],
    ["half written", torn],
  ])("(%s) is the newest of its copies again", (_, found) => {
    write({
      [stack]: found,
      [`${stack}.attrs`]: '{"md5":',
      [`${stack}.bak`]: state(12),
      "backups/nix-builder-fleet/dev/dev.1.json": state(13),
      "history/nix-builder-fleet/dev/dev-1.checkpoint.json": state(14),
      "history/nix-builder-fleet/dev/dev-1.history.json": "{}",
      "kept/nix-builder-fleet/dev.json": state(15),
      "backups/nix-builder-fleet/prod/prod.1.json": state(20),
    });
    expect(repairStates(backend)).toEqual([restored(15)]);
    expect(readFileSync(at(stack), "utf8")).toBe(state(15));
    expect(existsSync(at(`${stack}.attrs`))).toBe(false);
    expect(existsSync(at("kept/nix-builder-fleet/dev.json"))).toBe(false);
    expect(repairStates(backend)).toEqual([]);
  });

  it.each([
    ["beside it", `${stack}.bak`],
    ["of an earlier deployment", "backups/nix-builder-fleet/dev/dev.1.json"],
    ["of the record", "history/nix-builder-fleet/dev/dev-1.checkpoint.json"],
    ["kept", "kept/nix-builder-fleet/dev.json"],
  ])("is restored from the only copy, %s, where the others are cut off, too", (_, whole) => {
    write({
      [stack]: "",
      [`${stack}.bak`]: torn,
      "backups/nix-builder-fleet/dev/dev.1.json": "",
      "kept/nix-builder-fleet/dev.json": "",
      "history/nix-builder-fleet/dev/dev-1.checkpoint.json": torn,
      [whole]: state(12),
    });
    expect(repairStates(backend)).toEqual([restored(12)]);
    expect(readFileSync(at(stack), "utf8")).toBe(state(12));
  });

  it("is told from a whole one when compressed", () => {
    const compressed = gzipSync(state(12));
    write({
      [`${stack}.gz`]: compressed.subarray(0, 100),
      [`${stack}.gz.bak`]: compressed,
      "stacks/a/b.json.gz": compressed,
    });
    expect(repairStates(backend)).toEqual([restored(12)]);
    expect(readFileSync(at(`${stack}.gz`)).equals(compressed)).toBe(true);
  });

  it("is left alone while somebody works on the stack", () => {
    write({ [stack]: "", [`${stack}.bak`]: state(12), "locks/organization/nix-builder-fleet/dev/a.json": '{"pid":1}' });
    expect(repairStates(backend)).toEqual([]);
    expect(readFileSync(at(stack), "utf8")).toBe("");
  });

  it("is put aside where there is no copy, so that the stack can begin anew", () => {
    write({ [stack]: torn, [`${stack}.bak`]: "" });
    expect(repairStates(backend)).toEqual([expect.stringContaining("there is no copy of it: the stack begins anew")]);
    expect(readdirSync(at("stacks/nix-builder-fleet")).sort()).toEqual(["dev.json.bak", "dev.json.cut-off"]);
  });
});

it("writes the layout's version again, and removes torn records and attributes of a state that is whole", () => {
  write({
    "meta.yaml": "",
    [stack]: state(12),
    [`${stack}.attrs`]: "",
    [`${stack}.bak.attrs`]: '{"md5":"',
    "history/nix-builder-fleet/dev/dev-1.history.json": '{"kind"',
    "history/nix-builder-fleet/dev/dev-1.checkpoint.json": state(12),
  });
  expect(repairStates(backend)).toEqual([]);
  expect(readFileSync(at("meta.yaml"), "utf8")).toBe("version: 1\n");
  expect(readdirSync(at("stacks/nix-builder-fleet"))).toEqual(["dev.json"]);
  expect(readdirSync(at("history/nix-builder-fleet/dev"))).toEqual(["dev-1.checkpoint.json"]);
});

it("drops empty and half written locks, and says of which stack", () => {
  write({
    "locks/organization/nix-builder-fleet/dev/a.json": "",
    "locks/organization/nix-builder-fleet/dev/a.json.attrs": "",
    "locks/organization/nix-builder-fleet/prod/b.json": '{"pid":1',
  });
  expect(dropStaleLocks(backend, folder)).toEqual({ dropped: [], empty: ["dev", "prod"] });
  expect(readdirSync(at("locks"), { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile())).toEqual(
    [],
  );
});

it("is none of our business where the backend is no folder", () => {
  expect(repairStates("s3://bucket")).toEqual([]);
  expect(repairStates(undefined)).toEqual([]);
});

it("keeps the last whole state while it is written, though the copy beside it is cut off as well", async () => {
  write({ [stack]: state(10) });
  const finish = keepStates(backend);
  /** As the CLI replaces files. */
  const replace = (name: string, content: string) => {
    write({ [`${name}.tmp`]: content });
    renameSync(at(`${name}.tmp`), at(name));
  };
  replace(stack, state(11));
  await expect.poll(() => existsSync(at("kept/nix-builder-fleet/dev.json"))).toBe(true);
  replace(`${stack}.bak`, state(11));
  replace(stack, state(12));
  // A look at a later moment finds nothing whole but the copy beside it.
  replace(`${stack}.bak`, state(12));
  replace(stack, torn);
  const kept = () => readFileSync(at("kept/nix-builder-fleet/dev.json"), "utf8");
  await expect.poll(kept).toBe(state(12));
  replace(`${stack}.bak`, torn);
  replace(stack, "");
  finish();
  expect(kept()).toBe(state(12));
  expect(readdirSync(at("kept/nix-builder-fleet"))).toEqual(["dev.json"]);
  expect(repairStates(backend)).toEqual([restored(12)]);
  expect(readFileSync(at(stack), "utf8")).toBe(state(12));
});

it("keeps nothing of a stack that is removed, nor what a killed run has begun to keep, unless somebody works on it", () => {
  write({ [stack]: state(10), "stacks/nix-builder-fleet/prod.json": state(10) });
  const finish = keepStates(backend);
  // As `stack rm` does.
  renameSync(at(stack), at(`${stack}.bak`));
  write({
    "kept/nix-builder-fleet/dev.json": state(10),
    "kept/nix-builder-fleet/gone.json.4711": state(10),
    "kept/nix-builder-fleet/prod.json": state(10),
    "locks/organization/nix-builder-fleet/prod/a.json": '{"pid":1}',
  });
  finish();
  expect(repairStates(backend)).toEqual([]);
  expect(readdirSync(at("kept/nix-builder-fleet"))).toEqual(["prod.json"]);
});

describe("on a file system of a certain size", () => {
  /** Runs a script where `folder` is such a file system, and returns what it says and its exit code. */
  function onTmpfs(options: string, script: string) {
    const program = `${folder}.mts`;
    writeFileSync(
      program,
      `import { keepStates, refuseWithoutRoom, repairStates } from "${checkout}/tools/savedState.ts";\n${script}`,
    );
    try {
      const run = `mount -t tmpfs -o ${options} none ${folder} && exec ${process.execPath} ${program}`;
      const { stdout, stderr, status } = spawnSync("unshare", ["--mount", "sh", "-c", run], { encoding: "utf8" });
      return { said: `${stdout}${stderr}`, status };
    } finally {
      rmSync(program);
    }
  }
  const asked = (removes: boolean, size = 0) => `
    import { mkdirSync, readdirSync, writeFileSync } from "node:fs";
    mkdirSync("${folder}/.pulumi/stacks/nix-builder-fleet", { recursive: true });
    writeFileSync("${folder}/.pulumi/${stack}", Buffer.alloc(${size}));
    try { refuseWithoutRoom("${backend}", "dev", ${removes}); console.log("there is room"); }
    catch (error) { console.log(error.message); }
    console.log(readdirSync("${folder}/.pulumi").join());`;
  const whole = (() => {
    try {
      execFileSync("unshare", ["--mount", "mount", "-t", "tmpfs", "none", tmpdir()], { stdio: "pipe" });
      return true;
    } catch {
      return false;
    }
  })();
  beforeEach(({ skip }) => {
    if (!whole) skip("This user may not mount a file system of its own.");
  });

  it.each([
    ["7m", false, 0, "its file system is full: 8.0 MiB are needed, 7.0 MiB are free"],
    ["9m", false, 0, "there is room"],
    ["9m", false, 1_000_000, "its file system is full: 12.8 MiB are needed, 8.0 MiB are free"],
    ["15m", false, 1_000_000, "there is room"],
    // What makes room must not need much.
    ["3m", true, 1_000_000, "its file system is full: 2.2 MiB are needed, 2.0 MiB are free"],
    ["4m", true, 1_000_000, "there is room"],
    ["9m,nr_inodes=40", false, 0, "more files (inodes), and 64 are needed"],
  ])("of %s, removing %s, with a state of %i bytes: %s", (size, removes, bytes, answer) => {
    const { said } = onTmpfs(`size=${size}`, asked(removes, bytes));
    expect(said).toContain(answer);
    if (answer !== "there is room") expect(said).toContain(`could not be written to its end in ${folder}/.pulumi`);
    // Nothing of the trial stays.
    expect(said.trim().split("\n").at(-1)).toBe("stacks");
  });

  it.each([
    ["that is read-only", "EROFS", "its file system is read-only"],
    // No file system of this kernel has quotas: what the system would answer stands in.
    ["where a quota is used up", "EDQUOT", "your quota is used up: 8.0 MiB are needed"],
  ])("%s", (_, code, answer) => {
    const { said } = onTmpfs(
      "size=20m",
      `import fs from "node:fs"; import { syncBuiltinESMExports } from "node:module";
       fs.mkdirSync("${folder}/.pulumi");
       ${code === "EROFS" ? `import { execFileSync } from "node:child_process"; execFileSync("mount", ["-o", "remount,ro", "${folder}"]);` : ""}
       if (${code === "EDQUOT"}) {
         fs.writeFileSync = () => { throw Object.assign(new Error("EDQUOT"), { code: "EDQUOT" }); };
         syncBuiltinESMExports();
       }
       try { refuseWithoutRoom("${backend}", "dev", false); } catch (error) { console.log(error.message); }`,
    );
    expect(said).toContain(answer);
  });

  it("leaves nothing of the trial when it is killed in its midst", () => {
    const { said } = onTmpfs(
      "size=20m",
      `import fs from "node:fs"; import { syncBuiltinESMExports } from "node:module";
       fs.mkdirSync("${folder}/.pulumi");
       const { writeFileSync } = fs;
       fs.writeFileSync = (...words) => {
         writeFileSync(...words);
         console.log("killed: " + fs.readdirSync("${folder}/.pulumi").join());
         process.exit();
       };
       syncBuiltinESMExports();
       refuseWithoutRoom("${backend}", "dev", false);`,
    );
    expect(said).toBe("killed: \n");
  });

  it("puts a state back where there is not a byte of room", () => {
    const { said, status } = onTmpfs(
      "size=64k",
      `import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
       const at = (name) => "${folder}/.pulumi/" + name;
       mkdirSync(at("stacks/nix-builder-fleet"), { recursive: true });
       writeFileSync(at("${stack}"), "");
       writeFileSync(at("${stack}.bak"), ${JSON.stringify(state(12))});
       try { writeFileSync(at("rest"), Buffer.alloc(1e6)); } catch (error) { console.log(error.code); }
       console.log(repairStates("${backend}").join());
       process.exit(readFileSync(at("${stack}"), "utf8") === ${JSON.stringify(state(12))} ? 0 : 1);`,
    );
    expect(said).toMatch(/ENOSPC\nthe state of stack dev was cut off/);
    expect(status).toBe(0);
  });
});
