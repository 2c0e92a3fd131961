/** The doctor, called to real builders and clients of which each has one thing wrong. */
import { execFileSync } from "node:child_process";
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir, userInfo } from "node:os";
import { afterAll, afterEach, beforeAll, describe, expect, it, onTestFinished, vi } from "vitest";
import { parseMeasurement, type Peculiarities } from "../../src/bootstrap/measure.ts";
import { examineBuilder, judgeMeasurement, type BuilderToExamine } from "../../src/doctor/builder.ts";
import { nixVersion } from "../../src/client/settings.ts";
import { examineClient } from "../../src/doctor/client.ts";
import { exitCode, renderFindings, type Finding } from "../../src/doctor/finding.ts";
import { renderMachines } from "../../src/nix/machinesFile.ts";
import { keyPair, LocalFleet } from "../support/localFleet.ts";

let fleet: LocalFleet;
let builder: BuilderToExamine;

beforeAll(async () => {
  fleet = await LocalFleet.start({ alias: "t-a" });
  const { machine, local } = fleet.builder("t-a");
  const peculiarities: Peculiarities = {
    nixConfDir: `${local.directory}/conf`,
    ownStore: `${local.directory}/root`,
    sshdConfig: `${local.directory}/sshd_config`,
  };
  builder = {
    name: "a",
    machine,
    clientDirectory: fleet.clientDirectory,
    administration: { user: userInfo().username, peculiarities, privateKey: fleet.admin.privateKey },
    clientNix: await nixVersion(),
  };
});
afterAll(() => fleet.stop());
afterEach(() => {
  vi.unstubAllEnvs();
});

/** Changes a file of the builder until the test is over. */
function change(name: string, edit: (text: string) => string): void {
  const path = `${fleet.builder("t-a").local.directory}/${name}`;
  const before = readFileSync(path, "utf8");
  writeFileSync(path, edit(before));
  onTestFinished(() => {
    writeFileSync(path, before);
  });
}

const groupOfNobody = execFileSync("id", ["-gn", "nobody"], { encoding: "utf8" }).trim();

/** Root may see everything. */
async function asOrdinaryUser<T>(run: () => Promise<T>): Promise<T> {
  if (process.geteuid?.() !== 0) return run();
  process.seteuid?.("nobody");
  try {
    return await run();
  } finally {
    process.seteuid?.(0);
  }
}

/** What isn't well, as `CHECK: WHAT`. */
function complaints(findings: readonly Finding[]): string[] {
  return findings
    .filter(({ severity }) => severity === "error" || severity === "warning")
    .map(({ check, what }) => `${check}: ${what}`);
}

/** Every complaint tells a person what to do. */
function expectAdvice(findings: readonly Finding[]): void {
  expect(
    findings.filter(({ severity, why, fix }) => severity === "error" && why === undefined && fix === undefined),
  ).toEqual([]);
}

