/** `command:remote:Command` and `CopyToRemote` against a real sshd; for the genuine plugin as for the substitute. */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { once } from "node:events";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { type Properties, type Property, UNKNOWN, isSecret, plain, reveal } from "../../tools/plugins/propertyValue.ts";
import { RunningPlugin, asSecret, pluginsUnderTest } from "./pluginUnderTest.ts";
import { SshServer, freePort, makeKey, noSshServer } from "./sshServer.ts";

const TYPE = "command:remote:Command";
const COPY = "command:remote:CopyToRemote";
const missing = noSshServer();
if (missing !== undefined) console.warn(`remote.Command is not tested: ${missing}`);

describe.skipIf(missing !== undefined).each(pluginsUnderTest("command"))("remote.Command of $title", (tested) => {
  let plugin: RunningPlugin;
  let server: SshServer;
  let dir: string;

  beforeAll(async () => {
    // An agent of the person who runs the tests must not take part.
    delete process.env["SSH_AUTH_SOCK"];
    plugin = await RunningPlugin.start(tested);
    server = await SshServer.start("127.20.0.1");
    dir = mkdtempSync(join(tmpdir(), "fleet-remote-"));
  });
  afterEach(() => {
    plugin.log.length = 0;
  });
  afterAll(async () => {
    await plugin.stop();
    await server.stop();
    rmSync(dir, { recursive: true, force: true });
  });

  /** The inputs as the engine passes them on: checked, with defaults. */
  async function checked(inputs: Properties, connection: Properties = {}): Promise<Properties> {
    const given = { ...inputs, connection: { ...server.connection(), dialErrorLimit: 0, ...connection } };
    const { inputs: complete, failures } = await plugin.check(TYPE, given);
    expect(failures).toEqual([]);
    return complete;
  }
  const create = async (inputs: Properties, connection?: Properties) => {
    const { state } = await plugin.create(TYPE, await checked(inputs, connection));
    return state;
  };

  it("fills in the defaults of a connection and of its proxy, and keeps it secret", async () => {
    const { inputs } = await plugin.check(TYPE, {
      create: "true",
      connection: { host: "h", proxy: { host: "p", port: 2222 } },
    });
    expect(isSecret(inputs["connection"])).toBe(true);
    expect(reveal(inputs["connection"])).toEqual({
      host: "h",
      port: 22,
      user: "root",
      dialErrorLimit: 10,
      perDialTimeout: 15,
      proxy: { host: "p", port: 2222, user: "root", dialErrorLimit: 10, perDialTimeout: 15 },
    });
  });

  it("marks passwords and keys of a connection and of its proxy secret in themselves", async () => {
    const secrets = { password: "1", privateKey: "2", privateKeyPassword: "3" };
    const marked = { password: asSecret("1"), privateKey: asSecret("2"), privateKeyPassword: asSecret("3") };
    const proxied = async (proxy: Property) => {
      const { inputs } = await plugin.check(TYPE, { create: "true", connection: { host: "h", ...secrets, proxy } });
      return reveal(inputs["connection"]);
    };
    const defaults = { port: 22, user: "root", dialErrorLimit: 10, perDialTimeout: 15 };
    const [host, proxy] = [
      { ...defaults, host: "h", ...marked },
      { ...defaults, host: "p", ...marked },
    ];
    expect(await proxied({ host: "p", ...secrets })).toEqual({ ...host, proxy });
    expect(await proxied(asSecret({ host: "p", ...marked }))).toEqual({ ...host, proxy: asSecret(proxy) });
    expect(await proxied({ host: "p", privateKey: UNKNOWN })).toMatchObject({ proxy: { host: "p" } });
  });

  it("requires a connection and its host", async () => {
    const noConnection = await plugin.check(TYPE, { create: "true" });
    expect(JSON.stringify(noConnection.failures)).toContain("connection");
    const noHost = await plugin.check(TYPE, { create: "true", connection: { user: "x" } });
    expect(JSON.stringify(noHost.failures)).toContain("host");
  });

  it("runs a command and keeps its outputs, with the connection as a secret", async () => {
    const inputs = await checked({ create: "echo out; echo err >&2" });
    const { id, state } = await plugin.create(TYPE, inputs, { name: "far" });
    expect(state).toEqual({ ...inputs, stdout: "out", stderr: "err" });
    expect(isSecret(state["connection"])).toBe(true);
    expect(id).toMatch(/^far[0-9a-f]{8}$/);
  });

  it("runs nothing in a preview, even where the host isn't known yet", async () => {
    const { inputs } = await plugin.check(TYPE, { create: "true", connection: { host: UNKNOWN } });
    const { state } = await plugin.create(TYPE, inputs, { preview: true });
    expect(state).toMatchObject({ stdout: UNKNOWN, stderr: UNKNOWN });
  });

  it("passes stdin, of any size, and keeps it out of command text, log and error", async () => {
    const secret = `hunter2 ${"x".repeat(3_000_000)}`;
    expect(await create({ create: "wc -c", stdin: asSecret(secret) })).toMatchObject({ stdout: String(secret.length) });
    const failing = create({ create: "cat > /dev/null; ps -o args= -p $$; exit 1", stdin: asSecret("hunter2") });
    await expect(failing).rejects.toThrow(/status 1/);
    await expect(failing).rejects.not.toThrow(/hunter2/);
    expect(plugin.log.filter(({ message }) => message.includes("hunter2"))).toEqual([]);
  });

  it("doesn't mind a command that leaves its input unread", async ({ skip }) => {
    skip(tested.kind === "genuine", "it fails with EOF: tools/plugins/README.md");
    expect(await create({ create: "exit 0", stdin: "x".repeat(3_000_000) })).toMatchObject({ stdout: "" });
  });

  it("collects a large output whole", async () => {
    const state = await create({ create: "head -c 5000000 /dev/zero | tr '\\0' y", logging: "none" });
    expect(state["stdout"]).toHaveLength(5_000_000);
  });

  it("fails with the exit status, the command and what it wrote", async () => {
    await expect(create({ create: "echo so far; exit 7" })).rejects.toThrow(
      /^Process exited with status 7: running "echo so far; exit 7":\nso far\n$/,
    );
  });

  it("tells when a signal ended the command", async () => {
    await expect(create({ create: "kill -KILL $$" })).rejects.toThrow(
      /^Process exited with status 137 from signal KILL/,
    );
  });

  it("logs what the command writes", async () => {
    await create({ create: "echo seen; echo also >&2", logging: "stdout" });
    expect(plugin.log.map(({ message, ephemeral }) => [message, ephemeral])).toEqual([["seen", true]]);
  });

  it("passes environment variables that sshd accepts", async () => {
    const state = await create({
      create: 'echo "$FLEET_ONE+$FLEET_TWO"',
      environment: { FLEET_ONE: "1", FLEET_TWO: "a b" },
    });
    expect(state["stdout"]).toBe("1+a b");
  });

  it("fails without running the command when sshd refuses a variable", async () => {
    const marker = join(dir, "refused-variable");
    const environment = { FLEET_ONE: "1", OTHER: "2" };
    await expect(create({ create: `touch ${marker}`, environment })).rejects.toThrow(
      /could not set environment variable "OTHER"/,
    );
    expect(existsSync(marker)).toBe(false);
    expect(plugin.log.some(({ message }) => message.includes("AcceptEnv"))).toBe(true);
  });

  describe("life cycle", () => {
    it("runs update with the previous outputs in the environment", async () => {
      const state = await create({ create: "echo first" });
      const inputs = await checked({ create: "echo first", update: 'echo "after $PULUMI_COMMAND_STDOUT"' });
      expect(await plugin.update(TYPE, state, inputs)).toMatchObject({ stdout: "after first" });
    });
    it("has the previous outputs in the environment even where it says otherwise", async () => {
      const state = await create({ create: "echo first" });
      const environment = { PULUMI_COMMAND_STDOUT: "mine", PULUMI_COMMAND_STDERR: "mine" };
      const inputs = await checked({ create: 'echo "$PULUMI_COMMAND_STDOUT $PULUMI_COMMAND_STDERR"', environment });
      expect(await plugin.update(TYPE, state, inputs)).toMatchObject({ stdout: "first mine" });
    });
    it("runs create again where there is no update", async () => {
      const state = await create({ create: "echo first" });
      expect(await plugin.update(TYPE, state, await checked({ create: "echo second" }))).toMatchObject({
        stdout: "second",
      });
    });
    it("runs delete", async () => {
      const marker = join(dir, "deleted");
      const state = await create({ create: "true", delete: `touch ${marker}` });
      expect(existsSync(marker)).toBe(false);
      await plugin.delete(TYPE, state);
      expect(existsSync(marker)).toBe(true);
    });
    it("fails to delete on a machine that is gone, and needs none where there is no delete", async () => {
      const gone = { host: "127.20.0.9", port: await freePort("127.20.0.9"), dialErrorLimit: 0 };
      const state = { ...(await checked({ create: "true", delete: "true" }, gone)), stdout: "", stderr: "" };
      await expect(plugin.delete(TYPE, state)).rejects.toThrow(/connection refused/);
      await plugin.delete(TYPE, { ...(await checked({ create: "true" }, gone)), stdout: "", stderr: "" });
    });
    it("takes the connection of a state without marks further in for the same", async ({ skip }) => {
      skip(tested.kind === "genuine", "it runs the command once more: tools/plugins/README.md");
      const inputs = await checked({ create: "true" }, { proxy: server.connection() });
      const connection = asSecret(plain(inputs["connection"] ?? null));
      const older = { ...inputs, connection, stdout: "", stderr: "" };
      expect(older.connection).not.toEqual(inputs["connection"]);
      expect(await plugin.diff(TYPE, older, inputs)).toEqual({ changed: false, inputs: [], replaces: [] });
      const state = { ...inputs, stdout: "", stderr: "" };
      expect(await plugin.diff(TYPE, state, { ...inputs, connection })).toMatchObject({ changed: false });
      const other = await checked({ create: "true" }, { proxy: { ...server.connection(), password: "changed" } });
      expect(await plugin.diff(TYPE, older, other)).toMatchObject({ inputs: ["connection"] });
    });
    it("updates, not replaces, when the connection changes, and sees no change otherwise", async () => {
      const inputs = await checked({ create: "true", triggers: [1] });
      const state = { ...inputs, stdout: "", stderr: "" };
      expect(await plugin.diff(TYPE, state, inputs)).toMatchObject({ changed: false });
      const moved = await checked({ create: "true", triggers: [1] }, { port: server.port + 1 });
      expect(await plugin.diff(TYPE, state, moved)).toEqual({ changed: true, inputs: ["connection"], replaces: [] });
      const triggered = await checked({ create: "true", triggers: [2] });
      expect(await plugin.diff(TYPE, state, triggered)).toMatchObject({ changed: true, inputs: ["triggers"] });
    });
  });

  describe("who is at the other end", () => {
    it("refuses a host with another key than hostKey, and runs nothing there", async () => {
      makeKey(join(dir, "other"));
      const marker = join(dir, "wrong-host");
      const hostKey = readFileSync(join(dir, "other.pub"), "utf8");
      await expect(create({ create: `touch ${marker}` }, { hostKey })).rejects.toThrow(/host key mismatch/);
      expect(existsSync(marker)).toBe(false);
    });
    it("refuses a host that has no key of the type of hostKey", async () => {
      makeKey(join(dir, "rsa"), ["-t", "rsa", "-b", "2048", "-N", ""]);
      const marker = join(dir, "wrong-type");
      const hostKey = readFileSync(join(dir, "rsa.pub"), "utf8");
      await expect(create({ create: `touch ${marker}` }, { hostKey })).rejects.toThrow();
      expect(existsSync(marker)).toBe(false);
    });
    it("accepts hostKey with a comment", async () => {
      expect(await create({ create: "echo ok" }, { hostKey: `${server.hostKey} root@builder\n` })).toMatchObject({
        stdout: "ok",
      });
    });
    it("refuses a hostKey that is none", async () => {
      await expect(create({ create: "true" }, { hostKey: "not a key" })).rejects.toThrow(/host ?key/i);
    });
    it("fails with a client key that isn't let in", async () => {
      makeKey(join(dir, "stranger"));
      const privateKey = readFileSync(join(dir, "stranger"), "utf8");
      await expect(create({ create: "true" }, { privateKey })).rejects.toThrow(/unable to authenticate/);
    });
    it("fails with a client key that is none, without printing it", async () => {
      const failing = create({ create: "true" }, { privateKey: "AAAA-not-a-key" });
      await expect(failing).rejects.toThrow();
      await expect(failing).rejects.not.toThrow(/AAAA-not-a-key/);
    });
    it("opens a client key with its password", async () => {
      makeKey(join(dir, "locked"), ["-t", "ed25519", "-N", "open sesame"]);
      server.authorize(readFileSync(join(dir, "locked.pub"), "utf8"));
      const privateKey = readFileSync(join(dir, "locked"), "utf8");
      expect(await create({ create: "echo in" }, { privateKey, privateKeyPassword: "open sesame" })).toMatchObject({
        stdout: "in",
      });
      await expect(create({ create: "echo in" }, { privateKey, privateKeyPassword: "wrong" })).rejects.toThrow();
    });
  });

  describe("dialling", () => {
    it("gives up after dialErrorLimit repetitions, and says how often and why it failed", async () => {
      const port = await freePort("127.20.0.9");
      await expect(create({ create: "true" }, { host: "127.20.0.9", port, dialErrorLimit: 2 })).rejects.toThrow(
        new RegExp(`after 2 failed attempts: dial tcp 127.20.0.9:${port}: connect: connection refused`),
      );
      expect(plugin.log.map(({ message }) => message)).toEqual([
        "Dial 1/2 failed: retrying",
        "Dial 2/2 failed: retrying",
      ]);
    });
    it("dials once more than dialErrorLimit", async () => {
      let dials = 0;
      const hangingUp = createServer((socket) => {
        dials += 1;
        socket.destroy();
      }).listen(0, "127.20.0.8");
      await once(hangingUp, "listening");
      const address = hangingUp.address();
      const port = typeof address === "object" ? (address?.port ?? 0) : 0;
      await expect(create({ create: "true" }, { host: "127.20.0.8", port, dialErrorLimit: 3 })).rejects.toThrow(
        /after 3 failed/,
      );
      expect(dials).toBe(4);
      hangingUp.close();
    });
    it("succeeds when the server comes up while it is still dialling", async () => {
      const late = await SshServer.prepare("127.20.0.7");
      try {
        const running = create({ create: "echo up" }, { ...late.connection(), dialErrorLimit: -1 });
        await expect.poll(() => plugin.log.map(({ message }) => message)).toContain("Dial 1/inf failed: retrying");
        await late.listen();
        await expect(running).resolves.toMatchObject({ stdout: "up" });
      } finally {
        await late.stop();
      }
    });
    it("gives up a dial that isn't answered after perDialTimeout", async ({ skip }) => {
      skip(tested.kind === "genuine", "it hangs, on purpose unlike the substitute: tools/plugins/README.md");
      const silent = createServer(() => undefined).listen(0, "127.20.0.8");
      await once(silent, "listening");
      const address = silent.address();
      const port = typeof address === "object" ? (address?.port ?? 0) : 0;
      const own = await RunningPlugin.start(tested);
      try {
        const { inputs } = await own.check(TYPE, {
          create: "true",
          connection: { ...server.connection(), host: "127.20.0.8", port, dialErrorLimit: 0, perDialTimeout: 1 },
        });
        await expect(own.create(TYPE, inputs)).rejects.toThrow(/after 0 failed attempts: .*timeout/);
      } finally {
        await own.stop();
        silent.close();
      }
    });
    it("stops dialling when the engine cancels", async () => {
      const own = await RunningPlugin.start(tested);
      try {
        const gone = {
          ...server.connection(),
          host: "127.20.0.9",
          port: await freePort("127.20.0.9"),
          dialErrorLimit: -1,
        };
        const { inputs } = await own.check(TYPE, { create: "true", connection: gone });
        const failed = expect(own.create(TYPE, inputs)).rejects.toThrow(/cancel|abort/);
        await expect.poll(() => own.log.length).toBeGreaterThan(0);
        await own.cancel();
        await failed;
      } finally {
        await own.stop();
      }
    });
  });

  describe("through a proxy", () => {
    it("reaches the host", async () => {
      const { host, ...rest } = server.connection();
      expect(await create({ create: "echo through" }, { proxy: { host, ...rest } })).toMatchObject({
        stdout: "through",
      });
    });
    it("refuses a proxy with another key than its hostKey", async () => {
      makeKey(join(dir, "otherProxy"));
      const hostKey = readFileSync(join(dir, "otherProxy.pub"), "utf8");
      const proxy = { ...server.connection(), hostKey, dialErrorLimit: 0 };
      await expect(create({ create: "true" }, { proxy })).rejects.toThrow(/proxy: .*host key mismatch/);
    });
  });

  describe("CopyToRemote", () => {
    const file = (path: string, hash: string): Properties => ({
      [SIGNATURE]: "c44067f5952c0a294b673a41bacd8c17",
      hash,
      path,
    });
    const textAsset = (text: string, hash: string): Properties => ({
      [SIGNATURE]: "c44067f5952c0a294b673a41bacd8c17",
      hash,
      text,
    });
    const archive = (path: string, hash: string): Properties => ({
      [SIGNATURE]: "0def7320c3a5731c473e5ecbe6d01bc7",
      hash,
      path,
    });
    const inputs = async (source: Properties, remotePath: string): Promise<Properties> => {
      const result = await plugin.check(COPY, {
        source,
        remotePath,
        connection: { ...server.connection(), dialErrorLimit: 0 },
      });
      expect(result.failures).toEqual([]);
      return result.inputs;
    };

    it("copies a file, into a directory or onto a path", async () => {
      writeFileSync(join(dir, "file"), "content\n");
      mkdirSync(join(dir, "into"));
      const { id, state } = await plugin.create(COPY, await inputs(file(join(dir, "file"), "h1"), join(dir, "copy")));
      expect(readFileSync(join(dir, "copy"), "utf8")).toBe("content\n");
      expect(id).toMatch(/^[0-9a-f]{8}$/);
      expect(isSecret(state["connection"])).toBe(true);
      await plugin.create(COPY, await inputs(file(join(dir, "file"), "h1"), join(dir, "into")));
      expect(readFileSync(join(dir, "into/file"), "utf8")).toBe("content\n");
    });

    it("copies an empty file", async () => {
      writeFileSync(join(dir, "empty"), "");
      await plugin.create(COPY, await inputs(file(join(dir, "empty"), "h0"), join(dir, "emptyCopy")));
      expect(readFileSync(join(dir, "emptyCopy"), "utf8")).toBe("");
    });

    it("writes a text", async () => {
      await plugin.create(COPY, await inputs(textAsset("some text", "h2"), join(dir, "text")));
      expect(readFileSync(join(dir, "text"), "utf8")).toBe("some text");
    });

    it("refuses what lies at an address, which it doesn't fetch", async () => {
      for (const signature of ["c44067f5952c0a294b673a41bacd8c17", "0def7320c3a5731c473e5ecbe6d01bc7"]) {
        const source = { [SIGNATURE]: signature, hash: "h", uri: "https://example.org/file" };
        const refused = await plugin.check(COPY, {
          source,
          remotePath: join(dir, "far"),
          connection: server.connection(),
        });
        expect(refused.failures).not.toEqual([]);
      }
    });

    it("writes an empty text, which the engine sends without the text", async ({ skip }) => {
      skip(tested.kind === "genuine", "it refuses one: tools/plugins/README.md");
      const empty = { [SIGNATURE]: "c44067f5952c0a294b673a41bacd8c17", hash: "h10" };
      await plugin.create(COPY, await inputs(empty, join(dir, "nothing")));
      expect(readFileSync(join(dir, "nothing"), "utf8")).toBe("");
    });

    it("copies a directory as a whole, or its content where the path ends in a slash", async () => {
      mkdirSync(join(dir, "tree/inner"), { recursive: true });
      writeFileSync(join(dir, "tree/inner/leaf"), "leaf");
      await plugin.create(COPY, await inputs(archive(join(dir, "tree"), "h3"), join(dir, "whole")));
      expect(readFileSync(join(dir, "whole/tree/inner/leaf"), "utf8")).toBe("leaf");
      await plugin.create(COPY, await inputs(archive(`${join(dir, "tree")}/`, "h3"), join(dir, "content")));
      expect(readFileSync(join(dir, "content/inner/leaf"), "utf8")).toBe("leaf");
    });

    it("creates the directories that are missing above the destination, also for several copies at once", async () => {
      writeFileSync(join(dir, "low"), "file");
      mkdirSync(join(dir, "branch"));
      writeFileSync(join(dir, "branch/leaf"), "leaf");
      const copies = [
        await inputs(file(join(dir, "low"), "h6"), join(dir, "deep/er/copy")),
        await inputs(textAsset("text", "h7"), join(dir, "deep/er/text")),
        await inputs(archive(join(dir, "branch"), "h8"), join(dir, "deep/er/whole")),
        await inputs(archive(`${join(dir, "branch")}/`, "h8"), `${join(dir, "deep/er/content")}/`),
      ];
      await Promise.all(copies.map((copy) => plugin.create(COPY, copy)));
      expect(readFileSync(join(dir, "deep/er/copy"), "utf8")).toBe("file");
      expect(readFileSync(join(dir, "deep/er/text"), "utf8")).toBe("text");
      expect(readFileSync(join(dir, "deep/er/whole/branch/leaf"), "utf8")).toBe("leaf");
      expect(readFileSync(join(dir, "deep/er/content/leaf"), "utf8")).toBe("leaf");
    });

    it("leaves a file that stands where a directory is needed", async () => {
      writeFileSync(join(dir, "obstacle"), "kept");
      for (const path of ["obstacle/text", "obstacle/deep/text"]) {
        await expect(plugin.create(COPY, await inputs(textAsset("text", "h9"), join(dir, path)))).rejects.toThrow();
      }
      expect(readFileSync(join(dir, "obstacle"), "utf8")).toBe("kept");
    });

    it("copies again only when the content or the path changed", async () => {
      const target = join(dir, "again");
      const before = await inputs(textAsset("one", "h4"), target);
      const { state } = await plugin.create(COPY, before);
      writeFileSync(target, "touched by hand");
      const reconnected = {
        ...before,
        connection: asSecret({ ...server.connection(), user: server.user, port: server.port, dialErrorLimit: 5 }),
      };
      await plugin.update(COPY, state, reconnected);
      expect(readFileSync(target, "utf8")).toBe("touched by hand");
      await plugin.update(COPY, state, await inputs(textAsset("two", "h5"), target));
      expect(readFileSync(target, "utf8")).toBe("two");
    });

    it("sees a change in the content, not in where the content came from", async () => {
      const old = await inputs(file(join(dir, "file"), "same"), "/x");
      expect(await plugin.diff(COPY, old, await inputs(file(join(dir, "copy"), "same"), "/x"))).toMatchObject({
        changed: false,
      });
      expect(await plugin.diff(COPY, old, await inputs(file(join(dir, "file"), "other"), "/x"))).toMatchObject({
        inputs: ["source"],
      });
    });
  });
});

const SIGNATURE = "4dabf18193072939515e22adb298388d";
