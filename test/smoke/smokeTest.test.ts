/** The smoke test against real builders: sound ones, and ones with a hole or a lie each. */
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer, type AddressInfo } from "node:net";
import { userInfo } from "node:os";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { protocols } from "../../src/nix/buildMachine.ts";
import { kernelArch } from "../../src/nix/system.ts";
import { parseBuiltBy, smokeExpression } from "../../src/smoke/derivation.ts";
import { explainFailure } from "../../src/smoke/failure.ts";
import { clockOffset, contradiction, roundTrip, runSmokeTest, type SmokeTest } from "../../src/smoke/smokeTest.ts";
import { tryRefusals } from "../../src/smoke/refusals.ts";
import type { CaseResult } from "../../src/smoke/verdict.ts";
import { keyPair, LocalFleet, system } from "../support/localFleet.ts";

let fleet: LocalFleet;
let test: SmokeTest;

beforeAll(async () => {
  fleet = await LocalFleet.start({ alias: "t-a" }, { alias: "t-b" });
  test = {
    alias: "t-a",
    clientDirectory: fleet.clientDirectory,
    level: "quick",
    bootId: readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim(),
    ownMachine: true,
    timeout: 30,
  };
});
afterAll(() => fleet.stop());

/** Changes a file of builder t-a until the test is over. */
function change(name: string, edit: (text: string) => string): void {
  const path = `${fleet.builder("t-a").local.directory}/${name}`;
  const before = readFileSync(path, "utf8");
  writeFileSync(path, edit(before));
  onTestFinished(() => {
    writeFileSync(path, before);
  });
}

