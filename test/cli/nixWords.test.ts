/** What of `nix` can be done with a builder that is a store, and what is refused. */
import { describe, expect, it } from "vitest";
import { nixCommand, remoteUse, withOptions } from "../../src/cli/nixWords.ts";

it.each<[string, string]>([
  ["", ""],
  ["--version", ""],
  ["build", "build"],
  ["build .#run", "build"],
  ["-L --option cores 4 build .#x", "build"],
  ["--option store x build .#x", "build"],
  ["--log-format raw eval .#x", "eval"],
  ["--extra-substituters https://example.org flake check", "flake check"],
  ["flake --impure check .", "flake check"],
  ["flake", "flake"],
  ["store -v ls /nix/store", "store ls"],
  ["run .#x -- build", "run"],
  ["-- build", ""],
  ["frobnicate .#x", "frobnicate"],
])("the command of `nix %s` is `%s`", (words, command) => {
  expect(nixCommand(words.split(" ").filter((word) => word !== ""))).toBe(command);
});

it("adds options before what is for the program that is run", () => {
  expect(withOptions(["run", ".", "--", "--json", "--"], ["--store", "s"])).toEqual(
    "run . --store s -- --json --".split(" "),
  );
  expect(withOptions(["build", "."], ["--json"])).toEqual(["build", ".", "--json"]);
});

describe("with --remote-store", () => {
  it.each([
    ["build .", "build"],
    ["-L build -f x.nix a --argstr n v", "build"],
    ["path-info -r .", "read"],
    ["store ping", "read"],
    ["ping-store", "read"],
    ["store ls /nix/store/x", "read"],
    ["eval --expr 1", "here"],
    ["flake show", "here"],
    ["flake lock", "here"],
    ["show-derivation .", "here"],
    ["run --help", "here"],
    ["--version", "here"],
  ])("`nix %s`: %s", (words, use) => {
    expect(remoteUse(words.split(" "), "x86")).toBe(use);
  });

  it.each([
    [
      "flake check",
      /^`nix flake check` .* builds none .*`fleet nix --remote-store x86 build FLAKE#checks.SYSTEM.NAME`/,
    ],
    ["run . -- --help", /^`nix run` .* build that first \(`fleet nix --remote-store x86 build INSTALLABLE`\)/],
    ["shell .#a .#b -c true", /^`nix shell` .* leave out --remote-store/],
    ["develop", /^`nix develop` .* leave out --remote-store/],
    ["profile install .", /^`nix profile install` .* build it first/],
    ["copy --to s .", /^`nix copy` .*--from, --to.* leave out --remote-store/],
    ["store gc", /^`nix store gc` with --remote-store is of no use; leave it out$/],
    ["frobnicate", /^`nix frobnicate` with --remote-store is of no use; leave it out$/],
    ["build --store s .", /^--store and --remote-store each say which store it is; leave out one of them$/],
    ["build --eval-store s .", /^--eval-store and --remote-store/],
    ["build --profile p .", /^a profile is of this machine's store/],
  ])("`nix %s` is refused in words", (words, message) => {
    expect(() => remoteUse(words.split(" "), "x86")).toThrow(message);
  });
});
