import { execFileSync, spawn } from "node:child_process";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import {
  atLeast,
  checkout,
  dropLock,
  fetchedNode,
  findNode,
  oldestNode,
  packagesInstalled,
  withLock,
} from "../../tools/launch.mjs";
import { proxyAnswer, startHttpProxy } from "../support/httpProxy.ts";
import { findOldNode } from "../support/oldNode.ts";

const platform = `${process.platform}-${process.arch}`;
/** The cache's entry of the fetched Node: a home may be shared by machines of several platforms. */
const fetchedEntry = `node-v${fetchedNode.version}-${platform}`;

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "launch-test-"));
});
afterEach(() => {
  rmSync(directory, { recursive: true, force: true });
});

describe("a version is new enough", () => {
  it.each([
    ["v24.9.0", "22.18", true],
    ["22.18.0", "22.18", true],
    ["22.17.9", "22.18", false],
    ["v20.20.2", ">=22.18", false],
    ["3.1000.0", "3.200.0", true],
    ["3.99.0", "3.200.0", false],
    ["2.34.0pre20260101", "2.8", true],
    ["2.8", "2.8.0", true],
    ["", "1", false],
  ])("%s for %s: %s", (version, minimum, expected) => {
    expect(atLeast(version, minimum)).toBe(expected);
  });
});

describe("the Node that runs the project", () => {
  const old = { version: "v18.20.4", execPath: "/bin/false" };

  /** A program called `node` that says it is `version`. */
  function fakeNode(folder: string, version: string): string {
    mkdirSync(join(directory, folder));
    const path = join(directory, folder, "node");
    writeFileSync(path, `#!/bin/sh\necho ${version}\n`);
    chmodSync(path, 0o755);
    return path;
  }

  it("is this one where it is new enough, whatever PATH has", async () => {
    const other = fakeNode("other", "v99.0.0");
    const env = { PATH: join(other, ".."), XDG_CACHE_HOME: directory };
    expect(await findNode({ version: "v22.18.0", execPath: "/the/current" }, env)).toBe("/the/current");
  });

  it("is the first new enough one on PATH otherwise", async () => {
    const [tooOld, first, second] = [fakeNode("a", "v20.1.0"), fakeNode("b", "v22.18.0"), fakeNode("c", "v26.0.0")];
    const path = [tooOld, first, second].map((node) => join(node, "..")).join(":");
    expect(await findNode(old, { PATH: path, XDG_CACHE_HOME: directory })).toBe(first);
  });

  it("is the fetched one where PATH has none", async () => {
    const package_ = fetchedNode.packages[platform]?.name ?? "";
    const root = join(directory, "nix-builder-fleet", fetchedEntry, "node_modules", package_, "bin");
    mkdirSync(root, { recursive: true });
    writeFileSync(join(root, "node"), "");
    const path = join(fakeNode("a", "v20.1.0"), "..");
    expect(await findNode(old, { PATH: path, XDG_CACHE_HOME: directory })).toBe(join(root, "node"));
  });

  it("is fetched in a version that is new enough", () => {
    expect(atLeast(fetchedNode.version, oldestNode)).toBe(true);
  });
});

describe("node_modules is up to date", () => {
  function locks(wanted: object, installed?: object): void {
    writeFileSync(join(directory, "package-lock.json"), JSON.stringify({ packages: { "": {}, ...wanted } }));
    if (installed === undefined) return;
    mkdirSync(join(directory, "node_modules"));
    const path = join(directory, "node_modules", ".package-lock.json");
    writeFileSync(path, JSON.stringify({ packages: installed }));
  }
  const a = { "node_modules/a": { version: "1.0.0" } };

  it("not without node_modules", () => {
    locks(a);
    expect(packagesInstalled(directory)).toBe(false);
  });
  it("not with another version than package-lock.json has", () => {
    locks(a, { "node_modules/a": { version: "1.0.1" } });
    expect(packagesInstalled(directory)).toBe(false);
  });
  it("not if a package is missing", () => {
    locks({ ...a, "node_modules/b": { version: "2.0.0" } }, a);
    expect(packagesInstalled(directory)).toBe(false);
  });
  it("though another platform's packages are missing", () => {
    locks({ ...a, "node_modules/b": { version: "2.0.0", optional: true } }, a);
    expect(packagesInstalled(directory)).toBe(true);
  });
});

