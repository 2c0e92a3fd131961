/** What processes of other users get of a running substitute: nothing. They speak to its port just as the engine does. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { connect as connectHttp2 } from "node:http2";
import { connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import structProto from "google-protobuf/google/protobuf/struct_pb.js";
import providerProto from "@pulumi/pulumi/proto/provider_pb.js";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { stops } from "../support/attack.ts";
import { refusalOf } from "../../src/peer.ts";
import { pluginsUnderTest } from "./pluginUnderTest.ts";

/** `nobody`, a user that every machine has. */
const otherUid = 65534;
const isRoot = process.getuid?.() === 0;
const why = "only root can start a process of another user";

const substitute = pluginsUnderTest("command").find(({ kind }) => kind === "substitute");

let directory: string;
let plugin: ChildProcess;
let port: number;
let said: string;
const opened: (Socket | ChildProcess)[] = [];

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), "fleet-peers-"));
  said = "";
  plugin = spawn(substitute?.program ?? "", substitute?.args ?? [], { stdio: ["ignore", "pipe", "pipe"] });
  plugin.stderr?.on("data", (chunk: Buffer) => (said += String(chunk)));
  if (plugin.stdout === null) throw new Error("no stdout");
  const [line] = (await once(plugin.stdout, "data")) as [Buffer];
  port = Number(String(line).trim());
});
afterEach(async () => {
  for (const each of opened.splice(0))
    if ("destroy" in each) each.destroy();
    else each.kill("SIGKILL");
  if (plugin.exitCode === null) {
    plugin.kill("SIGKILL");
    await once(plugin, "exit");
  }
  rmSync(directory, { recursive: true, force: true });
});

const ran = (name: string) => existsSync(join(directory, name));

/** What a gRPC client sends to have a command run that makes the file `name`, as one piece: so it needs no answer to go on. */
async function request(name: string): Promise<Buffer> {
  const message = new providerProto.CreateRequest()
    .setUrn("urn:pulumi:test::plugins::command:local:Command::it")
    .setProperties(structProto.Struct.fromJavaScript({ create: `touch ${join(directory, name)}` }))
    .serializeBinary();
  const frame = Buffer.alloc(5 + message.length);
  frame.writeUInt32BE(message.length, 1);
  frame.set(message, 5);
  const pieces: Buffer[] = [];
  const recorder = createServer((socket) => socket.on("data", (chunk) => pieces.push(chunk)));
  await new Promise<void>((resolve) => recorder.listen(0, "127.0.0.1", resolve));
  const address = recorder.address();
  if (address === null || typeof address === "string") throw new Error("no port");
  const session = connectHttp2(`http://127.0.0.1:${address.port}`);
  session.on("error", () => undefined);
  const stream = session.request({
    ":method": "POST",
    ":path": "/pulumirpc.ResourceProvider/Create",
    "content-type": "application/grpc",
    te: "trailers",
  });
  stream.on("error", () => undefined);
  stream.end(frame);
  await expect.poll(() => Buffer.concat(pieces).includes(frame)).toBe(true);
  session.destroy();
  recorder.close();
  return Buffer.concat(pieces);
}

interface Call {
  readonly host?: string;
  readonly localAddress?: string;
  readonly localPort?: number;
  /** What becomes of the connection once everything is sent. Default: it waits for an answer. */
  readonly then?: "close" | "reset" | "half-close";
}

