/** Faults survived, on real local builders. `npm run test:faults` prints what happened as a table. */
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { execa } from "execa";
import { afterAll, afterEach, beforeEach, describe, expect, it, onTestFinished, vi } from "vitest";
import { runAroundLostBuilders } from "../../src/cli/nix.ts";
import { clientEnvironment } from "../../src/client/environment.ts";
import { nixVersion } from "../../src/client/settings.ts";
import { examineBuilder } from "../../src/doctor/builder.ts";
import { explainFailure } from "../../src/smoke/failure.ts";
import { runSmokeTest } from "../../src/smoke/smokeTest.ts";
import { startMachine } from "../../src/local/machine.ts";
import { storeUri } from "../../src/nix/machinesFile.ts";
import { oldestForUntrustedRows } from "../../src/nix/trust.ts";
import { isAtLeast } from "../../src/nix/version.ts";
import { processesNaming } from "../support/engine.ts";
import { FaultyProxy } from "../support/faultyProxy.ts";
import { newSigningKey } from "../support/signingKey.ts";
import { keyPair, LocalFleet, system } from "../support/localFleet.ts";

const survived: [fault: string, happened: string][] = [];

let fleet: LocalFleet;
let started = 0;

vi.setConfig({ testTimeout: 90_000 });

beforeEach(async () => {
  // a is always picked first, b is there for when it is gone.
  fleet = await LocalFleet.start({ alias: "t-a", speedFactor: 2 }, { alias: "t-b" });
  started = Date.now();
});
afterEach(() => fleet.stop());
afterAll(() => {
  const width = Math.max(...survived.map(([fault]) => fault.length));
  console.log(["", ...survived.map(([fault, happened]) => `${fault.padEnd(width)}  ${happened}`), ""].join("\n"));
});

/** A line of the table. */
function record(fault: string, happened: string): void {
  survived.push([fault, `${happened} (${((Date.now() - started) / 1000).toFixed(1)} s)`]);
}

/** What Nix or ssh printed holds this symptom, and docs/troubleshooting.md has an entry for it. */
function symptom(output: string, text: string): void {
  expect(output).toContain(text);
  expect(documented()).toContain(text);
}