describe("the lock", () => {
  it("lets one after the other work", async () => {
    const path = join(directory, "lock");
    const order: string[] = [];
    let finish = () => {};
    const held = new Promise<void>((resolve) => (finish = resolve));
    const first = withLock(path, async () => {
      order.push("first begins");
      await held;
      order.push("first ends");
    });
    const second = withLock(
      path,
      () => order.push("second"),
      () => {
        order.push("second waits");
        finish();
      },
    );
    await Promise.all([first, second]);
    expect(order).toEqual(["first begins", "second waits", "first ends", "second"]);
  });

  it("is taken over from a process that is gone", async () => {
    const gone = spawn("true");
    await new Promise((resolve) => gone.on("exit", resolve));
    const path = join(directory, "lock");
    mkdirSync(path);
    writeFileSync(join(path, String(gone.pid)), "");
    expect(await withLock(path, () => "worked")).toBe("worked");
  });

  it("is taken over when the owner's id belongs to another process now", async () => {
    const path = join(directory, "lock");
    mkdirSync(path);
    writeFileSync(join(path, `${String(process.pid)}-1`), "");
    expect(await withLock(path, () => "worked")).toBe("worked");
  });

  it("is taken over from an earlier release of this project, which named no owner by a file", async () => {
    const path = join(directory, "lock");
    mkdirSync(path);
    writeFileSync(join(path, "owner"), "1 1");
    expect(await withLock(path, () => "worked")).toBe("worked");
  });

  it("stays with the one who took it over, when another one who saw it abandoned comes late", async () => {
    const path = join(directory, "lock");
    const abandoned = `${String(process.pid)}-1`;
    mkdirSync(path);
    writeFileSync(join(path, abandoned), "");
    await withLock(path, () => {
      dropLock(path, abandoned);
      expect(readdirSync(path)).toHaveLength(1);
    });
    expect(existsSync(path)).toBe(false);
  });

  it("is released when the work fails", async () => {
    const path = join(directory, "lock");
    await expect(withLock(path, () => Promise.reject(new Error("no")))).rejects.toThrow("no");
    expect(await withLock(path, () => "worked")).toBe("worked");
  });
});

