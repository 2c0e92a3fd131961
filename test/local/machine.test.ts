import { randomBytes } from "node:crypto";
import { execFileSync, spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmdirSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { connect, createServer, type Server } from "node:net";
import { tmpdir, userInfo } from "node:os";
import { basename } from "node:path";
import { execa } from "execa";
import { afterEach, beforeEach, describe, expect, it, onTestFinished, vi } from "vitest";
import { clientEnvironment } from "../../src/client/environment.ts";
import { parseFleetSpec } from "../../src/fleetSpec.ts";
import { emulation } from "../../src/local/emulation.ts";
import { removeTree } from "../../src/local/folders.ts";
import { statOf } from "../../src/local/container.ts";
import { removeMachine, startMachine, sweep } from "../../src/local/machine.ts";
import { machineDirectory, machineGeneration, planLocalBuilders } from "../../src/local/plan.ts";
import { runningSshd, stopProcesses } from "../../src/local/processes.ts";
import type { LocalMachine } from "../../src/local/spec.ts";
import { findLocalTools } from "../../src/local/tools.ts";
import { storeUri } from "../../src/nix/machinesFile.ts";
import { kernelArch, systems } from "../../src/nix/system.ts";
import { findCurrentNix } from "../support/currentNix.ts";
import { keyPair, LocalFleet, system, type KeyPair } from "../support/localFleet.ts";

describe("a builder that is to move to a port that something else listens on", () => {
  let fleet: LocalFleet;
  let other: Server;
  let port: number;

  beforeEach(async () => {
    fleet = await LocalFleet.start({ alias: "t-a" });
    other = createServer((socket) => socket.end("occupied"));
    const { address } = fleet.builder("t-a").local;
    await new Promise<void>((done) => other.listen({ host: address, port: 0 }, done));
    const bound = other.address();
    port = typeof bound === "object" && bound !== null ? bound.port : 0;
  });
  afterEach(async () => {
    await new Promise((done) => other.close(done));
    await fleet.stop();
  });

  it("is named, and goes on where it was", async () => {
    const { local } = fleet.builder("t-a");
    const sshd = fleet.sshd("t-a");
    const configuration = readFileSync(`${local.directory}/sshd_config`, "utf8");
    await expect(startMachine({ ...local, port }, "2")).rejects.toThrow(
      `builder '0': ${local.address} port ${port} can't be listened on (another program does); give it another port`,
    );
    expect(runningSshd(local.directory)).toBe(sshd);
    expect(readFileSync(`${local.directory}/sshd_config`, "utf8")).toBe(configuration);
    expect(await greeting(local.address, local.port)).toMatch(/^SSH-2.0-/);
  });

  it("is refused before anything is made", async () => {
    const { local } = fleet.builder("t-a");
    // The folder of a builder is called like the builder; LocalFleet calls them by number.
    const plan = (at: number) => {
      const builder = { name: "x", provider: "local", system: local.system, address: local.address, port: at };
      const { builders, ...rest } = parseFleetSpec("t", { builders: [builder] }, "/nowhere");
      const named = builders.map((one) => ({ ...one, name: "0" }));
      return planLocalBuilders({ ...rest, builders: named }, fleet.directory);
    };
    expect(machineDirectory(fleet.directory, "0")).toBe(local.directory);
    await expect(plan(local.port)).resolves.toMatchObject({ leftOut: [] });
    await expect(plan(port)).rejects.toThrow(`builder '0': ${local.address} port ${port} can't be listened on`);
  });
});

describe("a build that hangs", () => {
  /** A derivation of its own, whose output nobody has. */
  const derivation = (script: string): string =>
    `derivation { name = "hang-${randomBytes(4).toString("hex")}"; system = "${system}"; builder = "/bin/sh"; args = [ "-c" "${script}" ]; }`;
  const noisy = "i=0; while [ $i -lt 120 ]; do echo $i; sleep 0.5; i=$((i + 1)); done";

  it.each([
    ["says nothing", { timeout: 0, maxSilentTime: 2 }, "sleep 60", "timed out after 2 seconds of silence"],
    ["goes on and on", { timeout: 2, maxSilentTime: 0 }, noisy, "timed out after 2 seconds"],
  ])("and %s is ended by the builder's own limit, and gives its slot back", async (_, limits, script, reason) => {
    const fleet = await LocalFleet.start({ alias: "t-a", limits, maxJobs: 1 });
    onTestFinished(() => fleet.stop());
    const started = performance.now();
    const { failed, all } = await fleet.nixBuild(derivation(script));
    expect(failed).toBe(true);
    expect(all).toContain(reason);
    expect(performance.now() - started).toBeLessThan(30_000);
    const next = await fleet.nixBuild(derivation("echo > $out"));
    expect(next.failed, next.all).toBe(false);
  });

  it("is ended by the builder's limit over ssh as well", async () => {
    const fleet = await LocalFleet.start({ alias: "t-a", protocol: "ssh", limits: { timeout: 1, maxSilentTime: 0 } });
    onTestFinished(() => fleet.stop());
    const { failed, all } = await fleet.nixBuild(derivation("sleep 60"));
    expect(failed).toBe(true);
    expect(all).toContain("timed out after 1 seconds");
  });

  it("isn't ended by the client's limits, which ssh-ng doesn't send", async () => {
    const fleet = await LocalFleet.start({ alias: "t-a", limits: { timeout: 0, maxSilentTime: 0 } });
    onTestFinished(() => fleet.stop());
    const words = ["--option", "timeout", "1", "--option", "max-silent-time", "1"];
    const { failed, all } = await fleet.nixBuild(derivation("sleep 4; echo > $out"), words);
    expect(failed, all).toBe(false);
  });
});

describe("a builder at the address that another one of the stack had", () => {
  it("is told whose it is, as long as that one listens there, even when its folder is gone", async () => {
    const fleet = await LocalFleet.start({ alias: "t-a" });
    onTestFinished(() => fleet.stop());
    const { local } = fleet.builder("t-a");
    const builder = { provider: "local", system: local.system, address: local.address, port: local.port };
    const plan = (name: string) =>
      planLocalBuilders(parseFleetSpec("t", { builders: [{ ...builder, name }] }, "/nowhere"), fleet.directory);
    const refusal = new RegExp(
      `^builder 'renamed': ${local.address} port ${local.port} can't be listened on \\(builder '0' of this stack still does\\); ` +
        "give it another address, for good or for one deployment$",
    );
    await expect(plan("renamed")).rejects.toThrow(refusal);
    removeTree(local.directory);
    await expect(plan("renamed")).rejects.toThrow(refusal);
    await fleet.kill("t-a");
    await expect(plan("renamed")).resolves.toMatchObject({ leftOut: [] });
  });

  it("is started again there when its own folder is gone", async () => {
    const fleet = await LocalFleet.start({ alias: "t-a" });
    onTestFinished(() => fleet.stop());
    const { local } = fleet.builder("t-a");
    const former = fleet.sshd("t-a");
    removeTree(local.directory);
    await startMachine(local, "2");
    expect(fleet.sshd("t-a")).not.toBe(former);
    expect(await greeting(local.address, local.port)).toMatch(/^SSH-2.0-/);
  });
});

/** Clients of these keys, all fully trusted. */
const full = (...keys: readonly KeyPair[]): LocalMachine["clients"] =>
  keys.map(({ publicKey }) => ({ publicKey, trust: "full" }));

describe("a connection that a key opened", () => {
  let fleet: LocalFleet;
  let revoked: KeyPair;
  beforeEach(async () => {
    fleet = await LocalFleet.start({ alias: "t-a" });
    revoked = keyPair(fleet.directory);
    const { local } = fleet.builder("t-a");
    await startMachine({ ...local, clients: full(fleet.client, revoked) }, "2");
    fleet.writeClient(undefined, revoked.privateKey);
  });
  afterEach(() => fleet.stop());

  const ssh = (...words: string[]) =>
    execa(
      "ssh",
      ["-F", `${fleet.clientDirectory}/ssh_config`, "-o", `ControlPath=${fleet.directory}/shared`, ...words],
      { all: true, reject: false, stdin: "ignore" },
    );
  /** Opens a connection for others to share, and waits until they can. */
  const share = async (): Promise<void> => {
    expect((await ssh("-o", "ControlMaster=yes", "-o", "ControlPersist=60", "t-a", "id")).all).toContain("refused");
    expect((await ssh("-O", "check", "t-a")).exitCode).toBe(0);
  };

  it("ends when the key counts no more, and the builder listens all the while", async () => {
    await share();
    const sshd = fleet.sshd("t-a");
    await startMachine(fleet.builder("t-a").local, "3");
    expect((await ssh("-o", "ControlMaster=no", "t-a", "id")).all).toContain("Permission denied");
    expect(fleet.sshd("t-a")).toBe(sshd);
  });

  it("ends also when the start that takes the key away is cut off, and another one finishes it", async () => {
    await share();
    await cutOff(fleet.builder("t-a").local);
    expect((await ssh("-O", "check", "t-a")).exitCode).toBe(0);
    await startMachine(fleet.builder("t-a").local, "3");
    expect((await ssh("-o", "ControlMaster=no", "t-a", "id")).all).toContain("Permission denied");
  });

  it("goes on when another key comes in", async () => {
    await share();
    const clients = full(fleet.client, revoked, keyPair(fleet.directory));
    await startMachine({ ...fleet.builder("t-a").local, clients }, "3");
    expect((await ssh("-O", "check", "t-a")).exitCode).toBe(0);
    await ssh("-O", "exit", "t-a");
  });
});

describe("a start that is cut off", () => {
  it("is finished by the next one: what was written since is what sshd runs with", async () => {
    const fleet = await LocalFleet.start({ alias: "t-a" });
    onTestFinished(() => fleet.stop());
    const { local } = fleet.builder("t-a");
    const key = keyPair(fleet.directory);
    const changed = { ...local, port: local.port + 1, hostPrivateKey: key.privateKey };
    await cutOff(changed);
    expect(await greeting(local.address, local.port)).toMatch(/^SSH-2.0-/);
    expect(Number(machineGeneration(local.directory))).toBeGreaterThan(1);
    await startMachine(changed, "2");
    const scan = await execa("ssh-keyscan", ["-t", "ed25519", "-p", String(changed.port), local.address]);
    expect(scan.stdout).toContain(key.publicKey);
    await expect(greeting(local.address, local.port)).rejects.toThrow("ECONNREFUSED");
  });
});

describe("a set-up below a path with a blank", () => {
  it("has its shell in the sandbox of builds, and its Nix in the container, all the same", async () => {
    const cache = mkdtempSync(`${tmpdir()}/fleet cache-`);
    const bin = `${cache}/nix-builder-fleet/bin`;
    mkdirSync(bin, { recursive: true });
    const shell = `${bin}/busybox-${kernelArch(system)}`;
    const tools = findLocalTools(system);
    copyFileSync(tools.shell, shell);
    for (const program of [tools.nixDaemon, tools.nixStore])
      writeFileSync(`${bin}/${basename(program)}`, `#!/bin/sh\nexec ${program} "$@"\n`, { mode: 0o755 });
    vi.stubEnv("XDG_CACHE_HOME", cache);
    onTestFinished(() => {
      vi.unstubAllEnvs();
      rmSync(cache, { recursive: true });
    });
    expect(findLocalTools(system)).toMatchObject({ shell, nix: bin });
    const fleet = await LocalFleet.start({ alias: "t-a" });
    onTestFinished(() => fleet.stop());
    const { exitCode, all } = await fleet.nixBuild(
      `derivation { name = "blank"; system = "${system}"; builder = "/bin/sh"; args = [ "-c" "echo built > $out" ]; }`,
    );
    expect(exitCode, all).toBe(0);
  });
});

describe("a builder's sshd", () => {
  it("has nothing of the deployment's environment that it doesn't need, such as passphrases", async () => {
    // sshd overwrites what /proc shows of its environment: a program in its place says what it was started with.
    const folder = mkdtempSync(`${tmpdir()}/fleet-sshd-`);
    const sshd = findLocalTools(system).sshd;
    writeFileSync(`${folder}/sshd`, `#!/bin/sh\nenv > ${folder}/environment\nexec ${sshd} "$@"\n`, { mode: 0o755 });
    vi.stubEnv("PATH", `${folder}:${process.env["PATH"] ?? ""}`);
    vi.stubEnv("PULUMI_CONFIG_PASSPHRASE", "open sesame");
    onTestFinished(() => {
      vi.unstubAllEnvs();
      rmSync(folder, { recursive: true });
    });
    const fleet = await LocalFleet.start({ alias: "t-a" });
    onTestFinished(() => fleet.stop());
    const variables = readFileSync(`${folder}/environment`, "utf8").trimEnd().split("\n");
    const names = variables.map((line) => line.slice(0, line.indexOf("=")));
    expect(names).toContain("PATH");
    // The last three are the shell's own.
    const allowed = ["PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "PWD", "SHLVL", "_"];
    expect(names.filter((name) => !allowed.includes(name))).toEqual([]);
  });
});

describe("a session", () => {
  it("takes nothing into the container of what sshd has told it", async () => {
    const folder = mkdtempSync(`${tmpdir()}/fleet-nsenter-`);
    const { nsenter } = findLocalTools(system).container;
    writeFileSync(`${folder}/nsenter`, `#!/bin/sh\nenv > ${folder}/environment\nexec ${nsenter} "$@"\n`, {
      mode: 0o755,
    });
    vi.stubEnv("PATH", `${folder}:${process.env["PATH"] ?? ""}`);
    onTestFinished(() => {
      vi.unstubAllEnvs();
      rmSync(folder, { recursive: true });
    });
    const fleet = await LocalFleet.start({ alias: "t-a" });
    onTestFinished(() => fleet.stop());
    rmSync(`${folder}/environment`, { force: true });
    const { exitCode, all } = await fleet.nixBuild(
      `derivation { name = "session"; system = "${system}"; builder = "/bin/sh"; args = [ "-c" "echo built > $out" ]; }`,
    );
    expect(exitCode, all).toBe(0);
    const variables = readFileSync(`${folder}/environment`, "utf8");
    expect(variables).toContain("NIX_REMOTE=unix://");
    expect(variables).not.toMatch(/^(SSH_|HOME|USER|LOGNAME|SHELL|MAIL)/m);
  });
});

const { shell } = userInfo();
const isBash = shell?.endsWith("/bash") === true;
if (!isBash) console.log(`skipped: what ~/.bashrc prints. The login shell is ${String(shell)}, which doesn't read it`);

describe.runIf(isBash)("an account whose ~/.bashrc prints something", () => {
  it("carries a builder all the same", async () => {
    const fleet = await LocalFleet.start({ alias: "t-a" });
    onTestFinished(() => fleet.stop());
    writeFileSync(`${fleet.directory}/.bashrc`, "echo hello\n");
    const { directory, address, port } = fleet.builder("t-a").local;
    const config = `${directory}/sshd_config`;
    const ping = async (setEnv: string) => {
      writeFileSync(config, readFileSync(config, "utf8").replace(/^SetEnv .*/m, setEnv));
      await stopProcesses([`-f ${config}`]);
      execFileSync("/usr/sbin/sshd", ["-f", config, "-o", `ListenAddress=${address}:${port}`]);
      const env = clientEnvironment({ clientDirectory: fleet.clientDirectory, store: `${fleet.directory}/store` });
      const words = ["store", "ping", "--store", storeUri(fleet.builder("t-a").machine)];
      return execa("nix", words, { env, all: true, reject: false, timeout: 20_000 });
    };
    const own = /^SetEnv .*/m.exec(readFileSync(config, "utf8"))?.[0] ?? "";
    const { exitCode, all } = await ping(`${own} HOME=${fleet.directory}`);
    expect(exitCode, all).toBe(0);
    // It would be read otherwise.
    expect((await ping(`SetEnv HOME=${fleet.directory}`)).exitCode).not.toBe(0);
  });
});

describe("the generation of a builder", () => {
  it("is a new one when it doesn't run, runs without the emulation that it needs, or is gone with its folder", async () => {
    const fleet = await LocalFleet.start({ alias: "t-a" });
    onTestFinished(() => fleet.stop());
    const { directory } = fleet.builder("t-a").local;
    const foreign = systems.find((one) => one !== system) ?? system;
    const owner = `test-${process.pid}`;
    expect(machineGeneration(directory)).toBe("1");
    if (emulation(owner, foreign) === "none") {
      expect(Number(machineGeneration(directory, { owner, system: foreign }))).toBeGreaterThan(1);
    }
    await fleet.kill("t-a");
    expect(Number(machineGeneration(directory))).toBeGreaterThan(1);
    removeTree(directory);
    expect(Number(machineGeneration(directory))).toBeGreaterThan(1);
  });
});

/** A start that ends when everything but Nix's configuration is written. */
async function cutOff(machine: LocalMachine): Promise<void> {
  const last = `${machine.directory}/conf/nix.conf`;
  rmSync(last);
  mkdirSync(last);
  await expect(startMachine(machine, "cut off")).rejects.toThrow("EISDIR");
  rmdirSync(last);
}

function greeting(host: string, port: number): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host, port });
    socket.once("error", reject);
    socket.once("data", (data: Buffer) => {
      socket.destroy();
      resolve(String(data));
    });
  });
}

