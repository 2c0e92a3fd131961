import { execFile, execFileSync } from "node:child_process";
import {
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir, userInfo } from "node:os";
import { delimiter, join } from "node:path";
import { createHash } from "node:crypto";
import { promisify } from "node:util";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { checkout } from "../../tools/launch.mjs";
import { deploy } from "../../tools/deployment.ts";
import { pulumiEnvironment, requireStack, runPulumi, usesStack } from "../../tools/pulumi.ts";
import { hasOwnBackend, pulumiHome, stackOption, whichStack } from "../../tools/stack.ts";
import { tidyStackFiles, withoutSalt } from "../../tools/stackFile.ts";
import { setUp, type Toolchain } from "../../tools/setup/index.ts";
import { pluginDirectory, withInstalledPlugins } from "../../tools/setup/plugins.ts";

let directory: string;
let home: string;
beforeEach(() => {
  directory = realpathSync(mkdtempSync(join(tmpdir(), "pulumi-test-")));
  home = join(directory, "home");
  mkdirSync(home);
});
afterEach(() => {
  rmSync(directory, { recursive: true, force: true });
});

function environment(env: NodeJS.ProcessEnv): Promise<NodeJS.ProcessEnv> {
  const toolchain: Toolchain = {
    pulumi: "/pulumi",
    plugins: [{ name: "tls", version: "1.0.0", kind: "genuine", path: "/tls" }],
    nix: "/nix",
    ssh: { sshd: "/sshd", client: "/ssh" },
    emulation: { busybox: {} },
    env: { PULUMI_HOME: home, ...env },
  };
  return pulumiEnvironment(toolchain, directory);
}

function logIn(current: string): void {
  writeFileSync(join(home, "credentials.json"), JSON.stringify({ current, accounts: {} }));
}

describe("the backend", () => {
  it("is the checkout's own, with a passphrase that only this user can read", async () => {
    const env = await environment({});
    expect(env["PULUMI_BACKEND_URL"]).toBe(`file://${directory}/.fleet/state`);
    const file = env["PULUMI_CONFIG_PASSPHRASE_FILE"] ?? "";
    expect(statSync(file).mode & 0o777).toBe(0o600);
    expect(readFileSync(file, "utf8")).toMatch(/^[\w-]{40,}$/);
  });

  it("lies where other users can't look, though the folder was made for all", async () => {
    mkdirSync(join(directory, ".fleet"), { mode: 0o755 });
    await environment({});
    expect(statSync(join(directory, ".fleet")).mode & 0o777).toBe(0o700);
  });

  it("keeps its passphrase", async () => {
    const read = async () => readFileSync((await environment({}))["PULUMI_CONFIG_PASSPHRASE_FILE"] ?? "", "utf8");
    expect(await read()).toBe(await read());
  });

  it.each([{ PULUMI_BACKEND_URL: "s3://mine" }, { PULUMI_ACCESS_TOKEN: "pul-1" }])(
    "is the person's, set by %o, and nothing is added",
    async (chosen) => {
      const env = await environment(chosen);
      expect(env["PULUMI_BACKEND_URL"]).toBe((chosen as NodeJS.ProcessEnv)["PULUMI_BACKEND_URL"]);
      expect(env).not.toHaveProperty("PULUMI_CONFIG_PASSPHRASE_FILE");
      expect(env).not.toHaveProperty("PULUMI_STACK");
    },
  );

  it("is the person's when logged in, and the checkout's again when logged out", async () => {
    logIn("https://api.pulumi.com");
    expect(await environment({})).not.toHaveProperty("PULUMI_BACKEND_URL");
    logIn("");
    expect((await environment({}))["PULUMI_BACKEND_URL"]).toMatch(/^file:/);
  });

  it("is known by the login in PULUMI_HOME", () => {
    logIn("file://~");
    expect(hasOwnBackend({ PULUMI_HOME: home })).toBe(true);
    expect(hasOwnBackend({ PULUMI_HOME: directory })).toBe(false);
  });

  it("takes a passphrase that is set", async () => {
    expect(await environment({ PULUMI_CONFIG_PASSPHRASE: "" })).not.toHaveProperty("PULUMI_CONFIG_PASSPHRASE_FILE");
  });
});

