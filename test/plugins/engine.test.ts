/** The plugins under the real engine: what a person sees of them over the life of a stack. */
import { type ExecFileSyncOptionsWithStringEncoding, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, dirname, join, resolve } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { pluginSetsUnderTest } from "./pluginUnderTest.ts";
import { SshServer, noSshServer } from "./sshServer.ts";

const needed = ["pulumi", "pulumi-language-nodejs"];
const missing =
  noSshServer() ??
  needed
    .filter((name) => !(process.env["PATH"] ?? "").split(delimiter).some((dir) => existsSync(join(dir, name))))
    .map((name) => `${name} is not on the PATH`)[0];
if (missing !== undefined) console.warn(`The plugins are not tried under the engine: ${missing}`);

/** Everything that the stack is made of, from a JSON file that the tests change. */
const PROGRAM = `
const { readFileSync } = require("node:fs");
const pulumi = require("@pulumi/pulumi");
const { Command: Local } = require("@pulumi/command/local/command.js");
const { Command: Remote } = require("@pulumi/command/remote/command.js");
const { PrivateKey } = require("@pulumi/tls/privateKey.js");
const settings = JSON.parse(readFileSync("settings.json", "utf8"));

const key = new PrivateKey("key", { algorithm: "ED25519" });
const local = new Local("local", {
  create: "wc -l; cat >> ran; echo created >> ran",
  update: "echo updated >> ran",
  delete: "echo deleted >> ran",
  stdin: key.privateKeyOpenssh,
  environment: { GREETING: settings.greeting, PLACE: settings.place },
  triggers: [settings.trigger],
  logging: "none",
}, { replaceOnChanges: ["environment.PLACE"] });
const remote = new Remote("remote", {
  // Nobody asks for the password; a preview doesn't know it yet.
  connection: { ...settings.connection, password: key.privateKeyPem },
  create: pulumi.interpolate\`echo '\${key.publicKeyOpenssh}'; \${settings.remote}\`,
  delete: "echo far >> '" + process.cwd() + "/ran'",
  addPreviousOutputInEnv: false,
});
exports.publicKey = key.publicKeyOpenssh;
exports.privateKey = key.privateKeyOpenssh;
exports.remote = remote.stdout;
`;

const sets = pluginSetsUnderTest();

