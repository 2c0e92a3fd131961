/** The workflow: read by actionlint, and its own steps run against a real builder. */
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import fc from "fast-check";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { stops } from "../support/attack.ts";
import { parse } from "yaml";
import { parseGithubWorkflow, renderGithubWorkflow } from "../../src/ci/githubWorkflow.ts";
import { findLocalTools } from "../../src/local/tools.ts";
import type { BuildMachine } from "../../src/nix/buildMachine.ts";
import { fleets, x86 } from "../nix/fleets.ts";
import { nixPath, temporaryDirectory } from "../nix/realNix.ts";
import { findActionlint } from "../support/actionlint.ts";
import { findCurrentNix, type CurrentNix } from "../support/currentNix.ts";
import { startLocalBuilder, type LocalBuilder } from "../support/localBuilder.ts";
import { system } from "../support/localFleet.ts";

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

test("pins every action by commit, as the project's own workflows do, and leaves no token behind", () => {
  const own = `${import.meta.dirname}/../../.github/workflows`;
  const workflows = readdirSync(own).map((name) => readFileSync(`${own}/${name}`, "utf8"));
  for (const text of [renderGithubWorkflow([x86]), ...workflows]) {
    const uses = [...text.matchAll(/uses: (.*)/g)].map(([, action = ""]) => action);
    expect(uses.length).toBeGreaterThan(0);
    for (const action of uses) expect(action).toMatch(/^[\w-]+\/[\w-]+@[0-9a-f]{40} # v\d[\d.]*$/);
    expect(text.match(/actions\/checkout@.*\n +with:\n +persist-credentials: false\n/g)).toHaveLength(1);
    expect((parse(text) as { permissions: unknown }).permissions).toEqual({ contents: "read" });
  }
});

test("gives the key to the one step that takes it", () => {
  const { build } = (parse(renderGithubWorkflow([x86])) as Workflow).jobs;
  const order = build.steps.map(({ name }) => name);
  const withKey = build.steps.filter(({ env }) => Object.values(env ?? {}).includes("${{ secrets.fleet_ssh_key }}"));
  expect(withKey.map(({ name }) => name)).toEqual(["Take the key"]);
  expect(order.indexOf("Take the key")).toBeGreaterThan(order.indexOf("Find the builds"));
  expect(JSON.stringify(build.env)).not.toContain("secrets.");
});

test("adds the settings of caches to those of the fleet", () => {
  const text = renderGithubWorkflow([x86], { settings: { "extra-substituters": "https://a.example" } });
  expect(text).toContain("extra-substituters = https://a.example\n");
});

/** A flake that needs nothing from anywhere: what it builds says where. */
const usual = `outputs = _:
  let build = name: script: derivation {
    inherit name; system = "${system}"; builder = "/bin/sh"; args = [ "-c" script ];
  };
  in {
    packages.${system} = { hello = build "hello" "echo hello > $out"; "odd.name" = build "odd" "echo odd > $out"; };
    checks.${system}.fails = build "fails" "echo this check fails; exit 3";
    checks.riscv64-linux.elsewhere = throw "no builder of the fleet has this system";
  };`;

/** What a run of the workflow left. */
interface Run {
  readonly results: ReadonlyMap<string, { readonly status: number | null; readonly output: string }>;
  readonly summary: string;
  /** What GitHub would put into every later step. */
  readonly variables: string;
}

/** A runner's own folders: its home as the action that installs Nix leaves it, a checkout, and a store. */
class Runner {
  readonly directory: string;
  readonly #bin: string | undefined;

  constructor(directory: string, bin?: string) {
    this.directory = directory;
    this.#bin = bin;
    for (const folder of ["home/.config/nix", "tmp", "store", "checkout"]) {
      mkdirSync(`${directory}/${folder}`, { recursive: true });
    }
    writeFileSync(
      `${directory}/home/.config/nix/nix.conf`,
      "extra-experimental-features = nix-command flakes\naccept-flake-config = true\n",
    );
  }

  /** Puts a flake into the checkout, as git has it after `actions/checkout`: one commit deep. */
  checkOut(flake: string, files: Readonly<Record<string, string>> = {}): void {
    const origin = `${this.directory}/origin`;
    const git = (...words: string[]) => execFileSync("git", words, { stdio: "pipe", cwd: this.directory });
    rmSync(origin, { recursive: true, force: true });
    rmSync(`${this.directory}/checkout`, { recursive: true, force: true });
    git("init", "--quiet", origin);
    writeFileSync(`${origin}/flake.nix`, `{ ${flake} }`);
    for (const [name, text] of Object.entries(files)) {
      if (text.startsWith("-> ")) symlinkSync(text.slice(3), `${origin}/${name}`);
      else writeFileSync(`${origin}/${name}`, text, { mode: 0o755 });
    }
    git("-C", origin, "add", "--all");
    git("-C", origin, "-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "--quiet", "--message=x");
    git("clone", "--quiet", "--depth=1", `file://${origin}`, "checkout");
  }

  /**
   * Runs the steps one after the other as GitHub does: their scripts in bash, GITHUB_ENV carried on.
   *
   * @param before Called before each step, with its name.
   */
  run(machine: BuildMachine, given: Record<string, string>, before: (step: string) => void = () => undefined): Run {
    const { directory } = this;
    const { build } = (parse(renderGithubWorkflow([machine])) as Workflow).jobs;
    // Nothing here comes from a cache, and asking for it takes Nix 5 s without a way out.
    const inputs: Record<string, string> = {
      flake_directory: ".",
      filter_builds: "true",
      nix_conf: "substituters =",
      ...given,
    };
    const evaluate = (text: string) =>
      text.replace(
        /\$\{\{ (?:inputs|secrets|github)\.(\w+)( != '')? \}\}/g,
        (_, name: string, asks: string | undefined) =>
          asks === undefined ? (inputs[name] ?? "") : String((inputs[name] ?? "") !== ""),
      );
    for (const left of readdirSync(`${directory}/tmp`)) rmSync(`${directory}/tmp/${left}`, { recursive: true });
    const files = { GITHUB_ENV: `${directory}/env`, GITHUB_STEP_SUMMARY: `${directory}/summary` };
    for (const file of Object.values(files)) writeFileSync(file, "");
    const results = new Map<string, { status: number | null; output: string }>();
    let failed = false;
    for (const { name = "", env = {}, run, ...step } of build.steps) {
      if (run === undefined || (failed && !("if" in step))) continue;
      before(name);
      const carried = readFileSync(files.GITHUB_ENV, "utf8")
        .split("\n")
        .filter((line) => line !== "");
      const { status, stdout, stderr } = spawnSync("bash", ["--noprofile", "--norc", "-eo", "pipefail", "-c", run], {
        cwd: `${directory}/checkout`,
        encoding: "utf8",
        timeout: 120_000,
        env: {
          PATH: nixPath(this.#bin === undefined ? {} : { bin: this.#bin }),
          HOME: `${directory}/home`,
          TMPDIR: `${directory}/tmp`,
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
    return {
      results,
      summary: readFileSync(files.GITHUB_STEP_SUMMARY, "utf8"),
      variables: readFileSync(files.GITHUB_ENV, "utf8"),
    };
  }
}

/** Everything that the steps printed. */
const said = ({ results }: Run) => [...results.values()].map(({ output }) => output).join("");

/** Files below the folder that hold the text. */
function filesWith(text: string, folder: string): string[] {
  if (!existsSync(folder)) throw new Error(`nothing can be found in ${folder}, which isn't there`);
  const { stdout } = spawnSync("grep", ["--recursive", "--files-with-matches", "--fixed-strings", "-e", text, folder], {
    encoding: "utf8",
  });
  return stdout.split("\n").filter((line) => line !== "");
}

describe.each([["the installed Nix"], ["a current Nix"]])("its steps, run with %s against a real builder", (which) => {
  stops({
    attack: "a pull request's flake takes the client's key",
    tried: "reads it by path, has nixConfig run a hook, has the runner build, names attributes like commands",
    stopped: "evaluation is pure and comes first; the key is in an agent's memory; the runner builds nothing",
  });

  let builder: LocalBuilder;
  let runner: Runner;
  let secret: string;
  /** What only a thief has: a line of the private key. */
  let mark: string;
  let current: CurrentNix | undefined;
  beforeAll(async () => {
    if (which === "a current Nix") current = findCurrentNix();
    const bin = current !== undefined && "bin" in current ? current.bin : undefined;
    builder = await startLocalBuilder("ci-builder");
    mkdirSync(`${builder.directory}/runner`);
    runner = new Runner(`${builder.directory}/runner`, bin);
    secret = builder.clientPrivateKey.trimEnd();
    mark = secret.split("\n")[2] ?? "";
  }, 300_000);
  beforeEach((context) => {
    if (current !== undefined && "missing" in current) context.skip(current.missing);
  });
  afterAll(async () => {
    await builder.stop();
  });

  /** What GitHub gives to a job. */
  const token = "ghs_0123456789";
  /** Files in which a thief can have put what was taken. */
  const loot = () =>
    [...["store", "checkout", "home"].map((name) => `${runner.directory}/${name}`), builder.storeRoot].flatMap(
      (folder) => [mark, token].flatMap((text) => filesWith(text, folder)),
    );
  const stolen = (run: Run) => [
    ...[said(run), run.summary].filter((text) => text.includes(mark) || text.includes(token)),
    ...loot(),
  ];

  test(
    "build packages and checks there, say what was built where, and fail with what fails",
    { timeout: 180_000 },
    () => {
      runner.checkOut(usual);
      const places: string[] = [];
      const good = runner.run(
        builder.machine,
        { fleet_ssh_key: secret, filter_builds: '.top_attr == "packages"' },
        (step) => {
          places.push(...filesWith(mark, runner.directory).map((file) => `before ${step}: ${file}`));
        },
      );
      expect([...good.results].filter(([, { status }]) => status !== 0)).toEqual([]);
      expect(good.results.get("Find the builds")?.output).toContain("2 builds:");
      expect(good.summary).toMatch(/^\| \S+-hello\.drv \| ci-builder \| [\d.]+ s \|$/m);
      expect(good.summary).toMatch(/^\| \S+-odd\.drv \| ci-builder \|/m);
      expect(good.summary).toContain("2 wanted, 2 built, 0 substituted.");
      // The key is in no file, and nothing of the client's is left.
      expect(places).toEqual([]);
      expect(good.variables).not.toContain(mark);
      expect(readdirSync(`${runner.directory}/tmp`)).toEqual([]);

      const bad = runner.run(builder.machine, { fleet_ssh_key: secret, filter_builds: '.top_attr == "checks"' });
      expect(bad.results.get("Find the builds")?.output).toContain(`checks.${system}.fails`);
      expect(bad.results.get("Build")?.status).not.toBe(0);
      expect(bad.results.get("Build")?.output).toContain("this check fails");
      expect(bad.summary).toMatch(/-fails\.drv \| ci-builder/);
      expect(readdirSync(`${runner.directory}/tmp`)).toEqual([]);
    },
  );

  /** A package whose text is what an expression of Nix has found. */
  const steals = (expression: string, more = "") => `${more} outputs = inputs: {
    packages.${system}.loot = derivation {
      name = "loot"; system = "${system}"; builder = "/bin/sh";
      args = [ "-c" "echo $loot > $out; read -r line < $loot; echo $line >> $out" ];
      loot = ${expression};
    };
  };`;
  const anyKey = (read: string) =>
    `(builtins.concatStringsSep "" (map (name: ${read} ("${runner.directory}/tmp/" + name + "/id_ed25519")) (builtins.attrNames (builtins.readDir ${runner.directory}/tmp))))`;
  const lockedWithoutHash = (reference: Readonly<Record<string, string>>) => ({
    "flake.lock": JSON.stringify({
      nodes: {
        loot: { flake: false, locked: { ...reference, lastModified: 1 }, original: reference },
        root: { inputs: { loot: "loot" } },
      },
      root: "root",
      version: 7,
    }),
  });
  /** A shell for a sandbox here. */
  const shell = () => `/bin/sh=${findLocalTools(system).shell}`;
  const attacks: Readonly<
    Record<string, () => readonly [flake: string, refusal: RegExp | undefined, files?: Record<string, string>]>
  > = {
    "reads the key's file": () => [steals(anyKey("builtins.readFile")), /is forbidden in (pure eval|restricted)/],
    "copies the key's folder": () => [
      steals(`builtins.path { path = ${runner.directory}/tmp; name = "tmp"; }`),
      /is forbidden in (pure eval|restricted)/,
    ],
    "reads variables": () => [steals(`builtins.getEnv "FLEET_SSH_KEY" + builtins.getEnv "GITHUB_TOKEN"`), undefined],
    "names the key's folder as an input": () => [
      steals(
        `"\${inputs.loot}" + builtins.concatStringsSep "" (map (name: builtins.readFile "\${inputs.loot}/\${name}/id_ed25519") (builtins.attrNames (builtins.readDir inputs.loot)))`,
        `inputs.loot = { url = "path:${runner.directory}/tmp"; flake = false; };`,
      ),
      /requires lock file changes/,
    ],
    "locks the key's folder without a hash": () => [
      steals(
        `"\${inputs.loot}" + builtins.concatStringsSep "" (map (name: builtins.readFile "\${inputs.loot}/\${name}/id_ed25519") (builtins.attrNames (builtins.readDir inputs.loot)))`,
        `inputs.loot = { url = "path:${runner.directory}/tmp"; flake = false; };`,
      ),
      /ock ?file contains (mutable lock|unlocked input)/,
      lockedWithoutHash({ type: "path", path: `${runner.directory}/tmp` }),
    ],
    "locks the variables of Nix itself without a hash": () => [
      steals(
        "builtins.readFile inputs.loot",
        `inputs.loot = { type = "file"; url = "file:///proc/self/environ"; flake = false; };`,
      ),
      /ock ?file contains (mutable lock|unlocked input)/,
      lockedWithoutHash({ type: "file", url: "file:///proc/self/environ" }),
    ],
    "has a link that leads to the key's folder": () => [
      steals(
        `builtins.concatStringsSep "" (map (name: builtins.readFile (./link + "/\${name}/id_ed25519")) (builtins.attrNames (builtins.readDir ./link)))`,
      ),
      /is forbidden in (pure eval|restricted)/,
      { link: `-> ${runner.directory}/tmp` },
    ],
    "has a hook run on the runner": () => [
      `nixConfig.post-build-hook = "${runner.directory}/checkout/hook"; ${usual}`,
      undefined,
      { hook: `#!/bin/sh\ncat ${runner.directory}/tmp/*/id_ed25519 > ${runner.directory}/home/loot\n` },
    ],
    "has the runner build, and its sandbox hold the key": () => [
      `nixConfig = { max-jobs = 4; builders = ""; build-users-group = ""; sandbox-paths = [ "${shell()}" "/loot=${runner.directory}/tmp" ]; };
       outputs = _: { packages.${system}.loot = derivation {
         name = "loot"; system = "${system}"; builder = "/bin/sh";
         args = [ "-c" "for file in /loot/*/id_ed25519; do while read -r line; do echo $line; done < $file; done > $out" ];
       }; };`,
      undefined,
    ],
    "has something built while it is evaluated": () => [
      `outputs = _: { packages.${system}.loot = derivation {
         name = builtins.readFile (derivation {
           name = "early"; system = "${system}"; builder = "/bin/sh"; args = [ "-c" "echo -n early-bird > $out" ];
         });
         system = "${system}"; builder = "/bin/sh"; args = [ "-c" "echo > $out" ];
       }; };`,
      /during evaluation because the option 'allow-import-from-derivation' is disabled/,
    ],
  };

  test.each(Object.keys(attacks))("get nothing from a flake that %s", { timeout: 120_000 }, (name) => {
    const [flake, refusal, files] = attacks[name]?.() ?? ["", /a flake/];
    const before = loot();
    runner.checkOut(flake, files);
    const run = runner.run(builder.machine, { fleet_ssh_key: secret, token });
    expect(stolen(run).filter((place) => !before.includes(place))).toEqual([]);
    expect(said(run)).not.toContain("early-bird");
    // Where nothing is refused, the flake is built, without what it asked for.
    if (refusal === undefined) expect(run.results.has("Build")).toBe(true);
    else expect(run.results.get("Find the builds")?.output).toMatch(refusal);
    expect(readdirSync(`${runner.directory}/tmp`)).toEqual([]);
  });

  test("run nothing of what names say", { timeout: 120_000 }, () => {
    const names = [
      "$(touch pwned)",
      "`touch pwned`",
      "'; touch pwned; '",
      "a\nFLEET_DIR=/pwned",
      "b\n::error::pwned",
      "--option",
    ];
    runner.checkOut(
      `outputs = _: { packages.${system} = builtins.listToAttrs (map (name: { inherit name; value = derivation {
        name = "odd-" + builtins.hashString "md5" name; system = "${system}"; builder = "/bin/sh"; args = [ "-c" "echo '::error::pwned'; echo > $out" ];
      }; }) (builtins.fromJSON ''${JSON.stringify(names).replaceAll("$(", "''$(")}'')); };`,
    );
    const run = runner.run(builder.machine, { fleet_ssh_key: secret });
    expect([...run.results].filter(([, { status }]) => status !== 0)).toEqual([]);
    expect(run.summary).toContain(`${names.length} wanted, ${names.length} built`);
    expect(existsSync(`${runner.directory}/checkout/pwned`)).toBe(false);
    expect(run.variables).not.toContain("pwned");
    // GitHub takes lines that begin so for commands, unless told to stop, until the word that only the step knows.
    for (const step of ["Find the builds", "Build"]) {
      const [, token, heard = "", after = ""] =
        /::stop-commands::(\w{32})\n([^]*)::\1::\n([^]*)/.exec(run.results.get(step)?.output ?? "") ?? [];
      expect(token, step).toBeDefined();
      expect(heard).not.toContain(`::${token}::`);
      expect(after).not.toContain("pwned");
    }
  });

  test.each([
    ["--add-root", "an option"],
    ["/etc/passwd", "a file"],
    ["/nix/store/../../etc/x.drv", "a path that leads out"],
  ])("refuse %s, %s, in a derivation's place", { timeout: 120_000 }, (drvPath) => {
    runner.checkOut(
      `outputs = _: { packages.${system}.x = { type = "derivation"; name = "x"; outPath = "/x"; outputName = "out"; drvPath = "${drvPath}"; }; };`,
    );
    const run = runner.run(builder.machine, { fleet_ssh_key: secret });
    expect(run.results.get("Find the builds")).toMatchObject({
      status: expect.not.toSatisfy((status) => status === 0) as unknown,
      output: expect.stringContaining(`packages.${system}.x is no derivation`) as unknown,
    });
    expect(run.results.has("Build")).toBe(false);
  });

  test.each([
    ["", "This run has no secret fleet_ssh_key"],
    ["not a key", "The secret fleet_ssh_key is not a private key"],
  ])("say what is wrong with the secret '%s'", { timeout: 120_000 }, (fleet_ssh_key, sentence) => {
    runner.checkOut(usual);
    const run = runner.run(builder.machine, { fleet_ssh_key });
    expect(said(run)).toContain(`::error::${sentence}`);
    expect(run.results.has("Build")).toBe(false);
    expect(readdirSync(`${runner.directory}/tmp`)).toEqual([]);
  });
});
