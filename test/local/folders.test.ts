import { execFileSync } from "node:child_process";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { stops } from "../support/attack.ts";
import { removeTree } from "../../src/local/folders.ts";
import { checkout } from "../../tools/launch.mjs";

let root: string;
let stacks: string;
beforeEach(() => {
  root = mkdtempSync(`${tmpdir()}/folders-`);
  stacks = `${root}/.fleet/stacks`;
  mkdirSync(`${stacks}/dev/machines/x86/root/nix/store/a`, { recursive: true });
  mkdirSync(`${stacks}/prod`);
  mkdirSync(`${root}/.fleet/state`);
  mkdirSync(`${root}/elsewhere/x86`, { recursive: true });
  for (const file of [".fleet/passphrase", ".fleet/state/prod.json", ".fleet/stacks/prod/key", "elsewhere/x86/file"])
    writeFileSync(`${root}/${file}`, "precious", { mode: 0o400 });
  vi.spyOn(console, "error").mockImplementation(() => undefined);
});
afterEach(() => {
  vi.restoreAllMocks();
  rmSync(root, { recursive: true, force: true });
});

function everythingElseIsThere(): void {
  for (const file of [".fleet/passphrase", ".fleet/state/prod.json", ".fleet/stacks/prod/key", "elsewhere/x86/file"]) {
    expect(readFileSync(`${root}/${file}`, "utf8")).toBe("precious");
    expect(statSync(`${root}/${file}`).mode & 0o777).toBe(0o400);
  }
}

describe("what is removed", () => {
  it("is a builder, and the folders above it that are empty then", () => {
    rmSync(`${stacks}/prod`, { recursive: true });
    removeTree(`${stacks}/dev/machines/x86`);
    expect(existsSync(stacks)).toBe(false);
    expect(existsSync(`${root}/.fleet/passphrase`)).toBe(true);
  });

  it("is as deep as a build has made it, and read-only", () => {
    // Root needs no mode, so as an ordinary user does it.
    vi.spyOn(process, "getuid").mockReturnValue(1000);
    const name = "d".repeat(200);
    const script = `i=0; while [ $i -lt 50 ]; do mkdir ${name} && cd -P ${name} || exit 1; i=$((i + 1)); done; chmod 500 .`;
    execFileSync("bash", ["-c", script], { cwd: `${stacks}/dev/machines/x86/root/nix/store/a` });
    chmodSync(`${stacks}/dev/machines/x86/root/nix/store/a`, 0o500);
    removeTree(`${stacks}/dev`);
    expect(existsSync(`${stacks}/dev`)).toBe(false);
    everythingElseIsThere();
  });

  it("is a stack, and no other one", () => {
    removeTree(`${stacks}/dev`);
    expect(existsSync(`${stacks}/dev`)).toBe(false);
    removeTree(`${stacks}/dev`);
    everythingElseIsThere();
  });

  it.each([
    ["the folder of all stacks", "/.fleet/stacks"],
    ["the same, with a slash", "/.fleet/stacks/"],
    ["that of this project, by the stack '..'", "/.fleet/stacks/.."],
    ["that of all stacks, by the stack '.'", "/.fleet/stacks/."],
    ["another stack, from within one", "/.fleet/stacks/dev/../prod"],
    ["the state, from within a stack", "/.fleet/stacks/dev/machines/../../../state"],
    ["what is no fleet's", "/elsewhere"],
    ["the checkout", ""],
  ])("is never %s", (_, path) => {
    expect(() => {
      removeTree(`${root}${path}`);
    }).toThrow("is not removed: only a stack's folder");
    expect(existsSync(`${stacks}/dev/machines/x86/root`)).toBe(true);
    everythingElseIsThere();
  });

  it("is never what a relative path may mean", () => {
    expect(() => {
      removeTree(".fleet/stacks/dev");
    }).toThrow("is not removed");
  });
});

describe("a link that somebody planted", () => {
  stops({
    attack: "a link in a stack's folder",
    tried: "links in place of a builder, a stack, or what lies above it, before destroy",
    stopped: "links are removed and never followed",
  });

  it("in a builder's folder is removed, and not what it leads to", () => {
    symlinkSync(`${root}/elsewhere`, `${stacks}/dev/machines/x86/root/nix/store/link`);
    symlinkSync(`${root}/elsewhere/x86/file`, `${stacks}/dev/machines/x86/file`);
    removeTree(`${stacks}/dev/machines/x86`);
    expect(existsSync(`${stacks}/dev`)).toBe(false);
    everythingElseIsThere();
  });

  it.each(["dev/machines/x86", "dev"])("in the place of %s is removed, and not what it leads to", (place) => {
    rmSync(`${stacks}/${place}`, { recursive: true });
    symlinkSync(`${root}/elsewhere`, `${stacks}/${place}`);
    removeTree(`${stacks}/${place}`);
    expect(existsSync(`${stacks}/${place}`)).toBe(false);
    everythingElseIsThere();
  });

  it.each(["dev/machines", "dev"])("above what is to be removed, in the place of %s, is not followed", (place) => {
    rmSync(`${stacks}/${place}`, { recursive: true });
    symlinkSync(place === "dev" ? root : `${root}/elsewhere`, `${stacks}/${place}`);
    removeTree(`${stacks}/dev/${place === "dev" ? "elsewhere" : "machines"}/x86`);
    everythingElseIsThere();
    expect(vi.mocked(console.error).mock.calls.flat().join()).toContain("is left alone");
  });
});

it("removes read-only folders as an ordinary user, and changes no mode behind a link", ({ skip }) => {
  if (process.getuid?.() !== 0) skip("Only root can try it as somebody else.");
  symlinkSync(`${root}/elsewhere`, `${stacks}/dev/machines/x86/root/nix/store/a/link`);
  symlinkSync(`${root}/elsewhere/x86/file`, `${stacks}/dev/machines/x86/root/nix/store/a/file`);
  execFileSync("chown", ["-R", "65534:65534", root]);
  for (const folder of ["a", "."]) chmodSync(`${stacks}/dev/machines/x86/root/nix/store/${folder}`, 0o555);
  const script = `process.setgid(65534); process.setuid(65534);
    (await import("${checkout}/src/local/folders.ts")).removeTree("${stacks}/dev");`;
  execFileSync(process.execPath, ["--input-type=module", "--disable-warning=ExperimentalWarning", "-e", script]);
  expect(existsSync(`${stacks}/dev`)).toBe(false);
  everythingElseIsThere();
});
