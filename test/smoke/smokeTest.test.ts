import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { generateKeyPairSync } from "node:crypto";
import sshpk from "sshpk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { writeClientDirectory } from "../../src/client/directory.ts";
import { removeMachine, startMachine } from "../../src/local/machine.ts";
import { runningSshd } from "../../src/local/processes.ts";
import { clientFiles } from "../../src/nix/clientFiles.ts";
import { systemOfThisMachine, kernelArch } from "../../src/nix/system.ts";
import { toPublicHostKey } from "../../src/ssh/hostKey.ts";
import { parseBuiltBy, smokeExpression } from "../../src/smoke/derivation.ts";
import { runSmokeTest, type SmokeTest } from "../../src/smoke/smokeTest.ts";
import { userInfo } from "node:os";

const system = systemOfThisMachine() ?? "x86_64-linux";

function keyPair(): { privateKey: string; publicKey: string } {
  const { privateKey } = generateKeyPairSync("ed25519");
  const key = sshpk.parsePrivateKey(privateKey.export({ type: "pkcs8", format: "pem" }), "pem");
  return {
    privateKey: key.toString("ssh"),
    publicKey: key.toPublic().toString("ssh").split(" ").slice(0, 2).join(" "),
  };
}

describe("the smoke test on a real builder", () => {
  const directory = `${mkdtempSync(`${tmpdir()}/fleet-smoke-test-`)}/.fleet/stacks/t`;
  const machine = `${directory}/machines/a`;
  const host = keyPair();
  const client = keyPair();
  const test: SmokeTest = {
    alias: "t-a",
    system,
    arch: kernelArch(system),
    mandatoryFeatures: [],
    clientDirectory: `${directory}/client`,
    bootId: undefined,
    timeout: 20,
  };

  beforeAll(async () => {
    const address = { address: "127.12.34.56", port: 2298 };
    await startMachine(
      {
        ...address,
        directory: machine,
        system,
        features: ["big-parallel"],
        hostPrivateKey: host.privateKey,
        clientPublicKeys: [client.publicKey],
        adminPublicKey: keyPair().publicKey,
      },
      "1",
    );
    const builder = {
      alias: "t-a",
      hostName: address.address,
      port: address.port,
      protocol: "ssh-ng",
      systems: [system],
      sshUser: userInfo().username,
      maxJobs: 1,
      speedFactor: 1,
      supportedFeatures: ["big-parallel"],
      mandatoryFeatures: [],
      publicHostKey: toPublicHostKey(host.publicKey),
    } as const;
    const files = clientFiles([builder], { directory: `${directory}/client` });
    writeClientDirectory(`${directory}/client`, { ...files, id_ed25519: client.privateKey });
  });
  afterAll(async () => {
    await removeMachine(machine);
    expect(runningSshd(machine)).toBeUndefined();
    rmSync(directory.replace(/\/\.fleet\/.*/, ""), { recursive: true, force: true });
  });

  it("verifies a builder that builds", async () => {
    const verdict = await runSmokeTest(test);
    expect(verdict).toMatchObject({ verified: true, alias: "t-a", system, arch: kernelArch(system) });
    expect(verdict.storePath).toMatch(/^\/nix\/store\/\w{32}-fleet-smoke-[0-9a-f]{16}$/);
  });

  it("builds something else each time", async () => {
    const [first, second] = [await runSmokeTest(test), await runSmokeTest(test)];
    expect(first.storePath).not.toBe(second.storePath);
  });

  it("does not take another machine's word for it", async () => {
    await expect(runSmokeTest({ ...test, bootId: "another" })).rejects.toThrow("another machine built it");
  });

  it("does not verify what runs on another architecture than it says", async () => {
    await expect(runSmokeTest({ ...test, arch: "riscv64" })).rejects.toThrow("check `system`");
  });

  it("does not verify a builder that lacks a feature it should have", async () => {
    await expect(runSmokeTest({ ...test, mandatoryFeatures: ["kvm"] })).rejects.toThrow(
      "check `system` and `supportedFeatures`",
    );
  });

  it("says so when the emitted files don't hold the builder", async () => {
    await expect(runSmokeTest({ ...test, alias: "t-b" })).rejects.toThrow("has no row for t-b");
  });

  it("gives up at its time limit when nothing answers, with the reason", async () => {
    const elsewhere = `${directory}/elsewhere`;
    mkdirSync(elsewhere, { recursive: true });
    writeClientDirectory(`${elsewhere}/client`, {
      ...clientFiles(
        [
          {
            alias: "t-a",
            hostName: "127.12.34.57",
            port: 2298,
            protocol: "ssh-ng",
            systems: [system],
            sshUser: "nobody",
            maxJobs: 1,
            speedFactor: 1,
            supportedFeatures: [],
            mandatoryFeatures: [],
            publicHostKey: toPublicHostKey(host.publicKey),
          },
        ],
        { directory: `${elsewhere}/client` },
      ),
      id_ed25519: client.privateKey,
    });
    const started = Date.now();
    await expect(runSmokeTest({ ...test, clientDirectory: `${elsewhere}/client`, timeout: 2 })).rejects.toThrow(
      "nothing listens on its SSH port",
    );
    expect(Date.now() - started).toBeLessThan(10_000);
  });

  it("refuses an output that its derivation didn't write", () => {
    expect(() => parseBuiltBy("nonsense")).toThrow("is not what its derivation writes");
    expect(smokeExpression("abc", system, ["kvm"])).toContain('requiredSystemFeatures = [ "kvm" ]');
  });
});
