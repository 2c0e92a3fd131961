/** What every entry sees to before anything is made: stacks' names, modes, and locks. With the real CLI, in a checkout of its own. */
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { stackNameProblem } from "../../src/stackName.ts";
import { namedStack } from "../../tools/pulumi.ts";
import { setUp } from "../../tools/setup/index.ts";
import { cleanEnvironment, copyOfCheckout, runInCheckout } from "../support/checkoutCopy.ts";

const bad = [
  "..",
  ".",
  "...",
  "-x",
  "--yes",
  "",
  "a b",
  "a/../b",
  "organization/nix-builder-fleet/..",
  "a/-x",
  "x;y",
  "ä",
];

describe("the rule", () => {
  it.each(bad)("refuses %j", (name) => {
    expect(stackNameProblem(name)).toMatch(/^no stack can be called ".*": a name consists of /);
  });

  it.each(["dev", "my.stack", ".hidden", "a-b_c", "organization/nix-builder-fleet/dev", "org/proj/dev-1", "__proto__"])(
    "allows %j",
    (name) => {
      expect(stackNameProblem(name)).toBeUndefined();
    },
  );
});

describe("the arguments of npm run pulumi", () => {
  it.each([
    [["up", "--stack", ".."]],
    [["up", "--stack=.."]],
    [["up", "-s", ".."]],
    [["up", "-s=.."]],
    [["up", "-s.."]],
    [["destroy", "--yes", "-s", "organization/nix-builder-fleet/."]],
    [["stack", "init", ".."]],
    [["stack", "init", "--no-select", "."]],
    [["stack", "init", "--", "-x"]],
    [["stack", "select", ".."]],
    [["stack", "rename", ".."]],
    [["stack", "rm", "--yes", ".."]],
  ])("%j are refused", (args) => {
    expect(() => namedStack(args)).toThrow(/^no stack can be called/);
  });

  it.each([
    [["up", "--yes"], undefined],
    [["up", "-s", "prod", "--yes"], "prod"],
    [["--stack=organization/nix-builder-fleet/prod", "up"], "organization/nix-builder-fleet/prod"],
    [["stack", "init", "prod", "--secrets-provider", "awskms://alias/x?region=eu"], undefined],
    [["config", "set", "a:b", ".."], undefined],
    [["up", "-m", "a message"], undefined],
  ])("%j name %j", (args, stack) => {
    expect(namedStack(args)).toBe(stack);
  });
});

