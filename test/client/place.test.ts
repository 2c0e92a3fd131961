/** Where `fleet client DIR` writes a key, and where it doesn't. What others could do needs root to be set up. */
import { spawnSync } from "node:child_process";
import {
  chmodSync,
  chownSync,
  existsSync,
  lchownSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { stops } from "../support/attack.ts";
import { placeProblem } from "../../src/client/place.ts";
import { writeClientDirectory } from "../../src/client/directory.ts";
import { checkout } from "../../tools/launch.mjs";

let root: string;
beforeEach(() => {
  // A sticky folder that all can write to is on the way, as it mostly is.
  root = mkdtempSync("/tmp/place-");
  chmodSync(root, 0o755);
});
afterEach(() => {
  rmSync(root, { recursive: true, force: true });
});

const stranger = 65534;

it.each([
  ["is there", ""],
  ["is to be made", "/a/b"],
])("is a folder of this user's own that %s", (_, path) => {
  expect(placeProblem(`${root}${path}`)).toBeUndefined();
});

it("is a folder that this user's own group can write to, and one that a link of this user's leads to", () => {
  mkdirSync(`${root}/own`);
  chownSync(`${root}/own`, process.getuid?.() ?? 0, process.getgid?.() ?? 0);
  chmodSync(`${root}/own`, 0o775);
  symlinkSync(`${root}/own`, `${root}/link`);
  expect(placeProblem(`${root}/link/new`)).toBeUndefined();
});

describe("is never a folder", () => {
  stops({
    attack: "another user waits for a client's key",
    tried: "a folder for fleet client that others own or can write to, also above it and behind links",
    stopped: "it is refused before anything is written; the key is made with its mode",
  });

  it.each([
    ["that all can write to", 0o777, "", "others can write to"],
    ["that all can write to, with the sticky bit", 0o1777, "", "others can write to"],
    ["below one that all can write to without the sticky bit", 0o777, "/below", "others can write to"],
  ])("%s", (_, mode, below, said) => {
    mkdirSync(`${root}/open`);
    chmodSync(`${root}/open`, mode);
    if (below !== "") mkdirSync(`${root}/open${below}`);
    expect(placeProblem(`${root}/open${below}`)).toMatch(
      new RegExp(`^${said} ${root}/open .*: chmod go-w ${root}/open, or `),
    );
    chmodSync(`${root}/open`, 0o755);
    expect(placeProblem(`${root}/open${below}`)).toBeUndefined();
  });

  it("behind links that lead in a circle", () => {
    symlinkSync(`${root}/a`, `${root}/b`);
    symlinkSync(`${root}/b`, `${root}/a`);
    expect(placeProblem(`${root}/a/x`)).toContain("its links lead in a circle");
  });

  describe("of somebody else", () => {
    beforeEach(({ skip }) => {
      if (process.getuid?.() !== 0) skip("Only root can make somebody else's files.");
    });

    it.each([
      ["itself", "/theirs"],
      ["above it", "/theirs/mine"],
    ])("%s", (_, path) => {
      mkdirSync(`${root}/theirs/mine`, { recursive: true });
      chownSync(`${root}/theirs`, stranger, stranger);
      expect(placeProblem(`${root}${path}`)).toContain(`${root}/theirs belongs to another user (uid ${stranger})`);
    });

    it.each([
      ["a link of theirs", "/theirs"],
      ["a link of this user's that leads over one of theirs", "/mine"],
      ["what is to be made behind it", "/theirs/new"],
    ])("behind %s", (_, path) => {
      mkdirSync(`${root}/target`);
      symlinkSync(`${root}/target`, `${root}/theirs`);
      lchownSync(`${root}/theirs`, stranger, stranger);
      symlinkSync(`${root}/theirs`, `${root}/mine`);
      expect(placeProblem(`${root}${path}`)).toContain(`${root}/theirs is a link of another user (uid ${stranger})`);
    });

    it("whose group can write to it", () => {
      mkdirSync(`${root}/group`);
      chownSync(`${root}/group`, 0, stranger);
      chmodSync(`${root}/group`, 0o775);
      expect(placeProblem(`${root}/group`)).toContain(`others can write to ${root}/group (mode 775)`);
    });

    it("where no key is written", () => {
      mkdirSync(`${root}/theirs`);
      chownSync(`${root}/theirs`, stranger, stranger);
      const script = `import { writeClient } from "${checkout}/src/cli/client.ts";
        const fleet = { stack: "dev", builders: [], clientSettings: { directory: "/etc/nix/fleet", localSystems: [], caches: [], clients: [] },
          clientPrivateKey: "KEY", clientPrivateKeys: {}, adminPrivateKey: "ADMIN" };
        writeClient(fleet, { directory: process.argv[1] });`;
      const write = (directory: string) =>
        spawnSync(process.execPath, ["--input-type=module", "-e", script, directory], { encoding: "utf8" });
      expect(write(`${root}/theirs`).stderr).toContain("belongs to another user");
      expect(readdirSync(`${root}/theirs`)).toEqual([]);
      expect(write(`${root}/mine`).stderr).toBe("");
      expect(readFileSync(`${root}/mine/id_ed25519`, "utf8")).toBe("KEY");
    });
  });
});

describe("what is written", () => {
  it.each([0o000, 0o022, 0o077])("has the same modes under umask %i", (umask) => {
    const script = `process.umask(${umask});
      (await import("${checkout}/src/client/directory.ts")).writeClientDirectory("${root}/a/b", { id_ed25519: "K", machines: "M" });`;
    const { stderr } = spawnSync(process.execPath, ["--input-type=module", "-e", script], { encoding: "utf8" });
    expect(stderr).toBe("");
    const mode = (path: string) => (statSync(`${root}/a${path}`).mode & 0o777).toString(8);
    expect(["", "/b", "/b/id_ed25519", "/b/machines"].map(mode)).toEqual(["755", "755", "600", "644"]);
  });

  it("takes the place of a link, and leaves alone what it leads to", () => {
    writeFileSync(`${root}/precious`, "KEY", { mode: 0o644 });
    mkdirSync(`${root}/client`);
    symlinkSync(`${root}/precious`, `${root}/client/id_ed25519`);
    writeClientDirectory(`${root}/client`, { id_ed25519: "KEY" });
    expect(statSync(`${root}/precious`).mode & 0o777).toBe(0o644);
    rmSync(`${root}/precious`);
    expect(existsSync(`${root}/client/id_ed25519`)).toBe(true);
  });
});