describe("a builder that runs a current Nix", () => {
  it("builds for a client that it doesn't trust, and says that it doesn't", async ({ skip }) => {
    const found = findCurrentNix();
    skip("missing" in found, "missing" in found ? found.missing : "");
    vi.stubEnv("PATH", `${"bin" in found ? found.bin : ""}:${process.env["PATH"] ?? ""}`);
    const fleet = await LocalFleet.start({ alias: "t-a" });
    onTestFinished(async () => {
      await fleet.stop();
      vi.unstubAllEnvs();
    });
    await startMachine(
      { ...fleet.builder("t-a").local, clients: [{ publicKey: fleet.client.publicKey, trust: "none" }] },
      "2",
    );
    const { exitCode, all } = await fleet.nixBuild(
      `derivation { name = "untrusted"; system = "${system}"; builder = "/bin/sh"; args = [ "-c" "echo built > $out" ]; }`,
    );
    expect(exitCode, all).toBe(0);
    const env = clientEnvironment({ clientDirectory: fleet.clientDirectory, store: `${fleet.directory}/store` });
    const words = ["store", "info", "--store", storeUri(fleet.builder("t-a").machine)];
    expect((await execa("nix", words, { env, all: true, reject: false })).all).toContain("Trusted: 0");
  });
});

describe("a start that goes on though its deployment was killed", () => {
  /** Stands for one: the builder's folder names it as the process that starts the builder. */
  function leftStart({ local }: { readonly local: LocalMachine }): ChildProcess {
    const left = spawn("sleep", ["300"], { stdio: "ignore" });
    onTestFinished(() => void left.kill("SIGKILL"));
    const started = statOf(left.pid ?? 0)?.started ?? "";
    mkdirSync(local.directory, { recursive: true });
    writeFileSync(`${local.directory}/starting`, `${left.pid ?? ""} ${started}`);
    return left;
  }

  it.each(["started again", "removed", "swept away with its stack"])(
    "is ended before the builder is %s",
    async (what) => {
      const fleet = await LocalFleet.start({ alias: "t-a" });
      onTestFinished(() => fleet.stop());
      const builder = fleet.builder("t-a");
      const left = leftStart(builder);
      const ended = once(left, "exit");
      if (what === "started again") await startMachine(builder.local, "2");
      else if (what === "removed") await removeMachine(builder.local.directory);
      else await sweep(fleet.directory, "nobody");
      expect((await ended)[1]).toBe("SIGKILL");
      if (what === "started again") expect(await greeting(builder.local.address, builder.local.port)).toMatch(/^SSH/);
      else expect(existsSync(builder.local.directory)).toBe(false);
    },
  );

  it("is told from another process that has its pid by now", async () => {
    const fleet = await LocalFleet.start({ alias: "t-a" });
    onTestFinished(() => fleet.stop());
    const other = leftStart(fleet.builder("t-a"));
    writeFileSync(`${fleet.builder("t-a").local.directory}/starting`, `${other.pid ?? ""} 1`);
    await startMachine(fleet.builder("t-a").local, "2");
    expect([other.exitCode, other.signalCode]).toEqual([null, null]);
  });
});