describe("Pulumi's home", () => {
  const account = join(userInfo().homedir, ".pulumi");

  it("is that of the account, where the CLI looks, wherever HOME points", () => {
    expect(pulumiHome({ HOME: home })).toBe(account);
    expect(pluginDirectory({ HOME: home })).toBe(join(account, "plugins"));
    // As the CLI does with an empty variable.
    expect(pulumiHome({ HOME: home, PULUMI_HOME: "" })).toBe(account);
    expect(pulumiHome({ HOME: directory, PULUMI_HOME: home })).toBe(home);
  });

  it("is that of HOME where the account has none", () => {
    expect(pulumiHome({ HOME: home }, join(directory, "nonexistent"))).toBe(join(home, ".pulumi"));
    expect(pulumiHome({ HOME: home }, "")).toBe(join(home, ".pulumi"));
  });

  it("is told to the CLI, so that both have one", async () => {
    expect((await environment({ PULUMI_HOME: undefined, HOME: directory }))["PULUMI_HOME"]).toBe(account);
    expect((await environment({}))["PULUMI_HOME"]).toBe(home);
  });
});

describe("the CLI's environment", () => {
  /** Of what the CLI gets, by either way in which it is run, the variables that matter here. */
  async function seenBy(run: (env: NodeJS.ProcessEnv) => Promise<unknown>, more: NodeJS.ProcessEnv): Promise<string> {
    const bin = join(directory, "bin");
    mkdirSync(bin);
    writeFileSync(join(bin, "pulumi"), `#!/bin/sh\nenv | grep -E '^(SSH_|PULUMI_DISABLE)' >'${directory}/seen'\n`, {
      mode: 0o755,
    });
    const PATH = [bin, process.env["PATH"]].join(delimiter);
    for (const [name, value] of Object.entries({ ...more, PATH })) vi.stubEnv(name, value);
    await run(await environment({ ...process.env, PULUMI_HOME: home }));
    return readFileSync(join(directory, "seen"), "utf8");
  }
  afterEach(() => {
    vi.unstubAllEnvs();
  });
  const ways: [string, (env: NodeJS.ProcessEnv) => Promise<unknown>][] = [
    ["npm start", (env) => deploy(env, () => undefined)],
    ["npm run pulumi", (env) => runPulumi(["up"], env)],
  ];

  // The genuine plugin `command` dials the agent though a key is given, and fails where tmux or sudo left a socket that is gone.
  it.each(ways)("of %s names no ssh-agent, which the fleet never asks", async (_, run) => {
    expect(await seenBy(run, { SSH_AUTH_SOCK: "/gone/agent.1" })).not.toContain("SSH_AUTH_SOCK");
  });

  it.each(ways)("of %s stops downloads of plugins that no stack uses, with genuine plugins as well", async (_, run) => {
    vi.stubEnv("PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION", undefined);
    expect(await seenBy(run, {})).toContain("PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION=true\n");
  });
});

