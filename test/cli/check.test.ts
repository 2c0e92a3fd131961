/** `--check` builds once more and compares. Only a store that builds by itself does that. */
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { execa } from "execa";
import { clientEnvironment } from "../../src/client/environment.ts";
import { refuseCheck } from "../../src/cli/nix.ts";
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

const derivation = (name: string, text: string) =>
  `derivation { name = "${name}"; system = "${system}"; builder = "/bin/sh"; args = [ "-c" "${text} > $out" ]; }`;
/** Another text each time. */
const changing = "read -r x < /proc/sys/kernel/random/uuid; echo $x";

describe.each([["the installed Nix"], ["a current Nix"]])("%s", (which) => {
  const tag = which.replaceAll(" ", "-");
  beforeEach(({ skip, onTestFinished }) => {
    if (which !== "a current Nix") return;
    if ("missing" in current) skip(current.missing);
    else vi.stubEnv("PATH", `${current.bin}:${process.env["PATH"] ?? ""}`);
    onTestFinished(() => {
      vi.unstubAllEnvs();
    });
  });

  it("doesn't do it through rows of builders, as is said where it is refused", async () => {
    const { clientDirectory, directory } = fleet;
    const env = clientEnvironment({ clientDirectory, store: `${directory}/store-rows-${tag}` });
    const words = ["-E", derivation(`rows-${tag}`, changing), "--no-out-link", "--option", "substituters", ""];
    expect((await execa("nix-build", words, { env, reject: false })).exitCode).toBe(0);
    const checked = await execa("nix-build", [...words, "--check"], { env, reject: false });
    // It differs for certain, and that isn't found out: it isn't built again, or Nix fails for another reason.
    expect(checked.stderr).not.toContain("may not be deterministic");
  });

  it.each([
    ["nix-build", "the same each time", "echo same", true],
    ["nix-build", "something else each time", changing, false],
    ["nix", "the same each time", "echo same", true],
    ["nix", "something else each time", changing, false],
  ] as const)("%s does it in a builder's store, for what builds %s", async (program, _, text, same) => {
    const { clientDirectory, directory } = fleet;
    const store = `${directory}/store-remote-${tag}`;
    const expression = derivation(`remote-${tag}-${program}-${String(same)}`, text);
    const said = [vi.spyOn(console, "error"), vi.spyOn(console, "log")].map((spy) => spy.mockReturnValue(undefined));
    let problem = "";
    try {
      const words =
        program === "nix-build"
          ? ["-E", expression, "--no-out-link"]
          : ["build", "--impure", "--expr", expression, "--no-link"];
      const run = (...more: string[]) =>
        runInRemoteStore({
          program,
          words: [...words, "--option", "substituters", "", ...more],
          env: clientEnvironment({ clientDirectory, store }),
          store,
          builder: "a",
          uri: storeUri(fleet.builder("t-a").machine),
          explain: (text) => {
            problem = text;
            return undefined;
          },
        });
      expect(await run()).toBe(0);
      expect((await run(program === "nix" ? "--rebuild" : "--check")) === 0).toBe(same);
      // What `nix` says goes to the terminal alone.
      if (!same && program === "nix-build") expect(problem).toContain("may not be deterministic");
    } finally {
      for (const spy of said) spy.mockRestore();
    }
  });
});

it.each<["nix-build" | "nix", string[], boolean]>([
  ["nix-build", ["x.nix", "--check"], true],
  ["nix", ["build", ".#x", "--rebuild"], true],
  ["nix-build", ["x.nix", "-A", "check"], false],
  ["nix", ["run", ".#x", "--", "--rebuild"], false],
  ["nix", ["flake", "check"], false],
])("%s %j is refused: %s", (program, words, refused) => {
  const run = () => {
    refuseCheck(program, words, ["x86", "arm"]);
  };
  if (refused) {
    expect(run).toThrow(
      /^Nix doesn't build again .*: put --remote-store NAME before the arguments \(one of x86, arm\)/,
    );
  } else expect(run).not.toThrow();
});
