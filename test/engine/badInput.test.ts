import { execFileSync } from "node:child_process";
import { createServer } from "node:net";
import { existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { execa } from "execa";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { machineDirectory } from "../../src/local/plan.ts";
import { toHostKey } from "../../src/ssh/hostKey.ts";
import type { BuildMachine } from "../../src/nix/buildMachine.ts";
import { TestDeployment } from "../support/engine.ts";

const x86 = { name: "x86", provider: "local", system: "x86_64-linux" };
const anotherHostKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPIQCZc54poJ8vqawd8TraNryQeJnvH1eLpIDgbiqymM";

describe("what can be known beforehand ends before anything is made", () => {
  let fleet: TestDeployment;
  beforeAll(async () => {
    fleet = await TestDeployment.create({});
  });
  afterAll(() => fleet.remove());

  const refusal = async (config: Record<string, unknown>): Promise<string> => {
    fleet.configure(config);
    const { exitCode, output } = await fleet.up();
    expect(exitCode).not.toBe(0);
    expect(output).not.toMatch(/^\s+at .*\.ts:\d+/m);
    expect(output).not.toMatch(/command:\S+ \S+ creat/);
    expect(existsSync(fleet.directory)).toBe(false);
    return output;
  };

  it("a configuration without builders", async () => {
    expect(await refusal({})).toContain("builders: [] is not allowed; allowed is at least one builder");
  });

  it("a wrong value", async () => {
    expect(await refusal({ builders: [{ ...x86, maxJobs: 0 }] })).toContain(
      "builders[0].maxJobs: 0 is not allowed; allowed is a whole number of at least 1",
    );
  });

  it("a host key that was left empty, and one feature in place of a list", async () => {
    const own = { name: "own", provider: "existing", system: "x86_64-linux", address: "127.0.0.9" };
    const output = await refusal({ builders: [{ ...own, hostKey: null, supportedFeatures: "kvm" }] });
    expect(output).toContain("builders[0].hostKey: has no value; allowed is the host's public key line");
    expect(output).toContain('builders[0].supportedFeatures: "kvm" is not allowed; allowed is a list such as');
  });

  it("a host key that was cut off in copying, for which no client could be configured", async () => {
    const own = { name: "own", provider: "existing", system: "x86_64-linux", address: "127.0.0.9" };
    expect(await refusal({ builders: [{ ...own, hostKey: anotherHostKey.slice(0, -8) }] })).toContain(
      "is not allowed; allowed is the host's public key line",
    );
  });

  it("a key that doesn't exist, together with whatever else is wrong", async () => {
    const output = await refusal({ bulders: [x86], smokeTimeout: 0 });
    expect(output).toContain("unknown key 'bulders'");
    expect(output).toContain("builders: [] is not allowed");
    expect(output).toContain("smokeTimeout: 0 is not allowed");
  });

  it("a port that something else listens on", async () => {
    const server = createServer();
    await new Promise<void>((done) => server.listen({ host: "127.0.0.1", port: 0 }, done));
    const address = server.address();
    const port = typeof address === "object" && address !== null ? address.port : 0;
    const output = await refusal({ builders: [{ ...x86, address: "127.0.0.1", port }] });
    expect(output).toContain(
      `builder 'x86': 127.0.0.1 port ${String(port)} can't be listened on (another program does)`,
    );
    await new Promise((done) => server.close(done));
  });

  it("a builder whose address is what clients call another one", async () => {
    const own = { name: "own", provider: "existing", system: "x86_64-linux", hostKey: anotherHostKey };
    expect(await refusal({ builders: [x86, { ...own, address: `${fleet.stack}-x86` }] })).toContain(
      `builders: the address of 'own' is ${fleet.stack}-x86, but so clients call another builder`,
    );
  });

  it.each<[string, (path: string) => void, string]>([
    ["isn't there", () => undefined, "isn't there"],
    [
      "is a folder",
      (path) => {
        mkdirSync(path);
      },
      "is no file",
    ],
    [
      "is a public key",
      (path) => {
        writeFileSync(path, `${anotherHostKey} me\n`);
      },
      "is a public key",
    ],
    [
      "holds no key",
      (path) => {
        writeFileSync(path, "nonsense\n", { mode: 0o600 });
      },
      "holds no private key",
    ],
    [
      "is open to others",
      (path) => {
        writeFileSync(path, "-----BEGIN OPENSSH PRIVATE KEY-----\n", { mode: 0o644 });
      },
      "is open to others, so that ssh refuses it (chmod 600)",
    ],
    [
      "has a passphrase",
      (path) => {
        execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "secret", "-f", path]);
      },
      "has a passphrase, for which Nix can ask nobody",
    ],
    [
      "holds what only begins as a key",
      (path) => {
        writeFileSync(path, "-----BEGIN OPENSSH PRIVATE KEY-----\nnonsense\n", { mode: 0o600 });
      },
      "holds no private key that ssh can read",
    ],
  ])("a key file that %s", async (_, make, problem) => {
    const sshKey = `${fleet.project}/key`;
    make(sshKey);
    const own = { name: "own", provider: "existing", system: "x86_64-linux", address: "127.0.0.9" };
    const output = await refusal({ builders: [{ ...own, hostKey: anotherHostKey, sshKey }] });
    rmSync(sshKey, { recursive: true, force: true });
    expect(output).toContain(`builder 'own': sshKey ${sshKey} ${problem}`);
    expect(output).toContain("; it must be a private key file that you may read");
  });
});