describe("a builder", () => {
  it("that is well has no complaints, and every link was looked at", async () => {
    const findings = await examineBuilder(builder);
    expect(complaints(findings)).toEqual([]);
    expect(exitCode(findings)).toBe(0);
    expect(findings.map(({ check }) => check)).toEqual([
      "name resolution",
      "TCP",
      "SSH login",
      "forced command",
      "Nix daemon",
      "trust, features and a build",
      "level of trust",
      "clock",
      "what builds reach",
      "disk",
      "sshd limits",
      "Nix versions",
    ]);
  });

  it.each<[string, string, () => BuilderToExamine]>([
    [
      "whose name doesn't resolve",
      "nowhere.invalid does not resolve",
      () => ({ ...builder, machine: { ...builder.machine, hostName: "nowhere.invalid" } }),
    ],
    [
      "that nothing listens on",
      "port 2300 refuses the connection",
      () => ({ ...builder, machine: { ...builder.machine, port: 2300 } }),
    ],
  ])("%s", async (_, sentence, changed) => {
    const findings = await examineBuilder(changed());
    expect(complaints(findings).join()).toContain(sentence);
    expectAdvice(findings);
    expect(exitCode(findings)).toBe(2);
  });

  it("with another host key gets nothing sent", async () => {
    const clientDirectory = `${fleet.directory}/other-host-key`;
    const other = keyPair(fleet.directory).publicKey;
    const publicHostKey = Buffer.from(other).toString("base64");
    fleet.writeClient([{ ...builder.machine, publicHostKey }], undefined, clientDirectory);
    const findings = await examineBuilder({ ...builder, clientDirectory });
    expect(complaints(findings)).toEqual([
      "SSH login: it shows another host key than the pinned one; nothing was sent to it",
    ]);
  });

  it("that refuses the client's key", async () => {
    const clientDirectory = `${fleet.directory}/other-client-key`;
    fleet.writeClient(undefined, keyPair(fleet.directory).privateKey, clientDirectory);
    expect(complaints(await examineBuilder({ ...builder, clientDirectory }))).toEqual([
      "SSH login: it refuses the client's key",
    ]);
  });

  it("that lets the client's key run anything", async () => {
    change("authorized_keys", (text) => text.replaceAll(/^restrict(,command="[^"]*")? /gm, ""));
    const findings = await examineBuilder(builder);
    expect(complaints(findings).join()).toContain("forced command: the client's key may run any command");
    // And no Nix of that store answers behind an unforced command.
    expect(exitCode(findings)).toBeGreaterThan(0);
  });

  it("whose sshd is up but whose Nix is broken is not well", async () => {
    change("nix-ssh", (text) => text.replaceAll(/exec env/g, "exec /nonexistent"));
    const findings = await examineBuilder(builder);
    expect(complaints(findings).join()).toMatch(/^Nix daemon: SSH works but no Nix answers behind it/);
    expect(exitCode(findings)).toBe(2);
  });

  it("that lost a feature, and whose sshd drops connections", async () => {
    change("conf/nix.conf", (text) => text.replace("system-features = big-parallel", "system-features = "));
    change("sshd_config", (text) => text.replace("MaxStartups 200:30:400", "MaxStartups 10:30:100"));
    expect(complaints(await examineBuilder(builder)).join()).toContain("doesn't have the feature big-parallel");
    change("conf/nix.conf", (text) => `${text}system-features = big-parallel\n`);
    expect(complaints(await examineBuilder(builder))).toEqual(["sshd limits: MaxStartups 10:30:100"]);
  });

  it("that is full, or too old", () => {
    const lines =
      "bootId = b\narch = x86_64\ncpus = 2\nmemoryMiB = 1\ndiskMiB = 9000\ndiskFreeMiB = FREE\nkvm = false\nnixVersion = VERSION\nnixSystems = s\nnixFeatures = \nsandbox = true\ncores = 0\nminFree = 2147483648\nmaxFree = 0\nmaxStartups = \n";
    const judge = (free: number, version: string) =>
      complaints(
        judgeMeasurement(builder, parseMeasurement(lines.replace("FREE", String(free)).replace("VERSION", version))),
      ).join();
    expect(judge(500, "2.8.0")).toContain("disk: 0.5 GiB of 8.8 GiB are free");
    expect(judge(1500, "2.8.0")).toContain("less than its min-free");
    expect(judge(5000, "2.34.1")).toBe("");
    expect(judge(5000, "2.3.16")).toContain("Nix versions");
  });
});

describe("this machine as a client", () => {
  /** A configuration folder of the machine's Nix. */
  function configure(name: string, nixConf: string, machines?: string): string {
    const directory = `${fleet.directory}/${name}`;
    mkdirSync(directory);
    writeFileSync(`${directory}/nix.conf`, nixConf.replaceAll("DIR", directory));
    if (machines !== undefined) writeFileSync(`${directory}/machines`, machines);
    vi.stubEnv("NIX_CONF_DIR", directory);
    vi.stubEnv("NIX_USER_CONF_FILES", "");
    return directory;
  }
  const examine = () => {
    const machines = [builder.machine];
    return examineClient({ machines, emitted: renderMachines(machines), stack: "t" });
  };
  const offline = "substituters =\n";

  it("that doesn't use the fleet is told so, without a complaint", async () => {
    configure("unused", offline);
    const findings = await examine();
    expect(complaints(findings)).toEqual([]);
    expect(renderFindings(findings)).toContain("does not use the fleet; `npx fleet build` does");
  });

  it("that uses it as it should has no complaints", async () => {
    vi.stubEnv("NIX_SSHOPTS", `-F ${fleet.clientDirectory}/ssh_config`);
    configure("sound", `${offline}builders = @${fleet.clientDirectory}/machines\n`);
    expect(complaints(await examine())).toEqual([]);
  });

  it("whose `builders` names a file that isn't there", async () => {
    configure("missing", `${offline}builders = @DIR/nowhere\n`);
    const findings = await examine();
    expect(complaints(findings).join()).toMatch(/builders setting: .*nowhere does not exist/);
    expectAdvice(findings);
  });

  it("whose machines file is an old one", async () => {
    const old = renderMachines([{ ...builder.machine, maxJobs: 1 }], { sshKey: `${fleet.clientDirectory}/id_ed25519` });
    vi.stubEnv("NIX_SSHOPTS", `-F ${fleet.clientDirectory}/ssh_config`);
    configure("old", `${offline}builders = @DIR/machines\n`, old);
    expect(complaints(await examine())).toEqual([
      `machines: is not what stack 't' emits: ssh-ng://${builder.machine.sshUser}@t-a differs`,
    ]);
  });

  it("whose ssh doesn't know the builder, and whose key isn't there", async () => {
    const machines = renderMachines([builder.machine], { sshKey: "/nonexistent/key" });
    configure("unknown", `${offline}builders = @DIR/machines\n`, machines);
    const findings = await examine();
    expect(renderFindings(findings)).toContain("this ssh does not know t-a");
    expect(complaints(findings).join()).toContain("/nonexistent/key does not exist");
  });

  it("whose files this user may not see has them looked at by root, and the rest is examined all the same", async () => {
    // The fleet's own folder no ordinary user may enter at all.
    const directory = mkdtempSync(`${tmpdir()}/fleet-doctor-`);
    onTestFinished(() => {
      rmSync(directory, { recursive: true });
    });
    const closed = `${directory}/closed`;
    mkdirSync(closed);
    writeFileSync(`${directory}/machines`, renderMachines([builder.machine], { sshKey: `${closed}/key` }));
    writeFileSync(`${directory}/nix.conf`, `${offline}builders = @${directory}/machines ; @${closed}/machines\n`);
    vi.stubEnv("NIX_CONF_DIR", directory);
    vi.stubEnv("NIX_USER_CONF_FILES", "");
    vi.stubEnv("HOME", directory);
    chmodSync(directory, 0o755);
    chmodSync(closed, 0);
    const findings = await asOrdinaryUser(examine);
    expect(complaints(findings).join()).not.toContain("closed");
    const notes = findings.filter(({ what }) => what.startsWith("not looked at"));
    expect(notes.map(({ check, what, fix }) => [check, what, fix])).toEqual([
      [
        "builders setting",
        `not looked at: this user may not see ${closed}/machines`,
        "sudo npx fleet doctor --stack t",
      ],
      ["private key", `not looked at: this user may not see ${closed}/key`, "sudo npx fleet doctor --stack t"],
    ]);
    expect(findings.map(({ check }) => check)).toContain("local builds");
  });

  it.each([
    ["by name", "root nobody", "nobody may choose builders"],
    ["by a group", `root @${groupOfNobody}`, "nobody may choose builders"],
    ["not at all", "root @wheel-of-nobody", "nobody is not among trusted-users"],
  ])("whose Nix trusts its user %s", async (_, trusted, said) => {
    vi.stubEnv("SUDO_USER", "nobody");
    configure(`trusts ${trusted}`.replaceAll(/\W/g, "-"), `${offline}trusted-users = ${trusted}\n`);
    const findings = await examine();
    expect(findings.filter(({ check }) => check === "trusted user").map(({ what }) => what)).toEqual([said]);
  });

  it("whose substituter can't be reached, and one that can", async () => {
    const server = createServer((_, response) => response.end("StoreDir: /nix/store\n"));
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    onTestFinished(() => {
      server.close();
    });
    const { port } = server.address() as AddressInfo;
    configure("caches", `substituters = http://127.0.0.1:1 http://127.0.0.1:${port}\n`);
    expect(complaints(await examine())).toEqual(["substituter: http://127.0.0.1:1 can't be reached"]);
  });
});