describe("the stack", () => {
  const own = () => `file://${directory}/.fleet/state`;

  /** As `pulumi stack select` leaves it. */
  function select(stack: string, backend: string): void {
    const key = createHash("sha1").update(join(directory, "Pulumi.yaml")).digest("hex");
    mkdirSync(join(home, "workspaces"), { recursive: true });
    writeFileSync(
      join(home, "workspaces", `nix-builder-fleet-${key}-workspace.json`),
      JSON.stringify({ stacks: { [backend]: `organization/nix-builder-fleet/${stack}` } }),
    );
  }

  it("is dev until another one is selected", async () => {
    expect((await environment({}))["PULUMI_STACK"]).toBe("dev");
    expect(whichStack({ PULUMI_HOME: home }, undefined, directory)).toBe("dev");
    select("mine", own());
    expect(await environment({})).not.toHaveProperty("PULUMI_STACK");
    expect(whichStack({ PULUMI_HOME: home }, undefined, directory)).toBe("mine");
    expect(whichStack(await environment({}), undefined, directory)).toBe("mine");
  });

  it("is the one that a command names, else that of the environment, else the selected one", () => {
    select("mine", own());
    const env = { PULUMI_HOME: home, PULUMI_STACK: "other" };
    expect(whichStack(env, "named", directory)).toBe("named");
    expect(whichStack(env, undefined, directory)).toBe("other");
    expect(whichStack({ ...env, PULUMI_STACK: "" }, undefined, directory)).toBe("mine");
  });

  it("is the one that is selected in the backend in use", () => {
    select("mine", "s3://bucket");
    expect(whichStack({ PULUMI_HOME: home }, undefined, directory)).toBe("dev");
    expect(whichStack({ PULUMI_HOME: home, PULUMI_BACKEND_URL: "s3://bucket" }, undefined, directory)).toBe("mine");
    logIn("s3://bucket");
    expect(whichStack({ PULUMI_HOME: home }, undefined, directory)).toBe("mine");
  });

  it("is named in a command wherever the same command without a name would take another one", async () => {
    const env = await environment({});
    expect(stackOption(env, "dev", directory)).toBe("");
    expect(stackOption(env, "mine", directory)).toBe(" --stack mine");
    select("mine", own());
    expect(stackOption(env, "dev", directory)).toBe(" --stack dev");
    expect(stackOption(env, "mine", directory)).toBe("");
    // The next shell may not have the variable.
    expect(stackOption({ ...env, PULUMI_STACK: "dev" }, "dev", directory)).toBe(" --stack dev");
    expect(stackOption({ PULUMI_HOME: home, PULUMI_BACKEND_URL: "s3://x" }, "dev", directory)).toBe(" --stack dev");
  });

  it("that isn't there and has no configuration ends in the command that makes it, and the stacks that there are", async () => {
    const stacks = join(directory, ".fleet", "state", ".pulumi", "stacks", "nix-builder-fleet");
    mkdirSync(stacks, { recursive: true });
    for (const file of [
      "dev.json",
      "prod.json.gz",
      "prod.eu.json",
      "dev.json.bak",
      "dev.json.attrs",
      "old.json.gz.bak",
    ])
      writeFileSync(join(stacks, file), "{}");
    const require = async (stack: string) => {
      await requireStack({ ...(await environment({})), PULUMI_STACK: stack }, directory);
    };
    await expect(require("nope")).rejects.toThrow(
      `stack 'nope' does not exist in ${own()} (there are dev, prod.eu, prod); make it with ` +
        "`npm run pulumi -- stack init nope` and write Pulumi.nope.yaml",
    );
    await require("prod");
    await require("prod.eu");
  });

  it("is made once, with one passphrase, by first starts at the same time", async () => {
    const bin = join(directory, "bin");
    mkdirSync(bin);
    // A CLI that takes its time, and refuses, as the real one does, what is there already.
    const standIn = `#!/bin/sh
sleep 0.3
stacks=${directory}/.fleet/state/.pulumi/stacks/nix-builder-fleet
echo "$3" >>${directory}/made
mkdir -p $stacks
test ! -e "$stacks/$3.json" || { echo "error: stack '$3' already exists" >&2; exit 255; }
echo '{}' >"$stacks/$3.json"
`;
    writeFileSync(join(bin, "pulumi"), standIn, { mode: 0o755 });
    const script = join(directory, "first.mts");
    writeFileSync(
      script,
      `import { readFileSync } from "node:fs";
      import { ensureStack, pulumiEnvironment } from "${checkout}/tools/pulumi.ts";
      const env = await pulumiEnvironment({ plugins: [], env: process.env }, "${directory}");
      await ensureStack(env, "${directory}");
      console.log(readFileSync(env.PULUMI_CONFIG_PASSPHRASE_FILE, "utf8"));`,
    );
    const env = { PATH: `${bin}:/usr/bin:/bin`, PULUMI_HOME: home, HOME: home };
    const start = () => promisify(execFile)(process.execPath, [script], { env });
    const started = await Promise.all([start(), start(), start()]);
    expect(new Set(started.map(({ stdout }) => stdout.trim())).size).toBe(1);
    expect(readFileSync(join(directory, "made"), "utf8")).toBe("dev\n");
  });

  it.each([
    [["up"], true],
    [["stack", "output", "machines"], true],
    [["stack"], true],
    [["--color", "up", "destroy"], true],
    [["--color", "never", "up"], true],
    [["-v", "9", "stack", "--color", "never", "ls"], false],
    [["-v=9", "--color=never", "up"], true],
    [["up", "--stack", "other"], false],
    [["stack", "init", "x"], false],
    [["up", "--help"], false],
    [["version"], false],
    [[], false],
  ])("is needed by %j: %s", (args, expected) => {
    expect(usesStack(args)).toBe(expected);
  });
});

it("the value of an option that every command has is not taken for the command, whatever the CLI has", async () => {
  const { pulumi } = await setUp();
  const help = execFileSync(join(pulumi, "pulumi"), ["--help"], { encoding: "utf8" });
  const valued = /^ +(?:(-\w), )?(--[\w-]+) (?:string|int|file:) /gm;
  const options = [...help.slice(help.indexOf("\nFlags:")).matchAll(valued)].flatMap(([, short, long]) => [
    short,
    long,
  ]);
  expect(options).toContain("--color");
  for (const option of options.filter((name) => name !== undefined && !["-C", "--cwd"].includes(name)))
    expect([option, usesStack([option ?? "", "1", "up"])]).toEqual([option, true]);
});

