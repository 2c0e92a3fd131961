/** The root flake, as far as it can be read without nixpkgs. What whole systems say, `nix flake check` tells: CONTRIBUTING.md. */
import { execFileSync, spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import * as z from "zod";
import { forms } from "../../src/nix/forms.ts";
import { currentRelease, pinnedNixpkgs } from "../../src/nixosRelease.ts";
import { checkout } from "../../tools/launch.mjs";
import { x86 } from "../nix/fleets.ts";
import { temporaryDirectory } from "../nix/realNix.ts";
import { findCurrentNix } from "../support/currentNix.ts";

const read = (name: string) => readFileSync(`${checkout}/${name}`, "utf8");
const locked = z.looseObject({ narHash: z.string().regex(/^sha256-[A-Za-z0-9+/]{43}=$/) });
const lock = z
  .object({
    nodes: z.record(z.string(), z.object({ locked: locked.optional(), original: z.looseObject({}).optional() })),
  })
  .parse(JSON.parse(read("flake.lock")));

describe("the root flake", () => {
  it("has the nixpkgs that new builders get, by the same hash, and its relatives of the same release", () => {
    const { url, hash } = pinnedNixpkgs[currentRelease];
    expect(lock.nodes["nixpkgs"]?.locked).toEqual({ type: "tarball", url, narHash: hash });
    expect(lock.nodes["home-manager"]?.original).toMatchObject({ ref: `release-${currentRelease}` });
    expect(lock.nodes["nix-darwin"]?.original).toMatchObject({ ref: `nix-darwin-${currentRelease}` });
  });

  it(
    "is locked whole: a current Nix needs nothing from the network to know its inputs",
    { timeout: 300_000 },
    (context) => {
      const nix = findCurrentNix();
      if ("missing" in nix) {
        context.skip(nix.missing);
        return;
      }
      using directory = temporaryDirectory();
      const at = directory.path;
      mkdirSync(`${at}/flake`);
      const metadata = () =>
        spawnSync(
          `${nix.bin}/nix`,
          ["--offline", "flake", "metadata", "--json", "--no-update-lock-file", `path:${at}/flake`],
          {
            env: {
              HOME: at,
              NIX_CONF_DIR: at,
              NIX_REMOTE: `local?root=${at}/root`,
              NIX_CONFIG: "experimental-features = nix-command flakes\nbuild-users-group =",
            },
            encoding: "utf8",
            timeout: 60_000,
          },
        );
      for (const name of ["flake.nix", "flake.lock"]) copyFileSync(`${checkout}/${name}`, `${at}/flake/${name}`);
      const { status, stdout, stderr } = metadata();
      expect(status, stderr).toBe(0);
      expect(z.object({ locks: z.unknown() }).parse(JSON.parse(stdout)).locks).toEqual(JSON.parse(read("flake.lock")));
      // Another input than the locked one is noticed.
      writeFileSync(`${at}/flake/flake.nix`, read("flake.nix").replace(`release-${currentRelease}`, "release-25.11"));
      expect(metadata().status).not.toBe(0);
    },
  );

  it("has checks that read, of files that are there", () => {
    const systems = `${checkout}/test/nixos/systems.nix`;
    execFileSync("nix-instantiate", ["--parse", systems], { stdio: "pipe", timeout: 20_000 });
    const paths = [...readFileSync(systems, "utf8").matchAll(/(?<=[ (])\.\.\/[\w/.-]+/g)].map(([path]) => path);
    expect(paths.length).toBeGreaterThan(3);
    expect(paths.filter((path) => !existsSync(`${checkout}/test/nixos/${path}`))).toEqual([]);
  });

  it("is checked by GitHub's CI, with the actions at the commits that users get", () => {
    const ci = read(".github/workflows/systems.yml");
    expect(ci).toContain(" flake check --no-build --no-update-lock-file\n");
    const uses = (text: string) =>
      [...text.matchAll(/uses: (\S+@[0-9a-f]{40} # \S+)/g)].map(([, action = ""]) => action);
    const ours = uses(forms.githubWorkflow.render([x86].map((machine) => ({ ...machine, hostName: "203.0.113.7" }))));
    expect(ours.filter((action) => !uses(ci).includes(action))).toEqual([]);
  });
});