describe("node tools/run.mjs", () => {
  interface RunOptions {
    readonly signal?: { when: string; name: NodeJS.Signals };
    readonly node?: string | undefined;
    readonly env?: NodeJS.ProcessEnv;
  }

  /** Runs a script of the checkout's own launcher below another root. */
  function sandbox(script: string): string {
    mkdirSync(join(directory, "tools"));
    for (const file of ["launch.mjs", "run.mjs"])
      writeFileSync(join(directory, "tools", file), readFileSync(join(checkout, "tools", file)));
    for (const file of ["package.json", "package-lock.json"]) symlinkSync(join(checkout, file), join(directory, file));
    symlinkSync(join(checkout, "node_modules"), join(directory, "node_modules"));
    writeFileSync(join(directory, "tools", "pulumi.ts"), script);
    return join(directory, "tools", "run.mjs");
  }

  async function run(
    path: string,
    args: string[],
    { signal, node = process.execPath, env = process.env }: RunOptions = {},
  ) {
    const child = spawn(node, [path, ...args], { stdio: ["ignore", "pipe", "pipe"], timeout: 15_000, env });
    let [stdout, stderr] = ["", ""];
    child.stdout.on("data", (chunk: Buffer) => {
      stdout += String(chunk);
      if (signal !== undefined && stdout.includes(signal.when)) child.kill(signal.name);
    });
    child.stderr.on("data", (chunk: Buffer) => (stderr += String(chunk)));
    const code = await new Promise<number | null>((resolve) => child.on("close", resolve));
    return { code, stdout, stderr };
  }

  it("passes arguments and the exit code", async () => {
    const path = sandbox("console.log(JSON.stringify(process.argv.slice(2))); process.exitCode = 7;");
    expect(await run(path, ["pulumi", "up", "--x", "a b"])).toMatchObject({
      code: 7,
      stdout: '["up","--x","a b"]\n',
    });
  });

  it("installs packages without running scripts of theirs", async () => {
    const path = sandbox('console.log("the task ran");');
    const [ran, package_] = [join(directory, "script-ran"), join(directory, "eager")];
    mkdirSync(package_);
    const scripts = { preinstall: `touch ${ran}`, install: `touch ${ran}`, postinstall: `touch ${ran}` };
    writeFileSync(join(package_, "package.json"), JSON.stringify({ name: "eager", version: "1.0.0", scripts }));
    for (const name of ["package.json", "package-lock.json", "node_modules"]) rmSync(join(directory, name));
    const project = { name: "p", version: "1.0.0", dependencies: { eager: "file:eager-1.0.0.tgz" } };
    writeFileSync(join(directory, "package.json"), JSON.stringify(project));
    const npm = (...words: string[]) => execFileSync("npm", words, { cwd: directory, stdio: "pipe" });
    npm("pack", "./eager", "--ignore-scripts");
    npm("install", "--package-lock-only", "--ignore-scripts", "--no-audit", "--offline");
    expect(await run(path, ["pulumi"])).toMatchObject({ code: 0, stdout: "the task ran\n" });
    expect(packagesInstalled(directory)).toBe(true);
    expect(existsSync(ran)).toBe(false);
  });

  it("lets the task clean up when it is interrupted", async () => {
    const path = sandbox(
      'process.on("SIGINT", () => { console.log("cleaned up"); process.exit(130); });' +
        'setInterval(() => {}, 1000); console.log("ready");',
    );
    const result = await run(path, ["pulumi"], { signal: { when: "ready", name: "SIGINT" } });
    expect(result).toMatchObject({ code: 130, stdout: "ready\ncleaned up\n" });
  });

  it("lists the tasks, and refuses one that isn't there", async () => {
    const path = sandbox("");
    expect(await run(path, ["--help"])).toMatchObject({
      code: 0,
      stdout: expect.stringContaining("  setup ") as string,
    });
    expect(await run(path, ["toString"])).toMatchObject({
      code: 2,
      stderr: expect.stringContaining('There is no task "toString"') as string,
    });
  });

  describe("where it can't write", () => {
    it("says where it wants to, and what else may be named", async () => {
      // Nobody can make a folder below a file, not even root.
      const home = join(directory, "home");
      writeFileSync(home, "");
      const path = sandbox(`
        import { cacheDirectory, fail, withLock } from "./launch.mjs";
        withLock(cacheDirectory() + "/x.lock", () => {}).catch(fail);
      `);
      const { code, stderr } = await run(path, ["pulumi"], { env: { ...process.env, XDG_CACHE_HOME: "", HOME: home } });
      expect(stderr).toContain(
        `This project writes below ${directory} and ${home}/.cache/nix-builder-fleet: both have to be yours`,
      );
      expect(stderr).toMatch(/^Something can't be written: .*mkdir '.*XDG_CACHE_HOME may name another folder.*\n$/);
      expect(code).toBe(1);
    });

    it("says so already when it looks for a Node", async ({ skip }) => {
      const { node, reason } = await findOldNode();
      skip(node === undefined, reason);
      const home = join(directory, "home");
      writeFileSync(home, "");
      const { code, stderr } = await run(sandbox(""), ["pulumi"], { node, env: { PATH: "/nowhere", HOME: home } });
      expect(stderr).toMatch(/^fetching Node .*\nSomething can't be written: .*mkdir.*XDG_CACHE_HOME.*\n$/);
      expect(code).toBe(1);
    });

    it.each([
      ["EACCES", "open", true],
      ["EROFS", "mkdir", true],
      ["ENOSPC", "write", true],
      ["ENOENT", "open", false],
      ["EACCES", "spawn", false],
    ])("takes %s of %s for that: %s", async (code, syscall, told) => {
      const path = sandbox(`
        import { fail } from "./launch.mjs";
        fail(Object.assign(new Error("${code}: whatever, ${syscall}"), { code: "${code}", syscall: "${syscall}" }));
      `);
      const { stderr } = await run(path, ["pulumi"]);
      expect(/^ +at /m.test(stderr)).toBe(!told);
      expect(stderr.startsWith(`Something can't be written: ${code}: whatever, ${syscall}. `)).toBe(told);
    });
  });

  describe("where programs can't put what they need for a moment", () => {
    const runWith = (env: NodeJS.ProcessEnv) =>
      run(sandbox("console.log(`the task ran: ${process.env.TMPDIR}`);"), ["pulumi"], {
        env: { ...process.env, ...env },
      });

    it.each([
      ["isn't there", (folder: string) => `${folder}/nowhere`, "there is no such folder"],
      ["is a file", (folder: string) => `${folder}/package.json`, "it is no folder"],
      ["is relative", () => "tmp", "it is no absolute path"],
    ])("TMPDIR that %s is refused, and the remedy works", async (_, folder, problem) => {
      const TMPDIR = folder(directory);
      const { code, stdout, stderr } = await runWith({ TMPDIR });
      expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
      expect(stderr).toBe(
        `TMPDIR is ${TMPDIR}, but ${problem}: unset TMPDIR, or set it to a folder that you may write to.\n`,
      );
      rmSync(join(directory, "tools"), { recursive: true });
      for (const name of ["package.json", "package-lock.json", "node_modules"]) rmSync(join(directory, name));
      expect(await runWith({ TMPDIR: directory })).toMatchObject({ code: 0 });
    });

    it("an empty TMPDIR counts as none, for Nix as well, which takes it for the name of a folder", async () => {
      expect(await runWith({ TMPDIR: "" })).toMatchObject({ code: 0, stdout: "the task ran: undefined\n" });
    });
  });

  describe("where the person has a proxy", () => {
    /** Asks for something far away, and for two things on this machine: over HTTP, and over gRPC as Pulumi's program asks its engine. */
    const script = `
      import { createServer } from "node:http";
      import { Client, credentials, Server, ServerCredentials } from "@grpc/grpc-js";
      const text = (url) => fetch(url).then((response) => response.text(), ({ cause }) => cause.message);
      const near = createServer((_, response) => response.end("near"));
      await new Promise((resolve) => near.listen(0, "127.0.0.1", resolve));
      const engine = new Server();
      const port = await new Promise((resolve, reject) =>
        engine.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, bound) => error ? reject(error) : resolve(bound)));
      const client = new Client("127.0.0.1:" + port, credentials.createInsecure());
      const reached = await new Promise((resolve) => client.waitForReady(Date.now() + 5000, (error) => resolve(!error)));
      const far = await text("http://far.invalid/file");
      console.log(JSON.stringify({ far, near: await text("http://127.0.0.1:" + near.address().port), reached }));
      process.exit();
    `;

    it.each<[string, (url: string) => NodeJS.ProcessEnv]>([
      ["by its small name", (url) => ({ http_proxy: url, https_proxy: url })],
      ["by its capital name", (url) => ({ HTTP_PROXY: url, HTTPS_PROXY: url, NO_PROXY: "intranet.invalid" })],
    ])("tasks use it for all that isn't on this machine (%s)", async (_, variables) => {
      const proxy = await startHttpProxy();
      try {
        const env = { ...withoutProxy(process.env), ...variables(proxy.url) };
        const { stdout, stderr } = await run(sandbox(script), ["pulumi"], { env });
        expect(stdout, stderr).toBe(`${JSON.stringify({ far: proxyAnswer, near: "near", reached: true })}\n`);
        expect(new Set(proxy.asked.map((host) => host.replace(/:80$/, "")))).toEqual(new Set(["far.invalid"]));
      } finally {
        proxy.close();
      }
    });

    it("what the person wants to reach without it stays so, and so does what they have told Node", async () => {
      const show = "const { no_proxy, NODE_USE_ENV_PROXY } = process.env; console.log(no_proxy, NODE_USE_ENV_PROXY);";
      const path = sandbox(show);
      const seen = async (variables: NodeJS.ProcessEnv) =>
        (await run(path, ["pulumi"], { env: { ...withoutProxy(process.env), ...variables } })).stdout.trim();
      const http_proxy = "http://proxy.invalid:3128";
      expect(await seen({ http_proxy })).toBe("localhost,127.0.0.1 1");
      expect(await seen({ http_proxy, no_proxy: "a.invalid,.b.invalid" })).toBe(
        "a.invalid,.b.invalid,localhost,127.0.0.1 1",
      );
      expect(await seen({ http_proxy, no_proxy: "*", NODE_USE_ENV_PROXY: "0" })).toBe("* 0");
      expect(await seen({ no_proxy: "a.invalid" })).toBe("a.invalid undefined");
    });

    function withoutProxy(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
      return Object.fromEntries(Object.entries(env).filter(([name]) => !/_proxy$/i.test(name)));
    }
  });

  describe("under Node 12", () => {
    let old: Awaited<ReturnType<typeof findOldNode>>;
    beforeAll(async () => {
      old = await findOldNode();
    });

    /** An npm that "fetches" this Node, and writes the lock file as npm 6 or as later ones do. */
    function fakeNpm(form: "old" | "new", integrity?: string): NodeJS.ProcessEnv {
      const { name = "", integrity: expected = "" } = fetchedNode.packages[platform] ?? {};
      const packages = { [name]: { integrity: integrity ?? expected }, npm: fetchedNode.npm };
      const lock =
        form === "old"
          ? { dependencies: packages }
          : {
              packages: Object.fromEntries(
                Object.entries(packages).map(([key, value]) => [`node_modules/${key}`, value]),
              ),
            };
      const bin = join(directory, "bin");
      mkdirSync(bin);
      const script = [
        "#!/bin/sh",
        `/bin/mkdir -p node_modules/${name}/bin`,
        `/bin/ln -s ${process.execPath} node_modules/${name}/bin/node`,
        `/bin/echo '${JSON.stringify(lock)}' > package-lock.json`,
      ];
      writeFileSync(join(bin, "npm"), script.join("\n"), { mode: 0o755 });
      return { PATH: bin, XDG_CACHE_HOME: directory };
    }

    it.for(["old", "new"] as const)(
      "fetches a newer one, and runs the task by that (%s lock file)",
      async (form, { skip }) => {
        const { node, reason } = old;
        skip(node === undefined, reason);
        const path = sandbox("console.log(process.version, ...process.argv.slice(2))");
        const result = await run(path, ["pulumi", "up"], { node, env: fakeNpm(form) });
        expect(result).toMatchObject({ code: 0, stdout: `${process.version} up\n` });
        expect(result.stderr).toContain(`fetching Node ${fetchedNode.version} from the npm registry (this one is v12.`);
      },
    );

    it("fetches it anew where its folder has lost it", async ({ skip }) => {
      const { node, reason } = old;
      skip(node === undefined, reason);
      const entry = join(directory, "nix-builder-fleet", fetchedEntry);
      mkdirSync(entry, { recursive: true });
      writeFileSync(join(entry, "left"), "");
      const path = sandbox("console.log(process.version)");
      const env = fakeNpm("new");
      expect(await run(path, ["pulumi"], { node, env })).toMatchObject({ code: 0, stdout: `${process.version}\n` });
      expect(readdirSync(entry).sort()).toEqual(["node_modules", "package-lock.json", "package.json"]);
      expect(await run(path, ["pulumi"], { node, env })).toMatchObject({ code: 0, stderr: "" });
    });

    it("refuses another one than expected, in one sentence, and keeps nothing of it", async ({ skip }) => {
      const { node, reason } = old;
      skip(node === undefined, reason);
      const result = await run(sandbox(""), ["pulumi"], { node, env: fakeNpm("old", "sha512-other") });
      expect(result.code).toBe(1);
      expect(result.stderr).toMatch(/from the npm registry is not the expected one: sha512-other\.\n$/);
      expect(result.stderr).not.toMatch(/^ +at /m);
      expect(readdirSync(join(directory, "nix-builder-fleet"))).toEqual([]);
    });

    it("is one that package.json allows, so that npm warns of nothing", ({ skip }) => {
      const { node, reason } = old;
      skip(node === undefined, reason);
      const { engines } = JSON.parse(readFileSync(join(checkout, "package.json"), "utf8")) as {
        engines: { node: string };
      };
      expect(atLeast(execFileSync(node ?? "", ["--version"], { encoding: "utf8" }), engines.node)).toBe(true);
    });

    it("lists the tasks", async ({ skip }) => {
      const { node, reason } = old;
      skip(node === undefined, reason);
      expect(await run(sandbox(""), ["--help"], { node })).toMatchObject({ code: 0, stderr: "" });
    });
  });
});
