/** `nix log` of what was built on a builder alone. */
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { execa } from "execa";
import { execFileSync } from "node:child_process";
import { mkdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { userInfo } from "node:os";
import { basename, dirname } from "node:path";
import { clientEnvironment } from "../../src/client/environment.ts";
import { fetchLogs, type LogSearch } from "../../src/cli/log.ts";
import { runInRemoteStore } from "../../src/cli/remoteStore.ts";
import { storeUri } from "../../src/nix/machinesFile.ts";
import { findCurrentNix, type CurrentNix } from "../support/currentNix.ts";
import { attack, forbidden } from "../support/hostileText.ts";
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

  /** Builds it in a builder's store, and nowhere else; returns the results. */
  async function buildThere(expression: string, env: Record<string, string>, store: string): Promise<string[]> {
    const printed: string[] = [];
    const said = [vi.spyOn(console, "error"), vi.spyOn(console, "log")].map((spy) =>
      spy.mockImplementation((line: string) => printed.push(...line.split("\n"))),
    );
    try {
      const words = ["-E", expression, "--no-out-link", "--option", "substituters", ""];
      const uri = storeUri(fleet.builder("t-b").machine);
      const explain = () => undefined;
      expect(await runInRemoteStore({ program: "nix-build", words, env, builder: "b", store, uri, explain })).toBe(0);
    } finally {
      for (const spy of said) spy.mockRestore();
    }
    return printed.filter((line) => line.startsWith("/nix/store/"));
  }

  it.each<
    [string, (built: { derivation: string; result: string; dev: string; file: string; expression: string }) => string[]]
  >([
    ["a result", ({ result }) => [result]],
    ["another output", ({ dev }) => [dev]],
    ["a derivation", ({ derivation }) => [derivation]],
    ["a derivation's output", ({ derivation }) => [`${derivation}^dev`]],
    ["an attribute of a file", ({ file }) => ["--impure", "-f", file, "it"]],
    ["an expression", ({ expression }) => ["--impure", "--expr", expression]],
    ["a flake", ({ file }) => [`${dirname(file)}#it`]],
    ["options before and after", ({ derivation }) => ["--option", "cores", "1", derivation, "--no-use-registries"]],
  ])("shows it after a build in a builder's store, by %s", async (form, wordsOf) => {
    const { clientDirectory, directory } = fleet;
    const store = `${directory}/store-${tag}`;
    const env = clientEnvironment({ clientDirectory, store });
    env["NIX_CONFIG"] = `${env["NIX_CONFIG"] ?? ""}substituters =\n`;
    const name = `logged-${tag}-${form.replaceAll(/\W/g, "-")}`;
    const expression = `(derivation { name = "${name}"; system = "${system}"; builder = "/bin/sh"; outputs = [ "out" "dev" ]; args = [ "-c" "echo it is built; echo > $out; echo > $dev" ]; })`;
    const folder = `${directory}/${name}`;
    mkdirSync(folder);
    const file = `${folder}/default.nix`;
    writeFileSync(file, `{ it = ${expression}; }`);
    writeFileSync(`${folder}/flake.nix`, `{ outputs = _: { packages.${system}.it = ${expression}; }; }`);
    const results = await buildThere(`let d = ${expression}; in [ d d.dev ]`, env, store);
    const dev = results.find((path) => path.endsWith("-dev")) ?? "";
    const result = results.find((path) => path !== dev) ?? "";
    const derivation = (await execa("nix-instantiate", ["-E", expression], { env })).stdout;
    const words = wordsOf({ derivation, result, dev, file, expression });
    // Old ones know no outputs of derivations.
    if (form === "a derivation's output" && which === "the installed Nix") return;
    const log = () => execa("nix", ["log", ...words], { env, reject: false, stdin: "ignore" });
    expect((await log()).exitCode).not.toBe(0);
    await fetchLogs(searchOf(words, env, store));
    expect(await log()).toMatchObject({ exitCode: 0, stdout: expect.stringContaining("it is built") as string });
  });

  describe("of a builder whose log is not what the name says", () => {
    const secret = `a secret of this machine ${which}`;
    it.each<[string, (log: string) => void, RegExp | undefined]>([
      [
        "control sequences",
        (log) => {
          pack(log, `printf '%s' '${Buffer.from(`log ${attack}`).toString("base64")}' | base64 -d`);
        },
        /^log /,
      ],
      [
        "gigabytes in some kilobytes",
        (log) => {
          pack(log, "head -c 150000000 /dev/zero");
        },
        undefined,
      ],
      [
        "a link to a file of this machine",
        (log) => {
          const file = `${fleet.directory}/secret`;
          pack(file, `echo '${secret}'`);
          symlinkSync(file, log);
        },
        undefined,
      ],
      [
        "a folder that leads to this machine's",
        (log) => {
          const folder = `${fleet.directory}/secrets-${tag}`;
          mkdirSync(folder);
          pack(`${folder}/${basename(log)}`, `echo '${secret}'`);
          rmSync(dirname(log), { recursive: true, force: true });
          symlinkSync(folder, dirname(log));
        },
        undefined,
      ],
      [
        "no archive",
        (log) => {
          writeFileSync(log, "plain");
        },
        undefined,
      ],
      [
        "a pipe that nobody writes to",
        (log) => {
          execFileSync("mkfifo", [log]);
        },
        undefined,
      ],
    ])("shows of %s nothing but text, soon", async (what, make, shown) => {
      const { directory } = fleet;
      const store = `${directory}/store-hostile-${tag}`;
      const env = clientEnvironment({ clientDirectory: fleet.clientDirectory, store });
      const name = `hostile-${tag}-${what.replaceAll(/\W/g, "-")}`;
      const expression = `derivation { name = "${name}"; system = "${system}"; builder = "/bin/sh"; }`;
      const { stdout: derivation } = await execa("nix-instantiate", ["-E", expression], { env });
      const file = derivation.slice("/nix/store/".length);
      const log = `${fleet.builder("t-a").local.directory}/root/nix/var/log/nix/drvs/${file.slice(0, 2)}/${file.slice(2)}.bz2`;
      mkdirSync(dirname(log), { recursive: true });
      make(log);
      const started = Date.now();
      await fetchLogs(searchOf([derivation], env, store));
      const { exitCode, stdout } = await showLog(env, derivation);
      expect(Date.now() - started).toBeLessThan(20_000);
      expect(stdout).not.toContain("secret");
      if (shown === undefined) expect(exitCode).not.toBe(0);
      else expect(stdout).toMatch(shown);
      expect(forbidden(stdout)).toEqual([]);
    });
  });
});

/** Writes what a shell's command prints, compressed. */
function pack(file: string, command: string): void {
  execFileSync("sh", ["-c", `{ ${command}; } | bzip2 > "$1"`, "sh", file]);
}

function showLog(env: Record<string, string>, what: string) {
  return execa("nix", ["log", what, "--option", "substituters", ""], { env, reject: false, stdin: "ignore" });
}

function searchOf(words: readonly string[], env: Record<string, string>, store: string): LogSearch {
  const holders = fleet.builders.map(({ machine, local }) => {
    return { machine, user: userInfo().username, ownStore: `${local.directory}/root` };
  });
  return {
    words,
    env,
    store,
    clientDirectory: fleet.clientDirectory,
    adminPrivateKey: fleet.admin.privateKey,
    holders,
  };
}
