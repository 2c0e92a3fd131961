/** `nix log` of what was built on a builder alone. */
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { execa } from "execa";
import { userInfo } from "node:os";
import { clientEnvironment } from "../../src/client/environment.ts";
import { fetchLogs } from "../../src/cli/log.ts";
import { runInRemoteStore } from "../../src/cli/remoteStore.ts";
import { storeUri } from "../../src/nix/machinesFile.ts";
import { findCurrentNix, type CurrentNix } from "../support/currentNix.ts";
import { LocalFleet, system } from "../support/localFleet.ts";

let fleet: LocalFleet;
let current: CurrentNix;
beforeAll(async () => {
  fleet = await LocalFleet.start({ alias: "t-a" }, { alias: "t-b" });
  current = findCurrentNix();
}, 300_000);
afterAll(() => fleet.stop());

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

  it("shows it after a build in a builder's store, by its result and by its derivation", async () => {
    const { clientDirectory, directory } = fleet;
    const store = `${directory}/store-${tag}`;
    const env = clientEnvironment({ clientDirectory, store });
    const expression = `derivation { name = "logged-${tag}"; system = "${system}"; builder = "/bin/sh"; args = [ "-c" "echo it is built; echo > $out" ]; }`;
    const printed: string[] = [];
    const said = [vi.spyOn(console, "error"), vi.spyOn(console, "log")].map((spy) =>
      spy.mockImplementation((line: string) => printed.push(line)),
    );
    try {
      const words = ["-E", expression, "--no-out-link", "--option", "substituters", ""];
      const uri = storeUri(fleet.builder("t-b").machine);
      expect(await runInRemoteStore({ program: "nix-build", words, env, store, uri, explain: () => undefined })).toBe(
        0,
      );
    } finally {
      for (const spy of said) spy.mockRestore();
    }
    const path = printed.find((line) => line.startsWith("/nix/store/")) ?? "";
    const log = (what: string) =>
      execa("nix", ["log", what, "--option", "substituters", ""], { env, reject: false, stdin: "ignore" });
    expect((await log(path)).exitCode).not.toBe(0);
    await fetchLogs({
      words: [path],
      env,
      store,
      clientDirectory,
      adminPrivateKey: fleet.admin.privateKey,
      holders: fleet.builders.map(({ machine, local }) => ({
        machine,
        user: userInfo().username,
        ownStore: `${local.directory}/root`,
      })),
    });
    expect((await log(path)).stdout).toContain("it is built");
    const derivation = await execa("nix-instantiate", ["-E", expression], { env });
    expect((await log(derivation.stdout)).stdout).toContain("it is built");
  });
});