describe("a quick test", () => {
  it("verifies a builder that builds, and says what it is like", async () => {
    const verdict = await runSmokeTest(test);
    expect(verdict).toMatchObject({ verified: true, alias: "t-a", level: "quick", system, arch: kernelArch(system) });
    expect(verdict).toMatchObject({ sandboxed: true, clockOffset: 0 });
    expect(verdict.storePath).toMatch(/^\/nix\/store\/\w{32}-fleet-smoke-[0-9a-f]{16}$/);
    // It is on this machine.
    expect(verdict).not.toHaveProperty("roundTrip");
    expect(verdict.cases.map(({ outcome }) => outcome)).toEqual(["passed"]);
  });

  it("measures the round trip to a builder elsewhere", async () => {
    const server = createServer().listen(0, "127.0.0.1");
    await once(server, "listening");
    onTestFinished(() => void server.close());
    const { port } = server.address() as AddressInfo;
    expect(await roundTrip({ hostName: "127.0.0.1", port })).toBeLessThan(1000);
  });

  it("builds something else each time", async () => {
    const [first, second] = [await runSmokeTest(test), await runSmokeTest(test)];
    expect(first.storePath).not.toBe(second.storePath);
  });

  it("logs in with the key that the files hold, though a connection with an earlier one is open", async () => {
    await fleet.nixBuild(
      `derivation { name = "x"; system = "${system}"; builder = "/bin/sh"; args = [ "-c" "echo > $out" ]; }`,
    );
    fleet.writeClient(undefined, keyPair(fleet.directory).privateKey);
    onTestFinished(() => {
      fleet.writeClient();
    });
    await expect(runSmokeTest(test)).rejects.toThrow("it refuses the key");
  });

  it("shows what the login prints where Nix should answer, and the remedy works", async ({ skip }) => {
    skip(!userInfo().shell?.endsWith("/bash"), "needs a login shell that reads ~/.bashrc");
    const home = `${fleet.directory}/home`;
    mkdirSync(home);
    // As an existing host has it, whose sshd keeps no shell from reading it.
    change("sshd_config", (text) => text.replace("SetEnv SHLVL=1", `SetEnv HOME=${home}`));
    process.kill(fleet.sshd("t-a"), "SIGHUP");
    onTestFinished(async () => {
      await fleet.kill("t-a");
      await fleet.restart("t-a");
    });
    const prints = "echo 'Welcome to the machine'; printf '\\033[2JThe last backup is of today\\n'\n";
    writeFileSync(`${home}/.bashrc`, prints);
    for (const protocol of protocols) {
      const { machine } = fleet.builder("t-a");
      fleet.writeClient([{ ...machine, protocol }]);
      onTestFinished(() => {
        fleet.writeClient();
      });
      const reason = await runSmokeTest(test).catch((error: unknown) => (error as Error).message);
      expect(reason).toContain("~/.bashrc");
      expect(reason).toMatch(/It printed:\n {2}\| Welcome to the machine\n {2}\| The last backup is of today\.?$/);
    }
    const [, remedy] = /`(\[\[ .*?)`/.exec(explainFailure("protocol mismatch, got 'x'", "client").reason) ?? [];
    writeFileSync(`${home}/.bashrc`, `${remedy ?? ""}\n${prints}`);
    expect(await runSmokeTest(test)).toMatchObject({ verified: true });
  });

  it("says what to do about a builder's own key that isn't accepted, and that works", async () => {
    const sshKey = `${fleet.directory}/own-key`;
    const { privateKey } = keyPair(fleet.directory);
    writeFileSync(sshKey, privateKey, { mode: 0o600 });
    const { machine } = fleet.builder("t-a");
    fleet.writeClient([{ ...machine, sshKey }]);
    onTestFinished(() => {
      fleet.writeClient();
    });
    const reason = await runSmokeTest(test).catch((error: unknown) => (error as Error).message);
    expect(reason).toContain(`it refuses the key ${sshKey} (\`sshKey\`)`);
    expect(reason).not.toContain("clientPublicKey");
    const [, command = "false"] = /`(ssh-keygen .*?)`/.exec(typeof reason === "string" ? reason : "") ?? [];
    const publicKey = execFileSync("sh", ["-c", command], { encoding: "utf8" });
    change("authorized_keys", (text) => `${text}${text.split("\n")[0]?.replace(/ssh-ed25519 .*/, publicKey) ?? ""}`);
    expect(await runSmokeTest(test)).toMatchObject({ verified: true });
  });

  it("does not take another machine's word for it", async () => {
    await expect(runSmokeTest({ ...test, bootId: "another" })).rejects.toThrow("another machine built it");
  });

  it("does not verify a builder without a sandbox", () => {
    // A local builder's Nix can't do without one: its store isn't where builds see it.
    const { machine } = fleet.builder("t-a");
    const builtBy = { nonce: "n", bootId: "b", arch: kernelArch(system), sandboxed: true, clock: 0, kvm: false };
    const judge = (sandboxed: boolean) =>
      contradiction({ bootId: "b" }, machine, system, { ...builtBy, sandboxed }, { nonce: "n" });
    expect(judge(true)).toBeUndefined();
    expect(judge(false)).toContain("without a sandbox");
    expect(parseBuiltBy(`n b ${kernelArch(system)} /tmp/nix-build-x 4711 0 -`).sandboxed).toBe(false);
  });

  it("does not verify a kvm that builds can't open", async () => {
    const { machine } = fleet.builder("t-a");
    fleet.writeClient([{ ...machine, supportedFeatures: ["kvm"] }]);
    onTestFinished(() => {
      fleet.writeClient();
    });
    // Its Nix doesn't have the feature, so it shows no /dev/kvm to builds.
    await expect(runSmokeTest(test)).rejects.toThrow("can't open /dev/kvm");
  });

  it("does not verify a builder for another system than it says", async () => {
    const { machine } = fleet.builder("t-a");
    fleet.writeClient([{ ...machine, systems: ["riscv64-linux"] }]);
    onTestFinished(() => {
      fleet.writeClient();
    });
    await expect(runSmokeTest(test)).rejects.toThrow("check `system` and `supportedFeatures`");
  });

  it("says so when the emitted files don't hold the builder", async () => {
    await expect(runSmokeTest({ ...test, alias: "t-c" })).rejects.toThrow("has no row for t-c");
  });

  it("gives up at its time limit when nothing answers, with the reason", async () => {
    const { machine } = fleet.builder("t-a");
    const clientDirectory = `${fleet.directory}/elsewhere`;
    fleet.writeClient([{ ...machine, port: 2300 }], undefined, clientDirectory);
    const started = Date.now();
    await expect(runSmokeTest({ ...test, clientDirectory, timeout: 2 })).rejects.toThrow("nothing listens");
    expect(Date.now() - started).toBeLessThan(10_000);
  });
});

