/** What stands in a client's folder where files are to be, and is none. */
import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { checkout } from "../../tools/launch.mjs";

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "fleet-ownership-"));
});
afterEach(() => {
  rmSync(root, { recursive: true, force: true });
});

/** What `npx fleet client` says, in a process that can be ended and may not take all memory. */
function write(name: string, force: boolean) {
  const script = `import { writeClient } from "${checkout}/src/cli/client.ts";
    const fleet = { stack: "dev", builders: [], clientSettings: { directory: "/etc/nix/fleet", localSystems: [], caches: [], clients: [] },
      clientPrivateKey: "KEY", clientPrivateKeys: {}, adminPrivateKey: "ADMIN" };
    writeClient(fleet, { directory: process.argv[1], force: ${force} });`;
  const options = { encoding: "utf8", timeout: 20_000, killSignal: "SIGKILL" } as const;
  const { stderr, status } = spawnSync(process.execPath, ["--input-type=module", "-e", script, root], options);
  return {
    refused: stderr.includes(`${root}/${name} is no file, and is left alone; choose another folder, or move it away`),
    status,
  };
}

const makers: Readonly<Record<string, (path: string) => void>> = {
  "a FIFO": (path) => void execFileSync("mkfifo", [path]),
  "a folder": (path) => {
    mkdirSync(path);
  },
  "a link to a device": (path) => {
    symlinkSync("/dev/full", path);
  },
};

it.each(
  Object.keys(makers).flatMap((what) => ["machines", ".nix-builder-fleet.json"].map((name) => [what, name] as const)),
)("%s in the place of %s is neither read nor overwritten", (what, name) => {
  makers[what]?.(join(root, name));
  for (const force of [false, true]) expect(write(name, force)).toEqual({ refused: true, status: 1 });
});

it("a link that leads nowhere, or in a circle, is nothing", () => {
  symlinkSync("nowhere", join(root, "machines"));
  symlinkSync("nix.conf", join(root, "nix.conf"));
  expect(write("machines", false)).toEqual({ refused: false, status: 0 });
});

it("a link to a file is as good as the file", () => {
  writeFileSync(join(root, "there"), "# mine\n");
  symlinkSync("there", join(root, "machines"));
  expect(write("machines", false)).toEqual({ refused: false, status: 1 });
  expect(write("machines", true)).toEqual({ refused: false, status: 0 });
});
