/** The workflow: read by actionlint, and its own steps run against a real builder. */
import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { parse } from "yaml";
import { parseGithubWorkflow, renderGithubWorkflow } from "../../src/ci/githubWorkflow.ts";
import type { BuildMachine } from "../../src/nix/buildMachine.ts";
import { fleets, x86 } from "../nix/fleets.ts";
import { temporaryDirectory } from "../nix/realNix.ts";
import { findActionlint } from "../support/actionlint.ts";
import { startLocalBuilder } from "../support/localBuilder.ts";

interface Workflow {
  readonly jobs: {
    readonly build: {
      readonly env: Readonly<Record<string, string>>;
      readonly steps: readonly {
        readonly name?: string;
        readonly env?: Record<string, string>;
        readonly run?: string;
      }[];
    };
  };
}

test("of any fleet is read back to an equal fleet", () => {
  fc.assert(
    fc.property(fleets(), (fleet) => {
      expect(parseGithubWorkflow(renderGithubWorkflow(fleet))).toEqual(fleet);
    }),
    { numRuns: 50 },
  );
});

test("passes actionlint", { timeout: 300_000 }, (context) => {
  const actionlint = findActionlint();
  if ("missing" in actionlint) return context.skip(actionlint.missing);
  using directory = temporaryDirectory();
  const file = `${directory.path}/fleet.yml`;
  const lint = (text: string) => {
    writeFileSync(file, text);
    return spawnSync(actionlint.path, ["-no-color", file], { encoding: "utf8", timeout: 60_000 }).stdout;
  };
  const text = renderGithubWorkflow([x86, { ...x86, alias: "arm", systems: ["aarch64-linux"] }]);
  expect(lint(text)).toBe("");
  expect(lint(text.replace("inputs.nix_conf }}", "inputs.nixconf }}"))).toContain('property "nixconf" is not defined');
});

test("puts nothing that others name into a script", () => {
  const { jobs } = parse(renderGithubWorkflow([x86])) as Workflow;
  for (const { run } of jobs.build.steps) expect(run ?? "").not.toContain("${{");
});

test("adds the settings of caches to those of the fleet", () => {
  const text = renderGithubWorkflow([x86], { settings: { "extra-substituters": "https://a.example" } });
  expect(text).toContain("extra-substituters = https://a.example\n");
});

describe("its steps, run against a real builder", () => {
  /** A flake that needs nothing from anywhere: what it builds says where. */
  function writeFlake(directory: string, system: string): void {
    mkdirSync(directory);
    writeFileSync(
      `${directory}/flake.nix`,
      `{
        outputs = _:
          let build = name: script: derivation {
            inherit name; system = "${system}"; builder = "/bin/sh"; args = [ "-c" script ];
          };
          in {
            packages.${system} = { hello = build "hello" "echo hello > $out"; "odd.name" = build "odd" "echo odd > $out"; };
            checks.${system}.fails = build "fails" "echo this check fails; exit 3";
            checks.riscv64-linux.elsewhere = throw "no builder of the fleet has this system";
          };
      }`,
    );
  }

  /** Runs the steps one after the other as GitHub does: their scripts in bash, GITHUB_ENV carried on. */
  function runSteps(machine: BuildMachine, key: string, directory: string, inputs: Record<string, string>) {
    const { build } = (parse(renderGithubWorkflow([machine])) as Workflow).jobs;
    const evaluate = (text: string) =>
      text.replace(/\$\{\{ (inputs|secrets)\.(\w+) \}\}/g, (_, __, name: string) => inputs[name] ?? "");
    const files = { GITHUB_ENV: `${directory}/env`, GITHUB_STEP_SUMMARY: `${directory}/summary` };
    mkdirSync(`${directory}/store`, { recursive: true });
    for (const file of Object.values(files)) writeFileSync(file, "");
    inputs["fleet_ssh_key"] = key.trimEnd();
    const results = new Map<string, { status: number | null; output: string }>();
    let failed = false;
    for (const { name = "", env = {}, run, ...step } of build.steps) {
      if (run === undefined || (failed && !("if" in step))) continue;
      const carried = readFileSync(files.GITHUB_ENV, "utf8")
        .split("\n")
        .filter((line) => line !== "");
      const { status, stdout, stderr } = spawnSync("bash", ["--noprofile", "--norc", "-eo", "pipefail", "-c", run], {
        cwd: directory,
        encoding: "utf8",
        timeout: 120_000,
        env: {
          PATH: process.env["PATH"],
          HOME: directory,
          NIX_REMOTE: `local?root=${directory}/store`,
          NIX_STATE_DIR: `${directory}/store/state`,
          NIX_LOG_DIR: `${directory}/store/log`,
          ...files,
          ...Object.fromEntries(
            Object.entries({ ...build.env, ...env }).map(([variable, text]) => [variable, evaluate(text)]),
          ),
          ...Object.fromEntries(
            carried.map((line) => [line.split("=", 1)[0] ?? "", line.slice(line.indexOf("=") + 1)]),
          ),
        },
      });
      failed ||= status !== 0;
      results.set(name, { status, output: stdout + stderr });
    }
    const fleetDirectory = /^FLEET_DIR=(.*)$/m.exec(readFileSync(files.GITHUB_ENV, "utf8"))?.[1] ?? "";
    return { results, summary: readFileSync(files.GITHUB_STEP_SUMMARY, "utf8"), fleetDirectory };
  }

  test(
    "build packages and checks there, say what was built where, and fail with what fails",
    { timeout: 180_000 },
    async () => {
      const builder = await startLocalBuilder("ci-builder");
      try {
        const system = builder.machine.systems[0] ?? "";
        writeFlake(`${builder.directory}/flake`, system);
        const run = (filter_builds: string) =>
          runSteps(builder.machine, builder.clientPrivateKey, builder.directory, {
            flake_directory: "./flake",
            filter_builds,
            // Nothing here comes from a cache, and asking for it takes Nix 5 s without a way out.
            nix_conf: "substituters =",
          });

        const good = run('.top_attr == "packages"');
        expect([...good.results].filter(([, { status }]) => status !== 0)).toEqual([]);
        expect(good.results.get("Find the builds")?.output).toContain("2 builds:");
        expect(good.summary).toMatch(/^\| \S+-hello\.drv \| ci-builder \| [\d.]+ s \|$/m);
        expect(good.summary).toMatch(/^\| \S+-odd\.drv \| ci-builder \|/m);
        expect(good.summary).toContain("2 wanted, 2 built, 0 substituted.");
        // The key is gone afterwards, and the connection that was shared can be closed.
        expect(execFileSync("ls", [good.fleetDirectory], { encoding: "utf8" })).not.toContain("id_ed25519");

        const bad = run('.top_attr == "checks"');
        expect(bad.results.get("Find the builds")?.output).toContain(`checks.${system}.fails`);
        expect(bad.results.get("Build")?.status).not.toBe(0);
        expect(bad.results.get("Build")?.output).toContain("this check fails");
        expect(bad.summary).toMatch(/-fails\.drv \| ci-builder/);

        for (const { fleetDirectory } of [good, bad]) execFileSync("rm", ["-r", fleetDirectory]);
      } finally {
        await builder.stop();
      }
    },
  );
});