describe("in a checkout", () => {
  const folder = mkdtempSync(join(tmpdir(), "fleet-names-"));
  const checkout = copyOfCheckout(join(folder, "checkout"));
  let env: NodeJS.ProcessEnv;

  const run = (words: readonly string[], more: NodeJS.ProcessEnv = {}, program = process.execPath) =>
    runInCheckout(checkout, { ...env, ...more }, words, program);
  const fleetFolder = join(checkout, ".fleet");

  beforeAll(async () => {
    env = { ...cleanEnvironment((await setUp()).env), PULUMI_HOME: join(folder, "pulumi") };
  });
  afterAll(() => {
    rmSync(folder, { recursive: true, force: true });
  });

  it.each([
    ["npm start -- --stack ..", ["tools/run.mjs", "start", "--stack", ".."], {}],
    ["PULUMI_STACK=. npm start", ["tools/run.mjs", "start"], { PULUMI_STACK: "." }],
    ["npm run pulumi -- up --stack ..", ["tools/run.mjs", "pulumi", "up", "--yes", "--stack", ".."], {}],
    ["npm run pulumi -- stack init ..", ["tools/run.mjs", "pulumi", "stack", "init", ".."], {}],
    [
      "PULUMI_STACK=.. npm run pulumi -- destroy",
      ["tools/run.mjs", "pulumi", "destroy", "--yes"],
      { PULUMI_STACK: ".." },
    ],
    ["npx fleet --stack -x status", ["tools/fleet.mjs", "--stack=-x", "status"], {}],
    ["PULUMI_STACK=.. npx fleet status", ["tools/fleet.mjs", "status"], { PULUMI_STACK: ".." }],
  ])("%s is refused in a sentence", async (_, words, more) => {
    const { exitCode, output } = await run(words, more);
    expect(output).toMatch(/no stack can be called "[^"]*": a name consists of/);
    expect(output).not.toContain("    at ");
    expect(exitCode).toBe(1);
    for (const made of ["state", "stacks", "passphrase"]) expect(existsSync(join(fleetFolder, made)), made).toBe(false);
  });

  it("a plain pulumi up is refused by the program, before it makes anything", async () => {
    const own = {
      PULUMI_BACKEND_URL: `file://${folder}`,
      PULUMI_CONFIG_PASSPHRASE: "x",
      PULUMI_SKIP_UPDATE_CHECK: "true",
    };
    const made = await run(["stack", "init", ".."], own, "pulumi");
    expect(made.exitCode, made.output).toBe(0);
    writeFileSync(join(checkout, "Pulumi....yaml"), readFileSync(join(checkout, "Pulumi.dev.yaml")));
    const { exitCode, output } = await run(["up", "--yes", "--skip-preview", "--non-interactive"], own, "pulumi");
    expect(output).toContain('no stack can be called ".."');
    expect(exitCode).not.toBe(0);
    expect(existsSync(join(fleetFolder, "stacks"))).toBe(false);
    rmSync(join(checkout, "Pulumi....yaml"));
  });

  it("what such a stack of an older version would have removed stays", async () => {
    mkdirSync(join(fleetFolder, "stacks", "prod"), { recursive: true });
    for (const file of ["passphrase", "stacks/prod/key"]) writeFileSync(join(fleetFolder, file), "precious");
    const before = readdirSync(fleetFolder).sort();
    // As `destroy` ran it, for the stacks '..' and '.'.
    for (const path of [fleetFolder, join(fleetFolder, "stacks")]) {
      const { exitCode, output } = await run(["src/local/main.ts", "sweep", path, "owner"]);
      expect(output).toContain(`${path} is not removed`);
      expect(exitCode).toBe(1);
    }
    expect(readdirSync(fleetFolder).sort()).toEqual(before);
    expect(readFileSync(join(fleetFolder, "stacks", "prod", "key"), "utf8")).toBe("precious");
    rmSync(fleetFolder, { recursive: true });
  });

  it.each(["000", "077"])("under umask %s, what is secret is this user's alone", async (umask) => {
    rmSync(fleetFolder, { recursive: true, force: true });
    // As an older version, or npm's first lock, may have made it.
    if (umask === "000") mkdirSync(join(fleetFolder, "state"), { recursive: true, mode: 0o777 });
    const script = `umask ${umask}; exec ${process.execPath} tools/run.mjs pulumi stack init prod --no-select`;
    const { exitCode, output } = await run(["-c", script], {}, "sh");
    expect(exitCode, output).toBe(0);
    const mode = (path: string) => statSync(path).mode & 0o777;
    expect(mode(fleetFolder)).toBe(0o700);
    expect(mode(join(fleetFolder, "passphrase"))).toBe(0o600);
    const secret = ["state", "runs"].flatMap((name) =>
      readdirSync(join(fleetFolder, name), { recursive: true, withFileTypes: true }),
    );
    expect(secret.filter((entry) => entry.isFile()).length).toBeGreaterThan(4);
    for (const entry of secret) {
      const path = join(entry.parentPath, entry.name);
      expect([path, mode(path)]).toEqual([path, entry.isDirectory() ? 0o700 : 0o600]);
    }
  });

  it("runs other programs than the CLI under the umask that it was called with", async () => {
    const bin = join(folder, "bin");
    mkdirSync(bin);
    // As an apt-get of the set-up would: what packages' scripts make is for all users. Git is asked about a new stack's file.
    writeFileSync(join(bin, "git"), `#!/bin/sh\numask >'${folder}/umask'\n`, { mode: 0o755 });
    const script = `umask 022; exec ${process.execPath} tools/run.mjs pulumi stack init other --no-select`;
    const { exitCode, output } = await run(["-c", script], { PATH: `${bin}:${env["PATH"] ?? ""}` }, "sh");
    expect(exitCode, output).toBe(0);
    expect(readFileSync(join(folder, "umask"), "utf8")).toBe("0022\n");
  });

  describe("a stack that is locked", () => {
    const locks = join(fleetFolder, "state", ".pulumi", "locks", "organization", "nix-builder-fleet", "locked");
    const owner = { pid: 2 ** 22 + 1, username: "ann", hostname: hostname(), timestamp: "2026-11-25T16:00:00Z" };

    beforeAll(async () => {
      const { exitCode, output } = await run(["tools/run.mjs", "pulumi", "stack", "init", "locked", "--no-select"]);
      expect(exitCode, output).toBe(0);
      mkdirSync(locks, { recursive: true });
    });

    it.each([["up"], ["destroy"], ["refresh"]])(
      "is told in words by %s, and unlocked by the command that they name",
      async (verb) => {
        writeFileSync(join(locks, "a.json"), JSON.stringify(owner));
        const words = ["tools/run.mjs", "pulumi", verb, "--yes", "--stack", "locked"];
        const { exitCode, output } = await run(words);
        expect(output).toContain(
          `Nothing was begun: stack locked is locked by process ${owner.pid} of ann on ${hostname()} since ${owner.timestamp}; `,
        );
        expect(exitCode).toBe(1);
        const [, cancel = ""] = /`npm run pulumi -- ([^`]*)`/.exec(output) ?? [];
        const cancelled = await run(["tools/run.mjs", "pulumi", ...cancel.split(" ")]);
        expect(cancelled.exitCode, cancelled.output).toBe(0);
        expect(existsSync(join(locks, "a.json"))).toBe(false);
      },
    );

    it("is no longer locked by a lock that is empty", async () => {
      writeFileSync(join(locks, "a.json"), "");
      const { exitCode, output } = await run(["tools/run.mjs", "pulumi", "destroy", "--yes", "--stack", "locked"]);
      expect(output).toContain("dropped a lock of stack locked that says nothing");
      expect(exitCode, output).toBe(0);
    });
  });
});