/** The test's builders trust their client: what that opens is `privileges.test.ts`'s. */
const ofTrust = ({ detail = "" }: CaseResult): boolean => /^open(:|, as configured)/.test(detail);

describe("the full matrix", () => {
  it("passes on a sound builder: every kind of build, and every refusal", { timeout: 120_000 }, async () => {
    const { cases, mebibytesPerSecond } = await runSmokeTest({ ...test, level: "full", trust: "full" });
    const others = cases.filter((one) => !ofTrust(one));
    expect(others.length).toBeLessThan(cases.length);
    expect(others.filter(({ outcome }) => outcome !== "passed" && outcome !== "skipped")).toEqual([]);
    expect(mebibytesPerSecond).toBeGreaterThan(1);
    const names = cases.map(({ name }) => name);
    for (const name of [
      "what it built is on it and on no other builder",
      `ssh-ng, ${system}, feature big-parallel`,
      `ssh, ${system}`,
      "inputs: a file of the client and another build",
      "large output: 64 MiB",
      "two at once",
      "failing build: its log comes back",
      "fixed output",
      "refuses a shell",
      "refuses passwords",
      "is refused with another host key",
    ]) {
      expect(names).toContain(name);
    }
  });

  it(
    "passes on somebody's own machine that speaks its protocol only, whatever it is asked",
    { timeout: 120_000 },
    async () => {
      // As `restrict,command="nix-daemon --stdio"` in authorized_keys does it, which docs/configuration.md recommends.
      change("nix-ssh", (text) => text.replace('"nix-daemon --stdio") exec', "*) exec"));
      const { cases } = await runSmokeTest({ ...test, level: "full", ownMachine: false });
      const others = cases.filter((one) => !ofTrust(one));
      expect(others.filter(({ outcome }) => outcome !== "passed" && outcome !== "skipped")).toEqual([]);
      expect(cases.map(({ name }) => name)).not.toContain(`ssh, ${system}`);
    },
  );

  it("names every hole of a builder that lets the client's key do more", { timeout: 120_000 }, async () => {
    change("authorized_keys", (text) => text.replaceAll(/^restrict(,command="[^"]*")? /gm, ""));
    change("sshd_config", (text) =>
      text
        .replace("DisableForwarding yes", "DisableForwarding no")
        .replace("PasswordAuthentication no", "PasswordAuthentication yes")
        .replace("AuthenticationMethods publickey", ""),
    );
    process.kill(fleet.sshd("t-a"), "SIGHUP");
    onTestFinished(async () => {
      await fleet.kill("t-a");
      await fleet.restart("t-a");
    });
    const { machine } = fleet.builder("t-a");
    const outcomes = async (ownMachine: boolean, outcome: string) => {
      const cases = await tryRefusals(machine, { ...test, ownMachine, patience: 4 });
      return cases.filter((one) => one.outcome === outcome && !ofTrust(one)).map(({ name }) => name);
    };
    const holes = [
      "refuses a shell",
      "refuses the command id",
      "refuses the command nix-daemon --stdio; id",
      "refuses the command nix-daemon --stdio --version",
      "refuses the command nix-store --version",
      "refuses a terminal",
      "refuses forwarding to its networks",
      "refuses forwarding from its networks",
      "refuses passwords",
    ];
    const failed = await outcomes(true, "failed");
    expect(holes.filter((hole) => !failed.includes(hole))).toEqual([]);
    expect(failed).not.toContain("refuses another key");
    // The same on a machine that the fleet didn't set up is its owner's business.
    expect(await outcomes(false, "warned")).toEqual(failed);
  });
});

it.each([
  ["right", 105, 0],
  ["right within what can be known", 98, 0],
  ["an hour ahead", 3710, 3600],
  ["an hour behind", -3500, -3600],
])("a clock that is %s", (_, clock, offset) => {
  expect(clockOffset(clock, 100, 110)).toBe(offset);
});

it("refuses an output that its derivation didn't write", () => {
  expect(() => parseBuiltBy("nonsense")).toThrow("is not what its derivation writes");
  expect(smokeExpression({ nonce: "abc", system, features: ["kvm"] })).toContain('requiredSystemFeatures = [ "kvm" ]');
});