describe("a host that the person already has", () => {
  let host: TestDeployment;
  let fleet: TestDeployment;
  let own: Record<string, unknown>;

  beforeAll(async () => {
    host = await TestDeployment.create({ builders: [x86] });
    const { exitCode, output } = await host.up();
    expect(exitCode, output).toBe(0);
    const { builders } = (await host.outputs()) as { builders: BuildMachine[] };
    const builder = builders[0];
    if (builder === undefined) throw new Error("the host has no builder");
    own = {
      name: "own",
      provider: "existing",
      system: "x86_64-linux",
      address: builder.hostName,
      port: builder.port,
      user: builder.sshUser,
      hostKey: toHostKey(builder.publicHostKey),
      sshKey: `${host.directory}/client/id_ed25519`,
    };
    fleet = await TestDeployment.create({ builders: [own], smokeTimeout: 20 });
  });
  afterAll(async () => {
    await fleet.remove();
    await host.remove();
  });

  const failure = async (change: Record<string, unknown>): Promise<string> => {
    fleet.configure({ builders: [{ ...own, ...change }], smokeTimeout: 5 });
    const { exitCode, output } = await fleet.up();
    expect(exitCode).not.toBe(0);
    return output;
  };

  it("is refused when it presents another host key than the pinned one", async () => {
    expect(await failure({ hostKey: anotherHostKey })).toContain("it presents another host key than the pinned one");
  });

  it("fails in words when it refuses the key, and says of which one", async () => {
    const key = `${fleet.project}/stranger`;
    await execa("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", key]);
    expect(await failure({ sshKey: key })).toContain(`it refuses the key ${key} (\`sshKey\`)`);
  });

  it("fails in words when nothing listens there", async () => {
    expect(await failure({ port: 9 })).toContain("nothing listens on its SSH port");
  });

  it("fails in words when it is for another system than it says", async () => {
    expect(await failure({ system: "aarch64-linux" })).toContain("check `system`");
  });

  it("is verified once the mistake is mended, and destroy leaves it as it was", async () => {
    fleet.configure({ builders: [own] });
    const { exitCode, output } = await fleet.up();
    expect(exitCode, output).toBe(0);
    expect(await fleet.outputs()).toMatchObject({ verification: { own: { verified: true, arch: "x86_64" } } });
    expect((await fleet.destroy()).exitCode).toBe(0);
    expect(fleet.leftovers()).toEqual([]);
    expect(existsSync(`${machineDirectory(host.directory, "x86")}/sshd_config`)).toBe(true);
    expect((await host.up()).output).toMatch(/Resources:\n\s+\d+ unchanged\n/);
  });
});
