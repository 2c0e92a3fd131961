/** The links to results: those that Nix itself makes, by either way, and each leads to what was built. */
import { mkdirSync, readdirSync, readFileSync, readlinkSync, symlinkSync } from "node:fs";
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { clientEnvironment } from "../../src/client/environment.ts";
import { runAroundLostBuilders } from "../../src/cli/nix.ts";
import { repointOutLinks } from "../../src/cli/outLink.ts";
import { runInRemoteStore } from "../../src/cli/remoteStore.ts";
import { storeUri } from "../../src/nix/machinesFile.ts";
import { findCurrentNix, type CurrentNix } from "../support/currentNix.ts";
import { LocalFleet, system } from "../support/localFleet.ts";

let fleet: LocalFleet;
let current: CurrentNix;
beforeAll(async () => {
  fleet = await LocalFleet.start({ alias: "t-a" });
  current = findCurrentNix();
}, 300_000);
afterAll(() => fleet.stop());

const derivation = (name: string, outputs: string) =>
  `derivation {
    name = "${name}"; system = "${system}"; builder = "/bin/sh"; outputs = [ ${outputs} ];
    args = [ "-c" "for o in $outputs; do eval p=\\\\$$o; echo ${name} $o > $p; done" ];
  }`;

/** With all of its outputs among those that `nix build` takes. */
const installing = (expression: string) => `(let d = ${expression}; in d // { meta.outputsToInstall = d.outputs; })`;

const cases: [string, "nix-build" | "nix", (tag: string) => string[], string[]][] = [
  ["one output", "nix-build", (tag) => ["-E", derivation(tag, '"out"')], ["result"]],
  [
    "two derivations",
    "nix-build",
    (tag) => ["-E", `[ (${derivation(`${tag}-1`, '"out"')}) (${derivation(`${tag}-2`, '"out"')}) ]`],
    ["result", "result-2"],
  ],
  ["the same twice", "nix-build", (tag) => ["-E", `let d = ${derivation(tag, '"out"')}; in [ d d ]`], ["result"]],
  ["another output", "nix-build", (tag) => ["-E", `(${derivation(tag, '"out" "dev"')}).dev`], ["result-dev"]],
  [
    "all outputs of one",
    "nix-build",
    (tag) => ["-E", `let d = ${derivation(tag, '"out" "dev" "man"')}; in [ d d.dev d.man ]`],
    ["result", "result-dev", "result-man"],
  ],
  ["a first output that isn't out", "nix-build", (tag) => ["-E", derivation(tag, '"bin" "out"')], ["result-bin"]],
  [
    "outputs of two",
    "nix-build",
    (tag) => ["-E", `let d = n: ${derivation(`${tag}-\${n}`, '"out" "dev"')}; in [ (d "1") (d "2").dev (d "1").dev ]`],
    ["result", "result-2-dev", "result-dev"],
  ],
  [
    "all outputs, by nix",
    "nix",
    (tag) => ["build", "--impure", "--expr", installing(derivation(tag, '"out" "dev" "man"'))],
    ["result", "result-dev", "result-man"],
  ],
  [
    "two, by nix",
    "nix",
    (tag) => [
      "build",
      "--impure",
      "--expr",
      `let d = n: ${installing(derivation(`${tag}-\${n}`, '"out" "dev"'))}; in { a = d "1"; b = d "2"; }`,
      "a",
      "b",
    ],
    ["result", "result-1", "result-1-dev", "result-dev"],
  ],
];

describe.each([["the installed Nix"], ["a current Nix"]])("%s", (which) => {
  const links = (folder: string) =>
    Object.fromEntries(
      readdirSync(folder)
        .sort()
        .map((name) => [name, readFileSync(`${folder}/${name}`, "utf8")]),
    );

  beforeEach(({ skip }) => {
    if (which === "a current Nix" && "missing" in current) skip(current.missing);
  });

  it.each(cases)("makes them for %s", async (title, program, expression, names) => {
    let path = process.env["PATH"] ?? "";
    if (which === "a current Nix") {
      if ("missing" in current) throw new Error(current.missing);
      path = `${current.bin}:${path}`;
    }
    vi.stubEnv("PATH", path);
    const said = [vi.spyOn(console, "error"), vi.spyOn(console, "log")].map((spy) => spy.mockReturnValue(undefined));
    try {
      const tag = `${title}-${which}`.replaceAll(/\W/g, "-");
      const { clientDirectory, directory } = fleet;
      const folders = ["rows", "remote"].map((name) => `${directory}/${tag}-${name}`) as [string, string];
      const run = (index: 0 | 1) => {
        mkdirSync(folders[index]);
        const store = `${directory}/store-${tag}-${String(index)}`;
        const words = [...expression(tag), "-o", `${folders[index]}/result`, "--option", "substituters", ""];
        return { program, words, store, clientDirectory, env: clientEnvironment({ clientDirectory, store }) };
      };
      const rows = run(0);
      const unrelated = `${folders[0]}/resulting`;
      symlinkSync("/nowhere", unrelated);
      expect(await runAroundLostBuilders({ ...rows, machines: [fleet.builder("t-a").machine] })).toBe(0);
      repointOutLinks(rows.words, rows.store);
      expect(readlinkSync(unrelated)).toBe("/nowhere");
      const byNix = readdirSync(folders[0])
        .filter((name) => name !== "resulting")
        .sort();
      // Nix 2.8 takes one output alone of what has no attribute's name.
      if (program === "nix-build" || which === "a current Nix") expect(byNix).toEqual(names);
      else expect(names).toEqual(expect.arrayContaining(byNix));
      const remote = run(1);
      const uri = storeUri(fleet.builder("t-a").machine);
      expect(await runInRemoteStore({ ...remote, builder: "a", uri, explain: () => undefined })).toBe(0);
      const made = links(folders[1]);
      expect(Object.keys(made)).toEqual(byNix);
      for (const name of byNix) expect(readFileSync(`${folders[0]}/${name}`, "utf8")).toBe(made[name]);
    } finally {
      vi.unstubAllEnvs();
      for (const spy of said) spy.mockRestore();
    }
  });
});