const documented = (): string[] =>
  // Those of Nix and ssh; what `up` says is tested where it is said.
  [
    ...readFileSync("docs/troubleshooting.md", "utf8")
      .replace(/^## Messages of `up`$.*/ms, "")
      .matchAll(/^### `(.*)`$/gm),
  ].map(([, text]) => text ?? "");

let count = 0;

/** A derivation that is new each time. */
function derivation(script: string, attributes = ""): string {
  count += 1;
  const name = `fault-${process.pid}-${Date.now()}-${count}`;
  return `derivation { name = "${name}"; system = "${system}"; builder = "/bin/sh"; args = [ "-c" "${script}" ]; ${attributes} }`;
}

/** Only this builder's row of the emitted file. */
function only(alias: string): string[] {
  const rows = readFileSync(`${fleet.clientDirectory}/machines`, "utf8").split("\n");
  return ["--builders", rows.find((row) => row.includes(`@${alias} `)) ?? ""];
}

/** Resolves when a build says so that it runs on a builder. */
function running(build: ReturnType<LocalFleet["nixBuild"]>, alias: string): Promise<void> {
  return new Promise((resolve, reject) => {
    let said = "";
    build.all.on("data", (data: Buffer) => {
      said += data.toString();
      if (said.includes(`@${alias}'...`)) resolve();
    });
    build.all.once("end", () => {
      reject(new Error(`the build never ran on ${alias}: ${said}`));
    });
  });
}

const has = (alias: string, storePath: string): boolean =>
  existsSync(`${fleet.builder(alias).local.directory}/root${storePath}`);

const seconds = (): number => (Date.now() - started) / 1000;

/** Rewrites the time limits of the client's ssh_config, so that the test needn't wait for the real ones. */
function shortenLimits(): void {
  const path = `${fleet.clientDirectory}/ssh_config`;
  const text = readFileSync(path, "utf8")
    .replaceAll(/ConnectTimeout \d+/g, "ConnectTimeout 2")
    .replaceAll(/ServerAliveInterval \d+/g, "ServerAliveInterval 1")
    .replaceAll(/ServerAliveCountMax \d+/g, "ServerAliveCountMax 2");
  expect(text).toContain("ConnectTimeout 2");
  expect(text).toContain("ServerAliveCountMax 2");
  writeFileSync(path, text);
}

describe("a builder that goes away", () => {
  it("in mid-build: Nix fails in bounded time and names it", async () => {
    const build = fleet.nixBuild(derivation("sleep 60; echo > $out"));
    await running(build, "t-a");
    await fleet.kill("t-a");
    const result = await build;
    expect(result.failed).toBe(true);
    expect(result.timedOut).toBe(false);
    expect(result.all).toContain("t-a");
    symptom(result.all, "unexpected end-of-file");
    expect(seconds()).toBeLessThan(30);
    record("killed in mid-build, plain nix-build", "fails and names the builder");
  });

  it("in mid-build: `fleet build` says so and finishes on the other builder", async () => {
    const expression = derivation("sleep 3; echo > $out");
    const { clientDirectory } = fleet;
    const env = clientEnvironment({ clientDirectory, store: `${fleet.directory}/store` });
    const machines = fleet.builders.map(({ machine }) => machine);
    const words = ["-E", expression, "--no-out-link", "--option", "substituters", ""];
    const run = runAroundLostBuilders({ program: "nix-build", words, env, clientDirectory, machines });
    const onA = `${fleet.builder("t-a").local.directory}/root/nix/store`;
    await expect
      .poll(() => existsSync(onA) && processesNaming(`root=${fleet.builder("t-a").local.directory}`).length, {
        timeout: 20_000,
      })
      .toBeTruthy();
    await fleet.kill("t-a");
    expect(await run).toBe(0);
    const built = await fleet.nixBuild(expression);
    expect(has("t-b", built.stdout.trim())).toBe(true);
    record("killed in mid-build, npx fleet build", "finishes on the other builder");
  });

  it("before the build: is skipped", async () => {
    await fleet.kill("t-a");
    const result = await fleet.nixBuild(derivation("echo > $out"));
    expect(result.failed, result.all).toBe(false);
    symptom(result.all, "Connection refused");
    expect(has("t-b", result.stdout.trim())).toBe(true);
    expect(seconds()).toBeLessThan(15);
    record("down before the build", "skipped, built on the other builder");
  });

  it("and comes back with the same keys: needs no change on the client", async () => {
    expect((await fleet.nixBuild(derivation("echo > $out"), only("t-a"))).failed).toBe(false);
    await fleet.kill("t-a");
    await fleet.restart("t-a");
    const result = await fleet.nixBuild(derivation("echo > $out"), only("t-a"));
    expect(result.failed, result.all).toBe(false);
    record("restarted, same keys", "the next build works");
  });
});

describe("a network that swallows everything", () => {
  async function behindProxy(): Promise<FaultyProxy> {
    const [a, b] = fleet.builders.map(({ machine }) => machine);
    if (a === undefined || b === undefined) throw new Error("two builders are needed");
    const proxy = await FaultyProxy.to(a.hostName, a.port);
    onTestFinished(() => proxy.stop());
    fleet.writeClient([{ ...a, hostName: "127.0.0.1", port: proxy.port }, b]);
    shortenLimits();
    return proxy;
  }

  it("from the start: ends within the connect timeout, and the other builder builds", async () => {
    const proxy = await behindProxy();
    proxy.fallSilent();
    const alone = await fleet.nixBuild(derivation("echo > $out"), only("t-a"));
    expect(alone.failed).toBe(true);
    expect(explainFailure(alone.all, "client").reason).toContain("over the network");
    symptom(alone.all, "Connection timed out during banner exchange");
    symptom(alone.all, "unable to start any build");
    const result = await fleet.nixBuild(derivation("echo > $out"));
    expect(result.failed, result.all).toBe(false);
    expect(has("t-b", result.stdout.trim())).toBe(true);
    expect(proxy.connections).toBeGreaterThan(0);
    expect(seconds()).toBeLessThan(20);
    record("half-open from the start (limits shortened)", "given up at the connect timeout, built elsewhere");
  });

  it("in mid-build: ends within the keepalive limit with a clear error", async () => {
    const proxy = await behindProxy();
    const build = fleet.nixBuild(derivation("sleep 60; echo > $out"), only("t-a"));
    await running(build, "t-a");
    proxy.fallSilent();
    const result = await build;
    expect(result.failed).toBe(true);
    expect(result.timedOut).toBe(false);
    expect(result.all).toMatch(/t-a|Timeout, server .* not responding/);
    expect(seconds()).toBeLessThan(30);
    record("half-open in mid-build (limits shortened)", "fails at the keepalive limit");
  });
});

it("sshd up, Nix broken: neither verified nor well", async () => {
  const { machine, local } = fleet.builder("t-a");
  const path = `${local.directory}/nix-ssh`;
  writeFileSync(path, readFileSync(path, "utf8").replaceAll(/exec env/g, "exec /nonexistent"));
  const plain = await fleet.nixBuild(derivation("echo > $out"), only("t-a"));
  symptom(plain.all, "cannot open connection to remote store");
  const { clientDirectory } = fleet;
  const test = {
    alias: "t-a",
    clientDirectory,
    level: "quick",
    bootId: undefined,
    ownMachine: true,
    timeout: 2,
  } as const;
  await expect(runSmokeTest(test)).rejects.toThrow("no Nix answers behind it");
  const findings = await examineBuilder({
    name: "a",
    machine,
    clientDirectory,
    administration: undefined,
    clientNix: await nixVersion(),
  });
  expect(findings.find(({ severity }) => severity === "error")?.check).toBe("Nix daemon");
  record("sshd up, Nix broken", "not verified; the doctor names it");
});

it("a full disk: named, others go on, space comes back", async ({ skip }) => {
  skip(process.getuid?.() !== 0, "only root may mount the small disk that it is about");
  const root = `${fleet.builder("t-a").local.directory}/root`;
  // Its container sees what is mounted when it starts.
  await fleet.kill("t-a");
  execFileSync("mount", ["-t", "tmpfs", "-o", "size=24m", "tmpfs", root]);
  try {
    await fleet.restart("t-a");
    const big = derivation(
      "while echo 0123456789012345678901234567890123456789012345678901234567890123; do :; done > $out; exit 1",
    );
    const full = await fleet.nixBuild(big, only("t-a"));
    expect(full.failed).toBe(true);
    expect(full.all).toContain("t-a");
    expect(explainFailure(full.all, "client").reason).toContain("disk is full");
    symptom(full.all, "No space left on device");
    expect((await fleet.nixBuild(derivation("echo > $out"), only("t-b"))).failed).toBe(false);
    const { clientDirectory } = fleet;
    await execa("nix-store", ["--gc", "--store", storeUri(fleet.builder("t-a").machine)], {
      env: clientEnvironment({ clientDirectory, store: `${fleet.directory}/store` }),
    });
    const after = await fleet.nixBuild(derivation("echo > $out"), only("t-a"));
    expect(after.failed, after.all).toBe(false);
    record("disk full", "named; other builders go on; builds again after a GC");
  } finally {
    // Before the fleet is stopped, which couldn't remove a mount point.
    await fleet.kill("t-a");
    execFileSync("umount", [root]);
  }
});

describe("keys that don't fit", () => {
  const other = () => keyPair(fleet.directory);
  const base64 = (line: string): string => Buffer.from(line).toString("base64");

  it("another host key: refused in words, nothing sent", async () => {
    const [a, b] = fleet.builders.map(({ machine }) => machine);
    if (a === undefined || b === undefined) throw new Error("two builders are needed");
    fleet.writeClient([{ ...a, publicHostKey: base64(other().publicKey) }, b]);
    const result = await fleet.nixBuild(derivation("echo > $out"), only("t-a"));
    expect(result.failed).toBe(true);
    expect(explainFailure(result.all, "client").reason).toContain("another host key");
    symptom(result.all, "Host key verification failed");
    expect(existsSync(`${fleet.builder("t-a").local.directory}/root/nix/store`)).toBe(false);
    record("wrong host key", "refused in words, nothing sent");
  });

  it("another client key: refused in words", async () => {
    fleet.writeClient(undefined, other().privateKey);
    const result = await fleet.nixBuild(derivation("echo > $out"), only("t-a"));
    expect(result.failed).toBe(true);
    expect(explainFailure(result.all, "client").reason).toContain("refuses the key");
    symptom(result.all, "Permission denied (publickey)");
    record("wrong client key", "refused in words");
  });

  it("column 8 says otherwise: refused, nothing sent", async () => {
    const row = only("t-a").at(1)?.split(" ").with(7, base64(other().publicKey)).join(" ") ?? "";
    const result = await fleet.nixBuild(derivation("echo > $out"), ["--builders", row]);
    expect(result.failed).toBe(true);
    expect(explainFailure(result.all, "client").reason).toContain("another host key");
    expect(existsSync(`${fleet.builder("t-a").local.directory}/root/nix/store`)).toBe(false);
    record("wrong column 8", "refused in words, nothing sent");
  });
});

describe("what looks like a fault and is none", () => {
  it("a feature that no builder has: said by Nix as a table of builders", async () => {
    const result = await fleet.nixBuild(derivation("echo > $out", 'requiredSystemFeatures = [ "nixos-test" ];'));
    expect(result.failed).toBe(true);
    symptom(result.all, "Failed to find a machine for remote build!");
    record("a feature that no builder has", "refused by Nix; `fleet explain` names the feature");
  });

  it("ssh by hand: refused by the forced command", async () => {
    const words = ["-F", `${fleet.clientDirectory}/ssh_config`, "t-a", "uname"];
    const result = await execa("ssh", words, { all: true, reject: false, stdin: "ignore" });
    expect(result.exitCode).toBe(1);
    symptom(result.all, "this key may only speak the Nix store protocols; refused");
    record("ssh by hand", "refused by the forced command");
  });

  it("every symptom in docs/troubleshooting.md is one that a test produces", () => {
    const tests = readdirSync("test", { recursive: true, encoding: "utf8" }).filter((name) =>
      name.endsWith(".test.ts"),
    );
    const source = tests.map((name) => readFileSync(`test/${name}`, "utf8")).join("\n");
    // Where a message holds what differs, `…` stands for it.
    expect(documented().filter((text) => !source.includes(text.replace(/\W*…\W*$/, "")))).toEqual([]);
    expect(documented().length).toBeGreaterThan(8);
  });
});

it("a client that isn't trusted: what its Nix is too old for, and what it alone has, are refused in words", async ({
  skip,
}) => {
  skip(
    isAtLeast(await nixVersion(), oldestForUntrustedRows),
    "this machine's Nix is new enough for rows of such a client",
  );
  const { machine, local } = fleet.builder("t-a");
  const clients = [{ publicKey: fleet.client.publicKey, trust: "none" }] as const;
  // Nix takes its own signatures, and all builders of a test's fleet have one key.
  const { secretKey: signingKey } = newSigningKey("another");
  await startMachine({ ...local, clients, trustedPublicKeys: [], signingKey }, "3");
  const row = await fleet.nixBuild(derivation("echo > $out"), only("t-a"));
  expect(row.failed).toBe(true);
  symptom(row.all, "you are not privileged to build input-addressed derivations");
  const built = await fleet.nixBuild(derivation("echo > $out"), only("t-b"));
  const copy = await execa("nix", ["copy", "--to", storeUri(machine), built.stdout.trim()], {
    env: clientEnvironment({ clientDirectory: fleet.clientDirectory, store: `${fleet.directory}/store` }),
    all: true,
    reject: false,
  });
  expect(copy.failed).toBe(true);
  // A current Nix: "lacks a signature by a trusted key".
  expect(copy.all).toContain("lacks a valid signature");
  record("a client that isn't trusted", "refused in words");
});

it("200 derivations, four builders with two slots each, three clients at once", { timeout: 300_000 }, async () => {
  const four = await LocalFleet.start(...["c", "d", "e", "f"].map((name) => ({ alias: `t-${name}` })));
  onTestFinished(() => four.stop());
  const script = "read -r start x < /proc/uptime; sleep 1; read -r end x < /proc/uptime; echo $start $end > $out";
  const perClient = [67, 67, 66];
  const results = await Promise.all(
    perClient.map((many, client) => {
      const clientDirectory = `${four.directory}/client-${client}`;
      four.writeClient(undefined, undefined, clientDirectory);
      const all = Array.from({ length: many }, () => `(${derivation(script)})`).join("\n");
      return four.nixBuild(`[ ${all} ]`, ["-j0"], `store-${client}`, clientDirectory);
    }),
  );
  results.forEach((result, client) => {
    expect(result.failed, result.all).toBe(false);
    const paths = result.stdout.split("\n").filter((line) => line.startsWith("/nix/store/"));
    expect(paths).toHaveLength(perClient[client] ?? 0);
    for (const { local, machine } of four.builders) {
      const times = paths
        .filter((path) => existsSync(`${local.directory}/root${path}`))
        .map((path) => four.read(path, `store-${client}`).trim().split(" ").map(Number));
      const atOnce = times.map(([at = 0]) => times.filter(([start = 0, end = 0]) => start <= at && at < end).length);
      expect(Math.max(0, ...atOnce)).toBeLessThanOrEqual(machine.maxJobs);
    }
    expect(result.all).not.toMatch(/Connection (closed|reset)|dropped/);
  });
  const used = four.builders.filter(({ local }) => existsSync(`${local.directory}/root/nix/store`)).length;
  expect(used).toBe(4);
  // Sessions end with their build; what stays is each client's shared connection.
  const sessions = () =>
    four.builders
      .flatMap(({ local }) => processesNaming(`root=${local.directory}/root`))
      // The daemon itself, which waits for the next one.
      .filter((process) => !process.includes("--store local?root="));
  await expect.poll(sessions, { timeout: 10_000 }).toEqual([]);
  record("200 derivations, 4 builders × 2 slots, 3 clients", "all built, no client above its slots, nothing left over");
});

describe("another version of Nix", () => {
  const other = process.env["FLEET_OTHER_NIX"];
  const reason = "needs a folder with another Nix's programs in FLEET_OTHER_NIX";
  const otherVersion = () => execFileSync(`${other ?? ""}/nix`, ["--version"], { encoding: "utf8" }).trim();

  it("on the client", async ({ skip }) => {
    skip(other === undefined, reason);
    const env = clientEnvironment({ clientDirectory: fleet.clientDirectory, store: `${fleet.directory}/other` });
    const words = ["-E", derivation("echo > $out"), "--no-out-link", "--option", "substituters", ""];
    const options = {
      env: { ...env, PATH: `${other ?? ""}:${process.env["PATH"] ?? ""}` },
      all: true,
      reject: false,
    } as const;
    const result = await execa("nix-build", words, options);
    expect(result.failed, result.all).toBe(false);
    expect(has("t-a", result.stdout.trim())).toBe(true);
    record(`client ${otherVersion()}, builder ${await nixVersion()}`, "builds");
  });

  it("on the builder", async ({ skip }) => {
    skip(other === undefined, reason);
    vi.stubEnv("PATH", `${other ?? ""}:${process.env["PATH"] ?? ""}`);
    const theirs = await LocalFleet.start({ alias: "t-g" });
    onTestFinished(() => theirs.stop());
    vi.unstubAllEnvs();
    expect(readFileSync(`${theirs.builder("t-g").local.directory}/nix-ssh`, "utf8")).toContain(
      `'${other ?? ""}/nix-daemon'`,
    );
    const result = await theirs.nixBuild(derivation("echo > $out"));
    expect(result.failed, result.all).toBe(false);
    record(`client ${await nixVersion()}, builder ${otherVersion()}`, "builds");
  });
});
