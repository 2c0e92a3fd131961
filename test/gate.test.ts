/** The gate through which a plugin measures a builder, in front of a real sshd that keeps it within limits or doesn't. */
import { spawn } from "node:child_process";
import { execa } from "execa";
import { once } from "node:events";
import { createServer, connect, type AddressInfo } from "node:net";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { gateHost, gatePort, openGate } from "../src/gate.ts";
import { stops } from "./support/attack.ts";
import { startHostileBuilder, type HostileBuilder } from "./support/hostileBuilder.ts";

let builder: HostileBuilder;

beforeAll(async () => {
  builder = await startHostileBuilder("127.83.1.1");
});
afterAll(() => builder.stop());

const limits = { seconds: 3, bytes: 256 * 1024, silence: 1 };

/** A gate to the builder, and what it reported. */
async function gate(to = { host: builder.server.address, port: builder.server.port }) {
  const reasons: string[] = [];
  const opened = await openGate(`test ${process.pid} ${Math.random()}`, to, limits, (reason) => reasons.push(reason));
  return { ...opened, reasons };
}

/** ssh through it, by the pinned host key. */
function ssh(port: number) {
  const options = [`HostKeyAlias=evil`, `HostName=${gateHost}`, `Port=${port}`, "ControlPath=none"];
  const words = options.flatMap((option) => ["-o", option]);
  return execa("ssh", [...words, "-F", `${builder.clientDirectory}/ssh_config`, "evil", "x"], {
    reject: false,
    stdin: "ignore",
    timeout: 20_000,
  });
}

describe("a gate", () => {
  it("leads to the machine, which shows its own host key, and closes nothing that keeps within limits", async () => {
    builder.answer("echo through; exit 3");
    const { port, reasons } = await gate();
    for (let time = 0; time < 3; time += 1) expect(await ssh(port)).toMatchObject({ stdout: "through", exitCode: 3 });
    expect(reasons).toEqual([]);
  });

  it("that is closed ends what nobody hung up, says nothing of it, and lets nobody through", async () => {
    builder.answer("echo through; exec sleep 60");
    const { port, reasons, close } = await gate();
    const socket = connect(port, gateHost);
    const ended = once(socket.resume(), "close");
    await once(socket, "data");
    close();
    await ended;
    const late = connect(port, gateHost);
    const [error] = (await once(late, "error")) as [NodeJS.ErrnoException];
    expect(error.code).toBe("ECONNREFUSED");
    // Longer than a connection may last.
    await new Promise((resolve) => setTimeout(resolve, 1000 * limits.seconds + 200));
    expect(reasons).toEqual([]);
  });

  it.each([
    ["sends without end", "exec yes", "it sent more than 256 KiB"],
    ["hangs after the login", "exec sleep 60", "it was not done within 3 s"],
    ["drips", "while :; do echo x; sleep 0.2; done", "it was not done within 3 s"],
  ])("cuts off a machine that %s, and lets nobody through after that", async (_, script, reason) => {
    builder.answer(script);
    const { port, reasons } = await gate();
    const started = Date.now();
    const { exitCode } = await ssh(port);
    expect(exitCode).toBe(255);
    expect(Date.now() - started).toBeLessThan(6000);
    builder.answer("echo through");
    expect((await ssh(port)).stdout).toBe("");
    expect(reasons).toEqual([reason]);
  });

  it("cuts off a machine that takes connections and says nothing", async () => {
    const silent = createServer((socket) => socket.on("error", () => undefined)).listen(0, "127.83.1.2");
    await once(silent, "listening");
    onTestFinished(() => void silent.close());
    const { port, reasons } = await gate({ host: "127.83.1.2", port: (silent.address() as AddressInfo).port });
    const socket = connect(port, gateHost);
    socket.resume();
    await once(socket, "close");
    expect(reasons).toEqual(["it said nothing within 1 s"]);
  });

  it("says nothing of a machine that isn't there yet, and leads to it as soon as it is", async () => {
    const later = createServer((socket) => socket.end("here"));
    later.listen(0, "127.83.1.2");
    await once(later, "listening");
    const to = later.address() as AddressInfo;
    later.close();
    await once(later, "close");
    const { port, reasons } = await gate({ host: "127.83.1.2", port: to.port });
    const first = connect(port, gateHost);
    first.on("error", () => undefined).resume();
    await once(first, "close");
    later.listen(to.port, "127.83.1.2");
    await once(later, "listening");
    onTestFinished(() => void later.close());
    const [said] = (await once(connect(port, gateHost), "data")) as [Buffer];
    expect(said.toString()).toBe("here");
    expect(reasons).toEqual([]);
  });

  it("is always at the same port while that is free, and at the next one otherwise", async () => {
    const name = `test ${process.pid} same`;
    const open = () => openGate(name, { host: "127.0.0.1", port: 9 }, limits, () => undefined);
    expect([(await open()).port, (await open()).port]).toEqual([gatePort(name), gatePort(name) + 1]);
  });
});

describe("a gate, to another user of this machine,", () => {
  stops({
    attack: "another user of this machine, while a builder is measured",
    tried: "connections to the port by which a builder is measured, kept open to have that builder cut off",
    stopped: "the gate looks up whose the other end is, and neither leads nor counts others' connections",
  });

  /** Connects as `nobody`, and says how that ended, or what it read first. */
  const stranger = async (port: number): Promise<string> => {
    const script = `
      process.setgroups([]); process.setgid(65534); process.setuid(65534);
      const socket = require("node:net").connect(${port}, "${gateHost}");
      const end = (how) => { process.stdout.write(how); process.exit(); };
      socket.once("data", (chunk) => end("it reads " + chunk));
      socket.once("error", () => end("closed"));
      socket.once("close", () => end("closed"));`;
    const child = spawn(process.execPath, ["-e", script], { stdio: ["ignore", "pipe", "inherit"] });
    const [said] = (await once(child.stdout, "data")) as [Buffer];
    return said.toString();
  };

  it.runIf(process.getuid?.() === 0)("leads nowhere, and is not shut by what they do", async () => {
    const silent = createServer((socket) => socket.on("error", () => undefined)).listen(0, "127.83.1.3");
    await once(silent, "listening");
    onTestFinished(() => void silent.close());
    const to = silent.address() as AddressInfo;
    const { port, reasons } = await gate({ host: "127.83.1.3", port: to.port });
    const led = once(silent, "connection").then(() => "it was led to the machine");
    expect(await Promise.race([stranger(port), led])).toBe("closed");
    // The machine says nothing, and nobody who may connect has asked it to.
    await new Promise((resolve) => setTimeout(resolve, 1000 * limits.silence + 200));
    expect(reasons).toEqual([]);
  });
});
