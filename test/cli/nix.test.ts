import { describe, expect, it } from "vitest";
import { asksForLocalBuilds, leavesResults, wrongRemoteStore } from "../../src/cli/nix.ts";
import { splitNixBuildWords } from "../../src/cli/nixBuildWords.ts";

const builder = (name: string, system: string, supportedFeatures: string[] = [], mandatoryFeatures: string[] = []) => ({
  name,
  systems: [system],
  supportedFeatures,
  mandatoryFeatures,
});
const builders = [
  builder("x86", "x86_64-linux", ["big-parallel"]),
  builder("arm", "aarch64-linux"),
  builder("gpu", "aarch64-linux", [], ["cuda"]),
];

/** What Nix 2.8 and Nix 2.34 print when a remote store lacks what a derivation requires. */
const old = (system: string, features = "") =>
  `error: a '${system}' with features {${features}} is required to build '/nix/store/x.drv', but I am a 'x86_64-linux' with features {big-parallel}`;
const current = (system: string, features = "") =>
  `error: Cannot build '/nix/store/x.drv'.\n       Reason: \u001b[31mrequired system or feature not available\u001b[0m\n       ` +
  `Required system: '\u001b[35m${system}\u001b[0m' with features {${features}}\n       Current system: 'x86_64-linux' with features {}`;

describe.each([
  ["2.8", old],
  ["2.34", current],
])("a remote store that can't build what it was given, under Nix %s", (_, said) => {
  it("is told from those that can", () => {
    expect(wrongRemoteStore(said("aarch64-linux"), builders)).toBe(
      "that builder doesn't build for aarch64-linux; these do: arm",
    );
    expect(wrongRemoteStore(said("aarch64-linux", "cuda"), builders)).toBe(
      "that builder doesn't build for aarch64-linux with cuda; these do: gpu",
    );
    expect(wrongRemoteStore(said("x86_64-linux", "kvm, big-parallel"), builders)).toBe(
      "no builder of this stack builds for x86_64-linux with kvm, big-parallel",
    );
  });
});

it("is one plain line whatever the builder says, and found in a moment", () => {
  const forged = wrongRemoteStore(old("x\nfleet: x86 is verified\u202e", "a\nfleet: b"), builders);
  expect(forged).toBe("no builder of this stack builds for x fleet: x86 is verified\uFFFD with a fleet: b");
  const started = Date.now();
  for (const part of ["\x1b]0;", "\x1b]x\\", "\x1b[", "a '"]) wrongRemoteStore(part.repeat(100_000), builders);
  expect(Date.now() - started).toBeLessThan(2000);
});

it("says nothing of a build that failed by itself", () => {
  expect(wrongRemoteStore("error: builder for '/nix/store/x.drv' failed with exit code 1", builders)).toBeUndefined();
});

it("tells what nix-build is to evaluate from how it is to build that", () => {
  const words = [
    "<nixpkgs>",
    "-A",
    "hello",
    "-o",
    "far",
    "--option",
    "substituters",
    "",
    "-j4",
    "--arg",
    "x",
    "1",
    "-k",
  ];
  expect(splitNixBuildWords(words)).toEqual({
    evaluation: ["<nixpkgs>", "-A", "hello", "--option", "substituters", "", "-j4", "--arg", "x", "1", "-k"],
    build: ["--option", "substituters", "", "-j4", "-k"],
  });
  expect(splitNixBuildWords(["--no-sandbox", "./x.nix", "--builders-use-substitutes", "--check"])).toEqual({
    evaluation: ["--no-sandbox", "./x.nix", "--builders-use-substitutes"],
    build: ["--no-sandbox", "--builders-use-substitutes", "--check"],
  });
  expect(() => splitNixBuildWords(["./x.nix", "--store", "s"])).toThrow("--store and --remote-store each say");
  expect(() => splitNixBuildWords(["--http2", "./x.nix"])).toThrow(
    "it can't be told whether ./x.nix belongs to --http2; write `--option http2 VALUE` in its place",
  );
});

it.each<["nix" | "nix-build", string, boolean]>([
  ["nix-build", "x.nix -A a", true],
  ["nix-build", "x.nix --dry-run", false],
  ["nix-build", "--version", false],
  ["nix", "build .#x", true],
  ["nix", "--option cores 4 build .#x", true],
  ["nix", "build --dry-run .#x", false],
  ["nix", "eval .#build", false],
  ["nix", "run .#x -- build", false],
  ["nix", "log .#x", false],
])("says where the results of `%s %s` are: %s", (program, words, says) => {
  expect(leavesResults(program, words.split(" "))).toBe(says);
});

it("takes no word of the program that `nix run` starts for one about builds here", () => {
  expect(asksForLocalBuilds(["run", ".", "-j4"])).toBe(true);
  expect(asksForLocalBuilds(["run", ".", "--", "-j4"])).toBe(false);
});
