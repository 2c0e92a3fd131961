import { execFileSync } from "node:child_process";
import {
  appendFileSync,
  existsSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { resolve } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { removeTree } from "../../src/local/folders.ts";
import { runningSshd } from "../../src/local/processes.ts";
import type { BuildMachine } from "../../src/nix/buildMachine.ts";
import { emulation, unregisterEmulation } from "../../src/local/emulation.ts";
import { emulationOwner, machineDirectory } from "../../src/local/plan.ts";
import { setUp } from "../../tools/setup/index.ts";
import { TestDeployment } from "../support/engine.ts";

const x86 = { name: "x86", provider: "local", system: "x86_64-linux", supportedFeatures: ["big-parallel"] };
const arm = { name: "arm", provider: "local", system: "aarch64-linux" };
const checkout = resolve(import.meta.dirname, "../..");

describe("a Nix that is on the person's PATH and not on that of a login", () => {
  it("is the one that is measured", async () => {
    const nix = mkdtempSync(`${tmpdir()}/fleet-nix-`);
    onTestFinished(() => {
      rmSync(nix, { recursive: true });
    });
    for (const name of ["nix-daemon", "nix-store", "nix-build"])
      symlinkSync(execFileSync("which", [name], { encoding: "utf8" }).trim(), `${nix}/${name}`);
    const real = execFileSync("which", ["nix"], { encoding: "utf8" }).trim();
    const answers = `[ "$1" != --version ] || { echo "nix (Nix) 2.99.0"; exit; }`;
    writeFileSync(`${nix}/nix`, `#!/bin/sh\n${answers}\nexec ${real} "$@"\n`, { mode: 0o755 });
    const { env } = await setUp();
    const fleet = await TestDeployment.create({ builders: [x86] }, { PATH: `${nix}:${env["PATH"] ?? ""}` });
    onTestFinished(() => fleet.remove());
    const { exitCode, output } = await fleet.up();
    expect(exitCode, output).toBe(0);
    expect(await fleet.outputs()).toMatchObject({ measurement: { x86: { nixVersion: "2.99.0" } } });
  });
});

describe("a fleet of local builders", () => {
  let fleet: TestDeployment;
  let first: string;

  beforeAll(async () => {
    fleet = await TestDeployment.create({ builders: [x86, arm], clients: [{ name: "ci" }] });
    const { exitCode, output } = await fleet.up();
    expect(output).toContain("smoke-test created");
    expect(exitCode, output).toBe(0);
    first = JSON.stringify(await fleet.outputs());
  });
  afterAll(() => fleet.remove());

  const fleetCli = (...words: string[]) =>
    execa(process.execPath, [`${checkout}/src/cli/main.ts`, "--stack", fleet.stack, ...words], {
      cwd: fleet.project,
      env: { ...fleet.env, FLEET_PROJECT: fleet.project },
      reject: false,
    });

  it("verifies every builder: each has built for its own system", async () => {
    const { verification, builders } = (await fleet.outputs()) as {
      verification: Record<string, unknown>;
      builders: BuildMachine[];
    };
    const bootId = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
    expect(verification).toMatchObject({
      x86: { verified: true, system: "x86_64-linux", arch: "x86_64", bootId },
      arm: { verified: true, system: "aarch64-linux", arch: "aarch64", bootId },
    });
    expect(builders.map(({ alias }) => alias)).toEqual([`${fleet.stack}-x86`, `${fleet.stack}-arm`]);
  });

  it("keeps each smoke test's output in the store of the builder that is said to have built it, and in no other", async () => {
    const { verification } = (await fleet.outputs()) as { verification: Record<string, { storePath: string }> };
    const has = (builder: string, path: string | undefined) =>
      existsSync(`${machineDirectory(fleet.directory, builder)}/root${path ?? ""}`);
    expect(has("x86", verification["x86"]?.storePath)).toBe(true);
    expect(has("arm", verification["arm"]?.storePath)).toBe(true);
    expect(has("arm", verification["x86"]?.storePath)).toBe(false);
    expect(has("x86", verification["arm"]?.storePath)).toBe(false);
  });

  it("keeps secrets out of the state and of what is printed", async () => {
    const { clientPrivateKey, adminPrivateKey } = await fleet.outputs();
    const { output } = await fleet.pulumi("stack", "export");
    const shown = await fleet.pulumi("stack", "output", "--json");
    for (const key of [clientPrivateKey, adminPrivateKey]) {
      const line = String(key).split("\n")[2] ?? "";
      expect(line.length).toBeGreaterThan(20);
      expect(output).not.toContain(line);
      expect(shown.output).not.toContain(line);
    }
    expect(output).not.toContain("BEGIN OPENSSH PRIVATE KEY");
  });

  it("writes the private key for nobody but the owner", () => {
    expect(statSync(`${fleet.directory}/client/id_ed25519`).mode & 0o777).toBe(0o600);
    expect(statSync(`${machineDirectory(fleet.directory, "x86")}/ssh_host_ed25519_key`).mode & 0o777).toBe(0o600);
  });

  it("refuses the client key anything but the two Nix protocols", async () => {
    const ssh = (...words: string[]) =>
      execa("ssh", ["-F", `${fleet.directory}/client/ssh_config`, "-o", "ControlPath=none", ...words], {
        reject: false,
        stdin: "ignore",
      });
    const command = await ssh(`${fleet.stack}-x86`, "id");
    expect(command.exitCode).toBe(1);
    expect(command.stderr).toContain("may only speak the Nix store protocols");
    expect(command.stdout).toBe("");
    const terminal = await ssh("-tt", `${fleet.stack}-x86`);
    expect(terminal.exitCode).not.toBe(0);
    expect(terminal.stderr).toContain("PTY allocation request failed");
    const forwarding = await ssh(
      "-o",
      "ExitOnForwardFailure=yes",
      "-R",
      "127.0.0.1:0:127.0.0.1:1",
      "-N",
      `${fleet.stack}-x86`,
    );
    expect(forwarding.exitCode).not.toBe(0);
  });

  it("has nothing to do the second time", async () => {
    const { exitCode, output } = await fleet.up();
    expect(exitCode, output).toBe(0);
    expect(output).toMatch(/Resources:\n\s+\d+ unchanged\n/);
    expect(JSON.stringify(await fleet.outputs())).toBe(first);
  });

  it("brings a killed builder back with the same keys and the same store, and touches no other", async () => {
    const before = {
      x86: runningSshd(machineDirectory(fleet.directory, "x86")),
      arm: runningSshd(machineDirectory(fleet.directory, "arm")),
    };
    const key = readFileSync(`${machineDirectory(fleet.directory, "x86")}/ssh_host_ed25519_key`, "utf8");
    const { verification } = (await fleet.outputs()) as { verification: Record<string, { storePath: string }> };
    process.kill(before.x86 ?? 0);
    await expect.poll(() => runningSshd(machineDirectory(fleet.directory, "x86"))).toBeUndefined();
    const { exitCode, output } = await fleet.up();
    expect(exitCode, output).toBe(0);
    expect(runningSshd(machineDirectory(fleet.directory, "x86"))).toBeDefined();
    expect(runningSshd(machineDirectory(fleet.directory, "arm"))).toBe(before.arm);
    expect(readFileSync(`${machineDirectory(fleet.directory, "x86")}/ssh_host_ed25519_key`, "utf8")).toBe(key);
    expect(existsSync(`${machineDirectory(fleet.directory, "x86")}/root${verification["x86"]?.storePath ?? ""}`)).toBe(
      true,
    );
    expect(output).toMatch(/x86-smoke-test/);
    expect(output).not.toMatch(/arm-smoke-test/);
  });

  it("makes again what was deleted: a builder's folder, a file of the client, the stack's folder under running builders", async () => {
    const machine = machineDirectory(fleet.directory, "x86");
    const deleted: [what: string, remove: () => void, again: readonly string[]][] = [
      [
        machine,
        () => {
          removeTree(machine);
        },
        [`${machine}/root`],
      ],
      [
        "files of the client",
        () => {
          rmSync(`${fleet.directory}/client/known_hosts`);
          appendFileSync(`${fleet.directory}/client/nix.conf`, "# not ours\n");
        },
        [`${fleet.directory}/client/known_hosts`],
      ],
      [
        fleet.directory,
        () => {
          removeTree(fleet.directory);
        },
        [`${fleet.directory}/place`, machine],
      ],
    ];
    for (const [what, remove, again] of deleted) {
      remove();
      const { exitCode, output } = await fleet.up();
      expect(exitCode, `${what}\n${output}`).toBe(0);
      for (const path of again) expect(existsSync(path), path).toBe(true);
      expect(readFileSync(`${fleet.directory}/client/nix.conf`, "utf8")).not.toContain("not ours");
      expect((await fleetCli("status")).exitCode, what).toBe(0);
      expect((await fleet.up()).output).toMatch(/Resources:\n\s+\d+ unchanged\n/);
    }
  });

  it("brings an emulation back that was taken away, and proves its builder again", async ({ skip }) => {
    const owner = emulationOwner(fleet.stack, fleet.directory);
    skip(emulation(owner, "aarch64-linux") !== "fleet", "the machine emulates by itself");
    unregisterEmulation(owner, "aarch64-linux");
    const { exitCode, output } = await fleet.up();
    expect(exitCode, output).toBe(0);
    expect(emulation(owner, "aarch64-linux")).toBe("fleet");
    expect(output).toMatch(/arm-smoke-test/);
    expect(output).not.toMatch(/x86-smoke-test/);
  });

  it("builds a person's own expression on the builders alone, through the CLI", async () => {
    const expression = `derivation { name = "own-${fleet.stack}"; system = "aarch64-linux"; builder = "/bin/sh"; args = [ "-c" "echo built > $out" ]; }`;
    const { exitCode, stdout, stderr } = await fleetCli("build", "-E", expression, "--option", "substituters", "");
    expect(exitCode, stderr).toBe(0);
    expect(stderr).toContain(`on 'ssh-ng://`);
    expect(existsSync(`${machineDirectory(fleet.directory, "arm")}/root${stdout.trim()}`)).toBe(true);
    expect(readFileSync(`${fleet.project}/result`, "utf8")).toBe("built\n");
  });

  it("never builds on the client: what no builder takes fails", async () => {
    const expression = `derivation { name = "kvm-${fleet.stack}"; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" "echo > $out" ]; requiredSystemFeatures = [ "kvm" ]; }`;
    const { exitCode } = await fleetCli("build", "-E", expression, "--no-out-link", "--option", "substituters", "");
    expect(exitCode).not.toBe(0);
  });

  it("passes nix's own arguments and exit code through", async () => {
    const { exitCode, stdout } = await fleetCli("nix", "eval", "--expr", "1 + 1");
    expect({ exitCode, stdout }).toEqual({ exitCode: 0, stdout: "2" });
    expect((await fleetCli("nix", "eval", "--expr", 'throw "no"')).exitCode).toBe(1);
  });

  it("shows a table of what answers, and fails when a builder does not", async () => {
    const { exitCode, stdout } = await fleetCli("status", "--json");
    expect(exitCode).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject([
      { name: "x86", systems: ["x86_64-linux"], answers: true },
      { name: "arm", systems: ["aarch64-linux"], answers: true },
    ]);
    process.kill(runningSshd(machineDirectory(fleet.directory, "arm")) ?? 0);
    await expect.poll(() => runningSshd(machineDirectory(fleet.directory, "arm"))).toBeUndefined();
    const down = await fleetCli("status");
    expect(down.exitCode).toBe(1);
    expect(down.stdout).toMatch(/arm: .*nothing listens on its SSH port|arm: .*no Nix answers/);
  });

  it("gives each form where its key belongs, and a workflow no builder of this machine", async () => {
    const outputs = (await fleet.outputs()) as Record<string, string>;
    expect(outputs["nixosModule"]).toContain('sshKey = "/etc/nix/fleet/id_ed25519";');
    expect(outputs["homeManagerModule"]).toContain("IdentityFile ~/.ssh/nix-builder-fleet_ed25519\n");
    expect(outputs["homeManagerModule"]).not.toContain("/etc/nix/fleet");
    expect(outputs["githubWorkflow"]).toMatch(/^# .*-x86 is at 127\.\S+ .*no runner of GitHub reaches.*\n$/);
  });

  it("writes a client directory that works from anywhere", async () => {
    const directory = `${fleet.project}/client of none`.replaceAll(" ", "-");
    const { exitCode, stdout } = await fleetCli("client", directory);
    expect(exitCode).toBe(0);
    for (const name of ["machines", "nix.conf", "ssh_config", "known_hosts", "id_ed25519"]) {
      expect(stdout).toContain(`${directory}/${name}`);
    }
    expect(statSync(`${directory}/id_ed25519`).mode & 0o777).toBe(0o600);
    expect(readFileSync(`${directory}/machines`, "utf8")).toContain(`${directory}/id_ed25519`);
  });

  it("lets a client of the configuration build with a key of its own, by nothing but its folder", async () => {
    const directory = `${fleet.project}/ci`;
    expect((await fleetCli("client", "--client", "ci", directory)).exitCode).toBe(0);
    const shared = readFileSync(`${fleet.directory}/client/id_ed25519`, "utf8");
    expect(readFileSync(`${directory}/id_ed25519`, "utf8")).not.toBe(shared);
    const expression = `derivation { name = "ci-${fleet.stack}"; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" "echo > $out" ]; }`;
    const { exitCode, stderr } = await execa(
      "nix-build",
      ["-E", expression, "--no-out-link", "--option", "substituters", ""],
      {
        env: {
          NIX_CONF_DIR: directory,
          NIX_SSHOPTS: `-F ${directory}/ssh_config`,
          NIX_CONFIG: "max-jobs = 0",
          NIX_REMOTE: `local?root=${fleet.directory}/store`,
          NIX_STATE_DIR: `${fleet.directory}/store/state`,
        },
        reject: false,
      },
    );
    expect(exitCode, stderr).toBe(0);
  });

  it("builds as a remote store on one builder, and brings the result back", async () => {
    const expression = `derivation { name = "remote-${fleet.stack}"; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" "echo far > $out" ]; }`;
    const words = ["build", "--remote-store", "x86", "-E", expression, "-o", "far", "--option", "substituters", ""];
    const { exitCode, stdout, stderr } = await fleetCli(...words);
    expect(exitCode, stderr).toBe(0);
    expect(existsSync(`${machineDirectory(fleet.directory, "x86")}/root${stdout.trim()}`)).toBe(true);
    expect(readFileSync(`${fleet.project}/far`, "utf8")).toBe("far\n");
    const elsewhere = await fleetCli("build", "--remote-store", "arm", ...words.slice(3));
    expect(elsewhere.exitCode).not.toBe(0);
    expect(elsewhere.stderr).toContain("fleet: that builder doesn't build for x86_64-linux; these do: x86");
    const unknown = await fleetCli("build", "--remote-store", "mips", "-E", expression);
    expect(unknown.exitCode).toBe(1);
    expect(unknown.stderr).toContain("has no builder 'mips'; its builders are x86, arm");
  });

  it("builds into a remote store only where the link to the result takes nothing's place but a link's", async () => {
    const derivation = (name: string) =>
      `(derivation { name = "${name}"; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" "echo > $out" ]; })`;
    const build = (name: string, expression: string) =>
      fleetCli("build", "--remote-store", "x86", "-E", expression, "-o", name, "--option", "substituters", "");
    writeFileSync(`${fleet.project}/mine`, "dear to me");
    writeFileSync(`${fleet.project}/free-2`, "dear to me");
    const first = await build("mine", derivation(`${fleet.stack}-a`));
    expect(first.stderr).toBe(
      "fleet: mine is a file where the link to the result would be; move it away, or choose another name with --out-link NAME",
    );
    const second = await build("free", `[ ${derivation(`${fleet.stack}-b`)} ${derivation(`${fleet.stack}-c`)} ]`);
    expect(second.stderr).toContain("fleet: free-2 is a file where the link to the result would be");
    for (const name of ["mine", "free-2"]) expect(readFileSync(`${fleet.project}/${name}`, "utf8")).toBe("dear to me");
    expect([first.exitCode, second.exitCode]).toEqual([1, 1]);
    const elsewhere = await build("elsewhere", derivation(`${fleet.stack}-a`));
    const again = await build("elsewhere", derivation(`${fleet.stack}-a`));
    expect([elsewhere.exitCode, again.exitCode], elsewhere.stderr).toEqual([0, 0]);
  });

  it("changes only what it must when the count changes", async () => {
    await fleet.up(); // brings arm back
    const sshd = runningSshd(machineDirectory(fleet.directory, "x86"));
    fleet.configure({ builders: [{ ...x86, count: 2 }, arm], clients: [{ name: "ci" }] });
    const more = await fleet.up();
    expect(more.exitCode, more.output).toBe(0);
    expect(runningSshd(machineDirectory(fleet.directory, "x86"))).toBe(sshd);
    expect(runningSshd(machineDirectory(fleet.directory, "x86-2"))).toBeDefined();
    const changed = [...more.output.matchAll(/^ [~+-]+ +(?:command|tls)\S* (\S+) \w+/gm)].map(([, name]) => name);
    expect(new Set(changed)).toEqual(
      new Set(["x86-2", "x86-2-host-key", "x86-2-measurement", "x86-2-smoke-test", "client-files"]),
    );
    fleet.configure({ builders: [x86, arm], clients: [{ name: "ci" }] });
    const fewer = await fleet.up();
    expect(fewer.exitCode, fewer.output).toBe(0);
    expect(existsSync(machineDirectory(fleet.directory, "x86-2"))).toBe(false);
    expect(runningSshd(machineDirectory(fleet.directory, "x86"))).toBe(sshd);
  });

  it("ends a removed client's open connection, and lets it open no other", async () => {
    const ssh = (...words: string[]) =>
      execa(
        "ssh",
        [
          "-F",
          `${fleet.project}/ci/ssh_config`,
          "-o",
          `ControlPath=${fleet.project}/shared`,
          ...words,
          `${fleet.stack}-x86`,
          "id",
        ],
        { all: true, reject: false, stdin: "ignore" },
      );
    const open = await ssh("-o", "ControlMaster=yes", "-o", "ControlPersist=300");
    expect(open.all).toContain("may only speak the Nix store protocols");
    const sshd = runningSshd(machineDirectory(fleet.directory, "x86"));
    fleet.configure({ builders: [x86, arm] });
    const { exitCode, output } = await fleet.up();
    expect(exitCode, output).toBe(0);
    expect((await ssh("-o", "ControlMaster=no")).all).toContain("Permission denied");
    expect(runningSshd(machineDirectory(fleet.directory, "x86"))).toBe(sshd);
    expect((await fleetCli("status")).exitCode).toBe(0);
  });

  it("leaves nothing behind", async () => {
    const { builders } = (await fleet.outputs()) as { builders: BuildMachine[] };
    expect(fleet.leftovers()).not.toEqual([]);
    const { exitCode, output } = await fleet.destroy();
    expect(exitCode, output).toBe(0);
    expect(fleet.leftovers()).toEqual([]);
    for (const { hostName, port } of builders) expect(await listens(hostName, port)).toBe(false);
  });
});

function listens(host: string, port: number): Promise<boolean> {
  return new Promise((done) => {
    const socket = connect({ host, port });
    socket.once("connect", () => {
      socket.destroy();
      done(true);
    });
    socket.once("error", () => {
      done(false);
    });
  });
}
