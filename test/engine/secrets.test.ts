/**
 * Everything that the CLI and `npx fleet` can print and write, searched for every secret that the stack has. One fleet, and a table of the
 * verbs; they run by the project's own launcher, as a person calls them.
 */
import { randomBytes } from "node:crypto";
import { lstatSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { TestDeployment } from "../support/engine.ts";
import { system } from "../support/localFleet.ts";

const checkout = resolve(import.meta.dirname, "../..");
const token = `hcloud-${randomBytes(24).toString("hex")}`;
const here = { name: "here", provider: "local", system };
/** A file stands where its folder should be: its command fails, and says why. */
const obstructed = { name: "obstructed", provider: "local", system };

/** What a person calls: `pulumi` with the launcher, or `fleet`. `@` in front of a word is a file in a new folder. */
type Verb = readonly ["pulumi" | "fleet", ...string[]];

const yes = ["--yes", "--skip-preview"];
/** All that prints or writes something of the stack; what asks for secrets (`--show-secrets`) is left out. */
const verbs: readonly Verb[] = [
  ["pulumi", "up", ...yes, "--json"],
  ["pulumi", "up", ...yes, "--refresh", "--debug", "--diff", "--show-full-output", "--show-sames", "--show-reads"],
  ["pulumi", "up", ...yes, "-v", "9"],
  ["pulumi", "up", ...yes, "-v=9", "--logtostderr"],
  ["pulumi", "up", ...yes, "--verbose", "11", "--logflow"],
  ["pulumi", "up", ...yes, "--event-log", "@events.json", "--debug"],
  ["pulumi", "up", ...yes, "--tracing", "file:@trace"],
  ["pulumi", "up", ...yes, "--otel-traces", "file://@otel"],
  ["pulumi", "preview", "--json", "--debug"],
  ["pulumi", "preview", "--diff", "--save-plan", "@plan.json", "-v", "9", "--logtostderr"],
  ["pulumi", "refresh", ...yes, "--json", "-v", "9"],
  ["pulumi", "destroy", "--preview-only", "--json", "--debug", "-v", "9", "--logtostderr"],
  ["pulumi", "stack"],
  ["pulumi", "stack", "--show-urns", "--show-ids"],
  ["pulumi", "stack", "output"],
  ["pulumi", "stack", "output", "--json", "-v", "9", "--logtostderr"],
  ["pulumi", "stack", "export"],
  ["pulumi", "stack", "export", "--file", "@export.json"],
  ["pulumi", "stack", "history", "--json"],
  ["pulumi", "stack", "graph", "@graph.dot"],
  ["pulumi", "stack", "ls", "--json"],
  ["pulumi", "config"],
  ["pulumi", "config", "--json"],
  ["pulumi", "about", "--json"],
  ["pulumi", "logs"],
  ["fleet", "status"],
  ["fleet", "status", "--json"],
  ["fleet", "client", "@client", "--json"],
  ...[
    "machines",
    "nixConf",
    "sshConfig",
    "knownHosts",
    "nixosModule",
    "darwinModule",
    "homeManagerModule",
    "githubWorkflow",
  ].map((form): Verb => ["fleet", "client", "--form", form]),
  ["fleet", "doctor", "--json"],
  ["fleet", "explain", "--json", "@expression.nix"],
  ["fleet", "verify", "--json"],
  ["fleet", "build", "@expression.nix", "--no-out-link", "-vvvvv"],
  ["fleet", "build", "--remote-store", "here", "@expression.nix", "--no-out-link", "-vvvvv"],
  ["fleet", "nix", "store", "ping", "--debug"],
];

/** Those that say why they don't do it here: what records everything, what this fleet has not, what doctor finds. */
const failing = [
  `pulumi up ${yes.join(" ")} --tracing file:@trace`,
  `pulumi up ${yes.join(" ")} --otel-traces file://@otel`,
  "fleet client --form githubWorkflow",
  "fleet doctor --json",
];

/** Variables by which the CLI, Node and ssh say more. */
const talkative = { PULUMI_DEBUG_COMMANDS: "1", PULUMI_DEBUG_PROMISE_LEAKS: "1" };

describe("a secret of the stack", () => {
  let fleet: TestDeployment;
  let secrets: ReadonlyMap<string, string>;
  const root = mkdtempSync(join(tmpdir(), "fleet-secrets-"));
  const place = (name: string) => join(root, name);
  /** What the verbs wrote, apart from what the fleet itself consists of, the client's files, and what Nix makes for ssh. */
  let written: readonly { path: string; mode: number }[];
  const outsideOfTheStack = () =>
    [root, fleet.env["PULUMI_BACKEND_URL"]?.slice("file://".length) ?? ""]
      .flatMap((folder) => filesBelow(folder))
      .filter(({ path }) => !/\/(files\/client|tmp\/nix-\d+-\d+)\//.test(path));
  /** Verb → what it printed. */
  const printed = new Map<string, string>();

  beforeAll(async () => {
    for (const name of ["tmp", "home", "files"]) mkdirSync(place(name));
    writeFileSync(place("files/expression.nix"), expression);
    fleet = await TestDeployment.create(
      { builders: [here], clients: [{ name: "ci" }] },
      { PULUMI_HOME: place("home"), TMPDIR: place("tmp") },
    );
    await fleet.pulumi("config", "set", "--secret", "hcloud:token", token);
    const before = new Set(outsideOfTheStack().map(({ path }) => path));
    for (const verb of verbs) await run(verb);
    writeFileSync(join(fleet.directory, "machines", "obstructed"), "");
    fleet.configure({ builders: [here, obstructed] });
    await run(["pulumi", "up", ...yes, "--debug", "-v", "9", "--logtostderr"], "a failing up");
    written = outsideOfTheStack().filter(({ path }) => !before.has(path));
    const { stdout: state } = await execa("pulumi", ["stack", "export", "--show-secrets"], {
      cwd: fleet.project,
      env: fleet.env,
    });
    secrets = secretsOf(state, { token, passphrase: fleet.env["PULUMI_CONFIG_PASSPHRASE"] ?? "" });
  });
  afterAll(async () => {
    await fleet.remove();
    rmSync(root, { recursive: true, force: true });
  });

  async function run([program, ...words]: Verb, title = [program, ...words].join(" ")): Promise<void> {
    const args = words.map((word) => word.replace("@", `${place("files")}/`));
    const call =
      program === "pulumi"
        ? ["tools/run.mjs", "pulumi", "-C", fleet.project, "--non-interactive", ...args]
        : ["tools/fleet.mjs", "--stack", fleet.stack, ...args];
    const env = { ...fleet.env, ...talkative, FLEET_PROJECT: fleet.project };
    const options = { cwd: checkout, env, reject: false, all: true, stdin: "ignore", timeout: 120_000 } as const;
    const { exitCode, all } = await execa(process.execPath, call, options);
    printed.set(title, `exit code ${exitCode ?? "none"}\n${all}`);
  }

  it("is known in all its forms, and each verb does what it is called for", () => {
    const kinds = [...secrets.values()].map((name) => name.replace(/ \d+$/, ""));
    expect(new Set(kinds)).toEqual(
      new Set(["token", "passphrase", "OPENSSH PRIVATE KEY", "PRIVATE KEY", "Nix secret key"]),
    );
    // Of the administrator, two clients, two hosts and what builders sign with, three lines and one line; the last in Nix's form as well.
    expect(secrets.size).toBe(2 + 6 * (3 + 1) + 1);
    const failed = [...printed].filter(([, text]) => !text.startsWith("exit code 0\n")).map(([verb]) => verb);
    expect(failed).toEqual([...failing, "a failing up"]);
    for (const [verb, text] of printed) if (/^pulumi .* -v/.test(verb)) expect(text, verb).toContain("it gets -v 8");
  });

  it("is printed by no verb", () => {
    const found = [...printed].flatMap(([verb, text]) => leaks(secrets, text).map((name) => `${verb}: ${name}`));
    expect(found).toEqual([]);
  });

  it("is in no file but those that are for it, which only this user can read", () => {
    const folders = [
      root,
      fleet.project,
      fleet.directory,
      ...["logs", "runs"].map((name) => join(checkout, ".fleet", name)),
    ];
    const holding = folders
      .flatMap((folder) => filesBelow(folder))
      .filter(({ text }) => leaks(secrets, text).length > 0)
      .map(({ path, mode }) => `${path.replace(fleet.directory, "").replace(root, "")} ${mode.toString(8)}`);
    expect(holding.sort()).toEqual([
      "/client/id_ed25519 600",
      "/files/client/id_ed25519 600",
      "/machines/here/conf/signing-key 400",
      "/machines/here/ssh_host_ed25519_key 600",
    ]);
  });

  it("could be in what the CLI logs, exports and keeps: only this user can read that", () => {
    for (const name of ["events.json", "plan.json", "export.json", "graph.dot"])
      expect(written.map(({ path }) => path)).toContain(place(`files/${name}`));
    expect(written.filter(({ path }) => /pulumi\.\S*\.log\.INFO/.test(path)).length).toBeGreaterThan(0);
    expect(
      written.filter(({ mode }) => (mode & 0o077) !== 0).map(({ path, mode }) => `${path} ${mode.toString(8)}`),
    ).toEqual([]);
  });
});

const expression = `derivation { name = "secrets"; system = "${system}"; builder = "/bin/sh"; args = [ "-c" "echo > $out" ]; }`;

/** What of a secret must not be seen, whatever stands around it → what it is called. */
function secretsOf(state: string, others: Readonly<Record<string, string>>): ReadonlyMap<string, string> {
  const found = new Map(Object.entries(others).map(([name, secret]) => [secret, name]));
  const blocks = state.matchAll(/-----BEGIN ([A-Z ]*PRIVATE KEY)-----(.*?)-----END/gs);
  for (const [index, [, kind = "", body = ""]] of [...blocks].entries()) {
    const lines = body.split(/(?:\\+[nr]|\s)+/).filter((line) => /^[\w+/=]{20,}$/.test(line));
    // The first two lines of OpenSSH's form hold the public key.
    for (const line of kind.startsWith("OPENSSH") ? lines.slice(2) : lines) found.set(line, `${kind} ${index}`);
  }
  // Seed and public key, 64 bytes.
  for (const [, key = ""] of state.matchAll(/[\w.-]+:([\w+/]{86}==)/g)) found.set(key, "Nix secret key");
  return found;
}

function leaks(secrets: ReadonlyMap<string, string>, text: string): string[] {
  return [...new Set([...secrets].flatMap(([secret, name]) => (text.includes(secret) ? [name] : [])))];
}

function filesBelow(folder: string): { path: string; text: string; mode: number }[] {
  try {
    return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
      const path = join(folder, entry.name);
      if (entry.isDirectory()) return /\/root\/nix\/store$/.test(path) ? [] : filesBelow(path);
      return entry.isFile() ? [{ path, text: readFileSync(path, "latin1"), mode: lstatSync(path).mode & 0o777 }] : [];
    });
  } catch {
    return []; // removed just now
  }
}
