/** What else than `build` a builder as a store is good for, and where what an evaluation needs is built. */
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { execa } from "execa";
import { clientEnvironment } from "../../src/client/environment.ts";
import { storeUri } from "../../src/nix/machinesFile.ts";
import { findCurrentNix, type CurrentNix } from "../support/currentNix.ts";
import { LocalFleet, system } from "../support/localFleet.ts";

let fleet: LocalFleet;
let current: CurrentNix;
beforeAll(async () => {
  // By itself Nix would take the second.
  fleet = await LocalFleet.start({ alias: "t-a" }, { alias: "t-b", speedFactor: 100 });
  current = findCurrentNix();
}, 300_000);
afterAll(() => fleet.stop());

/** Runs in a process of its own, as what Nix prints goes to the terminal directly. */
const script = `
const { runInRemoteStore } = await import(${JSON.stringify(new URL("../../src/cli/remoteStore.ts", import.meta.url))});
const { words, program, env, uri, store } = JSON.parse(process.argv[1]);
const explain = () => undefined;
try {
  process.exitCode = await runInRemoteStore({ words, program, env, uri, store, builder: "a", explain });
} catch (error) {
  console.error("fleet: " + error.message);
  process.exitCode = 1;
}`;

describe.each([["the installed Nix"], ["a current Nix"]])("%s", (which) => {
  const tag = which.replaceAll(" ", "-");
  let path: string;
  let folder: string;
  beforeEach(({ skip }) => {
    if (which === "a current Nix" && "missing" in current) skip(current.missing);
    path = `${which === "a current Nix" && "bin" in current ? `${current.bin}:` : ""}${process.env["PATH"] ?? ""}`;
    folder = `${fleet.root}/flake-${tag}`;
    mkdirSync(folder, { recursive: true });
    const text = (name: string, script: string) =>
      `derivation { name = "${name}-${tag}"; system = "${system}"; builder = "/bin/sh"; args = [ "-c" "${script}" ]; }`;
    writeFileSync(
      `${folder}/flake.nix`,
      `{ outputs = { self }: { packages.${system}.default = ${text("whole", "echo whole > $out")}; checks.${system}.bad = ${text("bad", "exit 1")}; }; }`,
    );
    writeFileSync(
      `${folder}/imports.nix`,
      `let inner = ${text("inner", "echo 5 > $out")}; in derivation {
         name = "outer-${tag}-\${toString (import inner)}"; system = "${system}"; builder = "/bin/sh"; args = [ "-c" "echo outer > $out" ]; }`,
    );
  });

  async function run(program: "nix" | "nix-build", ...words: string[]) {
    const { clientDirectory, directory } = fleet;
    const store = `${directory}/store-${tag}`;
    const env = clientEnvironment({ clientDirectory, store });
    env["NIX_CONFIG"] = `${env["NIX_CONFIG"] ?? ""}substituters =\n`;
    const uri = storeUri(fleet.builder("t-a").machine);
    const args = ["--input-type=module", "--eval", script, JSON.stringify({ words, program, env, uri, store })];
    const { exitCode, stdout, stderr } = await execa(process.execPath, args, {
      cwd: folder,
      env: { PATH: path },
      reject: false,
    });
    return { exitCode, stdout, stderr, store };
  }
  /** Whether a builder has a path. */
  const has = (alias: string, storePath: string) =>
    existsSync(`${fleet.builder(alias).local.directory}/root${storePath}`);

  it("evaluates without a builder, and reads a builder's store", async () => {
    expect(await run("nix", "eval", "--expr", "1 + 1")).toMatchObject({ exitCode: 0, stdout: "2" });
    expect(await run("nix", "flake", "show", ".")).toMatchObject({ exitCode: 0 });
    expect((await run("nix", "store", "ping")).exitCode).toBe(0);
    const built = await run("nix", "-L", "build", "--no-link", "--", ".");
    expect(built).toMatchObject({ exitCode: 0, stdout: expect.stringMatching(/^\/nix\/store\/\S+-whole-/) as string });
    expect(has("t-a", built.stdout)).toBe(true);
    expect(await run("nix", "path-info", ".")).toMatchObject({ exitCode: 0, stdout: built.stdout });
    expect(await run("nix", "store", "cat", built.stdout)).toMatchObject({ exitCode: 0, stdout: "whole" });
    expect(await run("nix", "build", "--dry-run", ".")).toMatchObject({ exitCode: 0, stdout: "" });
  });

  it("says of no check that is not built that all is well", async () => {
    const checked = await run("nix", "flake", "check", ".");
    expect(checked.exitCode).toBe(1);
    expect(checked.stderr).toContain("builds none of the checks there");
    expect((await run("nix", "build", "--no-link", `.#checks.${system}.bad`)).exitCode).toBe(1);
  });

  it("has what an evaluation needs built on that builder by nix-build, and refuses it in words for nix", async () => {
    const refused = await run("nix", "build", "--impure", "--no-link", "-f", "imports.nix");
    expect(refused.exitCode).not.toBe(0);
    expect(refused.stderr).toContain("import from derivation), and `nix` takes that back from no remote store");
    const built = await run("nix-build", "--no-out-link", "imports.nix", "-j4");
    expect(built).toMatchObject({ exitCode: 0, stdout: expect.stringMatching(/-outer-.*-5$/) as string });
    const inner = / '(\S+-inner-\S+)\.drv'/.exec(built.stderr)?.[1] ?? "";
    expect(inner).not.toBe("");
    const { stdout } = await execa("nix-store", ["--query", "--outputs", `${inner}.drv`], {
      env: { ...clientEnvironment({ clientDirectory: fleet.clientDirectory, store: built.store }) },
    });
    expect([has("t-a", stdout), has("t-b", stdout)]).toEqual([true, false]);
  });
});