describe("plugins", () => {
  const plugin = () => ({ name: "tls", version: "1.2.3", path: join(directory, "bin", "pulumi-resource-tls") });
  const installed = () => {
    mkdirSync(join(directory, "bin"));
    writeFileSync(plugin().path, "");
    return withInstalledPlugins({ PULUMI_HOME: home, PATH: `${directory}/bin:/usr/bin` }, [plugin()], directory);
  };

  it("of this project are installed ones in a home of its own, where the CLI has nothing to warn of", () => {
    const env = installed();
    const own = join(directory, ".fleet", "pulumi");
    expect(env).toEqual({ PULUMI_HOME: own, PULUMI_CREDENTIALS_PATH: home, PATH: "/usr/bin" });
    expect(realpathSync(join(own, "plugins", "resource-tls-v1.2.3", "pulumi-resource-tls"))).toBe(plugin().path);
    // What is selected there is selected everywhere.
    expect(realpathSync(join(own, "workspaces"))).toBe(join(home, "workspaces"));
  });

  it("of the person are found: their home stays the one in use", () => {
    mkdirSync(join(home, "plugins", "resource-tls-v1.2.3"), { recursive: true });
    expect(installed()).toEqual({ PULUMI_HOME: home, PATH: `${directory}/bin:/usr/bin` });
  });

  it("are not downloaded by the CLI itself, which asks for no checksum, unless the person wants that", async () => {
    const name = "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION";
    expect((await environment({}))[name]).toBe("true");
    expect((await environment({ [name]: "false" }))[name]).toBe("false");
  });
});

describe("the salt in a stack file", () => {
  const salt = "encryptionsalt: v1:abc=:v1:def:ghi\n";
  const config = "# two builders\nconfig:\n  a:b: 1\n";

  it("goes, and nothing else does", () => {
    expect(withoutSalt(config + salt)).toBe(config);
    expect(withoutSalt(salt + config)).toBe(config);
    expect(withoutSalt(config + salt.trimEnd())).toBe(config);
  });

  it.each(["config:\n  a:token:\n    secure: v1:xyz\n", "config:\n  a:list:\n    - secure: v1:xyz\n"])(
    "stays where values need it",
    (secret) => {
      expect(withoutSalt(secret + salt)).toBe(secret + salt);
    },
  );

  it("takes nothing else with it where nothing can be written, and no link or mode of the person's", () => {
    const path = join(directory, "Pulumi.dev.yaml");
    const text = config + salt;
    writeFileSync(join(directory, "elsewhere.yaml"), text, { mode: 0o640 });
    symlinkSync("elsewhere.yaml", path);
    const script = `process.on("SIGXFSZ", () => undefined);
      const { tidyStackFiles } = await import("${checkout}/tools/stackFile.ts");
      try { tidyStackFiles("${directory}", true); } catch (error) { console.log(error.code); }`;
    // Node's compile cache is a file, too.
    const env = { ...process.env, NODE_DISABLE_COMPILE_CACHE: "1" };
    const limited = (limit: string) => ["-c", `ulimit -f ${limit}; exec "$0" "$@"`, process.execPath];
    const tidy = (limit: string) =>
      execFileSync("bash", [...limited(limit), "--input-type=module", "-e", script], { env });
    // As where another program takes the room that a file had before it was cut to nothing.
    expect(tidy("0").toString()).toBe("EFBIG\n");
    expect(readFileSync(path, "utf8")).toBe(text);
    expect(readdirSync(directory).sort()).toEqual(["Pulumi.dev.yaml", "elsewhere.yaml", "home"]);
    expect(tidy("unlimited").toString()).toBe("");
    expect(readFileSync(join(directory, "elsewhere.yaml"), "utf8")).toBe(config);
    expect(lstatSync(path).isSymbolicLink()).toBe(true);
    expect((statSync(path).mode & 0o777).toString(8)).toBe("640");
  });

  it("goes only from files that git tracks without it", () => {
    const git = (...args: string[]) =>
      execFileSync("git", ["-c", "user.name=t", "-c", "user.email=t@example.org", ...args], { cwd: directory });
    const write = (name: string, text: string) => {
      writeFileSync(join(directory, `Pulumi.${name}.yaml`), text);
    };
    const read = (name: string) => readFileSync(join(directory, `Pulumi.${name}.yaml`), "utf8");
    git("init", "--quiet");
    write("tracked", config);
    write("salted", config + salt);
    git("add", ".");
    git("commit", "--quiet", "-m", "x");
    for (const name of ["tracked", "salted", "own"]) write(name, config + salt);
    tidyStackFiles(directory);
    expect([read("tracked"), read("salted"), read("own")]).toEqual([config, config + salt, config + salt]);
  });
});