/** A process of another user that connects and sends `bytes`. Resolves when they are sent and `then` is done. */
async function stranger(bytes: Buffer, call: Call = {}): Promise<{ readonly ended: Promise<string> }> {
  const script = `
    const { bytes, then, ...to } = JSON.parse(process.argv[1]);
    process.setgroups([]); process.setgid(${otherUid}); process.setuid(${otherUid});
    const socket = require("node:net").connect(to, () => socket.write(Buffer.from(bytes, "base64"), () => {
      if (then === "close") socket.destroy();
      if (then === "half-close") socket.end();
      if (then === "reset") socket.resetAndDestroy();
      process.stdout.write("sent\\n");
    }));
    const end = (how) => { process.stdout.write(how); socket.destroy(); };
    socket.once("data", () => end("answered"));
    socket.once("error", ({ code }) => { if (code !== "ECONNRESET") end(code); });
    socket.once("close", (failed) => end("closed"));`;
  const options = { port, host: "127.0.0.1", ...call, bytes: bytes.toString("base64") };
  const child = spawn(process.execPath, ["-e", script, JSON.stringify(options)], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  opened.push(child);
  let output = "";
  const sent = new Promise<void>((resolve) => {
    child.stdout.on("data", (chunk: Buffer) => {
      output += String(chunk);
      if (output.includes("sent")) resolve();
    });
    child.on("close", resolve);
  });
  const ended = once(child, "close").then(() => output);
  await sent;
  return { ended };
}

/** Connects as this user, and sends `bytes` if there are any. */
async function ourselves(bytes?: Buffer, localPort?: number): Promise<Socket> {
  const socket = connect({ port, host: "127.0.0.1", ...(localPort !== undefined && { localPort }) });
  opened.push(socket);
  await once(socket, "connect");
  if (bytes !== undefined) socket.write(bytes);
  return socket;
}

/** Waits until the plugin has decided on the stranger, and says how. */
async function decision(): Promise<string> {
  await expect.poll(() => ran("theirs") || said.includes("refused"), { timeout: 10_000 }).toBe(true);
  return ran("theirs") ? "it ran their command" : said;
}

describe.runIf(substitute !== undefined)("a process of another user", () => {
  stops({
    attack: "another user of this machine, while up runs",
    tried:
      "gRPC Create of a command at a plugin's port: plain, over IPv6, half-closed, reset, from a port that this user reuses",
    stopped: "the substitutes look up whose the other end is before they read a byte",
  });

  it("sends what runs a command, if this user sends it", async () => {
    await ourselves(await request("ours"));
    await expect.poll(() => ran("ours")).toBe(true);
    expect(said).toBe("");
  });

  it.for<[string, Call]>([
    ["as the engine does", {}],
    ["by an IPv6 socket", { host: "::ffff:127.0.0.1" }],
    ["from another address", { localAddress: "127.9.9.9" }],
    ["and says that it has nothing to add", { then: "half-close" }],
    ["and is gone at once", { then: "close" }],
    ["and breaks the connection", { then: "reset" }],
  ])("is refused when it connects %s", async ([, call], { skip }) => {
    skip(!isRoot, why);
    const bytes = await request("theirs");
    // What it sends lies ready, and what it does then is done, before the plugin looks.
    plugin.kill("SIGSTOP");
    const { ended } = await stranger(bytes, call);
    plugin.kill("SIGCONT");
    expect(await decision()).toMatch(
      /^The substitute of the Pulumi plugin "command" refused a connection from [^\n]*\n$/,
    );
    expect(await ended).toMatch(/^sent\nclosed$/);
    await ourselves(await request("ours"));
    await expect.poll(() => ran("ours")).toBe(true);
    expect(ran("theirs")).toBe(false);
  });

  it("is refused when this user connects from the port that it had", async ({ skip }) => {
    skip(!isRoot, why);
    const bytes = await request("theirs");
    const localPort = 61_000 + (process.pid % 4000);
    plugin.kill("SIGSTOP");
    await stranger(bytes, { localPort, then: "reset" });
    await ourselves(await request("ours"), localPort);
    plugin.kill("SIGCONT");
    expect(await decision()).toContain("refused a connection");
    await expect.poll(() => ran("ours")).toBe(true);
    expect(ran("theirs")).toBe(false);
  });
});

describe("a connection of this user", () => {
  const ends = (socket: Socket) => ({
    localAddress: "127.0.0.1",
    localPort: port,
    remoteAddress: socket.localAddress,
    remotePort: socket.localPort,
  });
  const uid = process.geteuid?.() ?? NaN;

  it("counts once it is accepted: another one from the same port is not, yet", async () => {
    plugin.kill("SIGSTOP");
    const socket = await ourselves();
    expect(refusalOf(ends(socket), uid)).toBe("its other end is closed already");
    plugin.kill("SIGCONT");
    await expect.poll(() => refusalOf(ends(socket), uid)).toBeUndefined();
    expect(refusalOf(ends(socket), uid + 1)).toBe(`it comes from a process of user ${uid}`);
  });
});