describe.skipIf(missing !== undefined).each(sets)("a stack with the $title", ({ tested }) => {
  const PASSPHRASE = "test";
  let dir: string;
  let server: SshServer;
  let options: ExecFileSyncOptionsWithStringEncoding & { env: NodeJS.ProcessEnv };
  let settings: Record<string, unknown>;

  beforeAll(async () => {
    dir = mkdtempSync(join(tmpdir(), "fleet-engine-"));
    server = await SshServer.start("127.22.0.1");
    for (const name of ["bin", "state", "home", "program"]) mkdirSync(join(dir, name));
    use(tested);
    const program = join(dir, "program");
    writeFileSync(
      join(program, "Pulumi.yaml"),
      "name: plugins\nruntime:\n  name: nodejs\n  options:\n    typescript: false\n",
    );
    writeFileSync(join(program, "package.json"), '{ "main": "index.js" }');
    writeFileSync(join(program, "index.js"), PROGRAM);
    symlinkSync(resolve("node_modules"), join(program, "node_modules"));
    options = {
      cwd: program,
      encoding: "utf8",
      timeout: 60_000,
      stdio: ["ignore", "pipe", "pipe"],
      env: {
        ...process.env,
        PATH: [join(dir, "bin"), dirname(process.execPath), process.env["PATH"]].join(delimiter),
        PULUMI_HOME: join(dir, "home"),
        PULUMI_BACKEND_URL: `file://${join(dir, "state")}`,
        PULUMI_CONFIG_PASSPHRASE: PASSPHRASE,
        PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION: "true",
        PULUMI_SKIP_UPDATE_CHECK: "true",
      },
    };
    change({ greeting: "hi", place: "here", trigger: 1, remote: "echo there", connection: server.connection() });
    pulumi("stack", "init", "test");
  });
  afterAll(async () => {
    await server.stop();
    rmSync(dir, { recursive: true, force: true });
  });

  const use = (plugins: typeof tested): void => {
    for (const [name, { program, args }] of Object.entries(plugins)) {
      const launcher = join(dir, "bin", `pulumi-resource-${name}`);
      writeFileSync(launcher, `#!/bin/sh\nexec ${[program, ...args].join(" ")} "$@"\n`);
      chmodSync(launcher, 0o755);
    }
  };
  const pulumi = (...args: string[]): string => {
    try {
      return execFileSync("pulumi", ["--non-interactive", "--color", "never", ...args], options);
    } catch (error) {
      if (error instanceof Error) error.message += `\n${String(Reflect.get(error, "stdout"))}`;
      throw error;
    }
  };
  const up = (...args: string[]): string => pulumi("up", "--yes", "--skip-preview", ...args);
  const change = (changed: Record<string, unknown>): void => {
    settings = { ...settings, ...changed };
    writeFileSync(join(options.cwd?.toString() ?? "", "settings.json"), JSON.stringify(settings));
  };
  /** What the commands noted since the last call. */
  const ran = (): string => {
    const file = join(dir, "program", "ran");
    const noted = existsSync(file) ? readFileSync(file, "utf8") : "";
    rmSync(file, { force: true });
    return noted;
  };

  it("previews without running anything, then creates it", () => {
    expect(pulumi("preview")).toMatch(/4 to create/);
    expect(ran()).toBe("");
    expect(up()).toMatch(/4 created/);
    expect(ran()).toMatch(/created\n$/);
    const outputs = JSON.parse(pulumi("stack", "output", "--json")) as Record<string, string>;
    expect(outputs["publicKey"]).toMatch(/^ssh-ed25519 /);
    expect(outputs["privateKey"]).toBe("[secret]");
    expect(outputs["remote"]).toBe(`${outputs["publicKey"] ?? ""}\nthere`);
  }, 60_000);

  it("has no secret in the clear in its state", () => {
    const secrets = JSON.parse(pulumi("stack", "output", "--json", "--show-secrets")) as Record<string, string>;
    const state = readdirSync(join(dir, "state/.pulumi/stacks/plugins"))
      .map((file) => readFileSync(join(dir, "state/.pulumi/stacks/plugins", file), "utf8"))
      .join();
    const secretLine = (text: string | undefined) => text?.split("\n")[1] ?? "missing";
    expect(state).toContain("publicKeyOpenssh");
    expect(state).not.toContain(secretLine(secrets["privateKey"]));
    expect(state).not.toContain(secretLine(server.clientKey));
  }, 30_000);

  it("changes nothing when nothing changed, after a refresh as well", () => {
    expect(up("--expect-no-changes")).toMatch(/4 unchanged/);
    pulumi("refresh", "--yes", "--skip-preview", "--expect-no-changes");
    expect(up("--expect-no-changes")).toMatch(/4 unchanged/);
    expect(ran()).toBe("");
  }, 60_000);

  it("is taken over by the other kind without a change, and back", ({ skip }) => {
    const other = sets.find((set) => set.tested.command.kind !== tested.command.kind);
    if (other === undefined) return skip("there is only one kind here: tools/plugins/README.md says how to have both");
    try {
      use(other.tested);
      expect(up("--expect-no-changes")).toMatch(/4 unchanged/);
      pulumi("refresh", "--yes", "--skip-preview", "--expect-no-changes");
    } finally {
      use(tested);
    }
    expect(up("--expect-no-changes")).toMatch(/4 unchanged/);
    expect(ran()).toBe("");
  }, 60_000);

  it("updates what changed, and replaces on a changed trigger and on what the program names", () => {
    change({ greeting: "hello" });
    expect(up()).toMatch(/1 updated/);
    expect(ran()).toBe("updated\n");
    for (const replacing of [{ trigger: 2 }, { place: "there" }]) {
      change(replacing);
      expect(up()).toMatch(/1 replaced/);
      expect(ran()).toMatch(/created\ndeleted\n$/);
    }
  }, 60_000);

  it("shows a failure, and goes on from there when it is mended", () => {
    change({ remote: "echo oh no; exit 9" });
    expect(() => up()).toThrow(
      /Process exited with status 9: running "echo 'ssh-ed25519 [^']*'; echo oh no; exit 9":[^]*oh no/,
    );
    change({ remote: "yes 'a long line, of which there are many' | head -c 200000; exit 9" });
    expect(() => up()).toThrow(/Process exited with status 9:/);
    change({ remote: "echo mended" });
    expect(up()).toMatch(/1 updated/);
  }, 60_000);

  it("leaves neither a plugin nor its command behind when the engine is killed, and goes on afterwards", async ({
    skip,
  }) => {
    skip(
      tested.command.kind === "genuine",
      "they stay; npm start ends them: tools/plugins/README.md, test/tools/orphans.test.ts",
    );
    const started = join(dir, "started");
    change({ remote: `echo $$ > ${started}.new; mv ${started}.new ${started}; exec sleep 300` });
    const child = spawn("pulumi", ["--non-interactive", "up", "--yes", "--skip-preview"], {
      ...options,
      stdio: "ignore",
      detached: true,
    });
    await expect.poll(() => existsSync(started), { timeout: 30_000 }).toBe(true);
    child.kill("SIGKILL");
    await once(child, "exit");
    // The plugin hangs up; the remote process itself is sshd's business.
    await expect.poll(pluginsRunning, { timeout: 20_000 }).toEqual([]);
    process.kill(Number(readFileSync(started, "utf8")));
    pulumi("cancel", "--yes");
    change({ remote: "echo back" });
    expect(up()).toMatch(/1 updated/);
  }, 120_000);

  it("runs the delete commands when it is destroyed", () => {
    ran();
    pulumi("destroy", "--yes", "--skip-preview");
    expect(ran().split("\n").sort()).toEqual(["", "deleted", "far"]);
  }, 60_000);

  /** Command lines of processes that were started through this stack's launchers. */
  function pluginsRunning(): string[] {
    return readdirSync("/proc")
      .filter((pid) => /^\d+$/.test(pid))
      .flatMap((pid) => {
        try {
          const environment = readFileSync(`/proc/${pid}/environ`, "utf8");
          const command = readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ");
          const ours = environment.includes(`PULUMI_HOME=${join(dir, "home")}`);
          return ours && Object.values(tested).some(({ program, args }) => command.includes(args[0] ?? program))
            ? [command]
            : [];
        } catch {
          return [];
        }
      });
  }
});
