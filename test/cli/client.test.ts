import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { describeForms, writeClient, type ClientChoice } from "../../src/cli/client.ts";
import { stackDirectory, writeOwnClient, type UsableFleet } from "../../src/cli/stack.ts";
import { clientDirectoryFiles } from "../../src/client/directory.ts";
import { toPublicHostKey } from "../../src/ssh/hostKey.ts";

const hostKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPIQCZc54poJ8vqawd8TraNryQeJnvH1eLpIDgbiqymM";
const fleet: UsableFleet = {
  stack: "dev",
  builders: [
    {
      alias: "dev-x86",
      hostName: "192.0.2.7",
      port: 22,
      protocol: "ssh-ng",
      systems: ["x86_64-linux"],
      sshUser: "nix-builder",
      maxJobs: 4,
      speedFactor: 1,
      supportedFeatures: [],
      mandatoryFeatures: [],
      publicHostKey: toPublicHostKey(hostKey),
    },
  ],
  verification: {},
  measurement: {},
  administration: {},
  clientSettings: {
    directory: "/etc/nix/fleet",
    localSystems: [],
    caches: [{ url: "https://cache.example.org", publicKey: `c:${"A".repeat(43)}=` }],
    clients: [
      { name: "ci", profile: "remote-only", localSystems: [], trust: "full" },
      { name: "alice", publicKey: hostKey, localSystems: [], trust: "full" },
    ],
    trust: "full",
  },
  clientSigningKeys: {},
  clientPrivateKey: "SHARED\n",
  adminPrivateKey: "ADMIN\n",
  clientPrivateKeys: { ci: "CI\n" },
};

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(`${tmpdir()}/fleet-client-`);
});
afterEach(() => {
  rmSync(directory, { recursive: true });
});
const read = (name: string) => readFileSync(`${directory}/${name}`, "utf8");

describe("a client's level", () => {
  const levels: UsableFleet = {
    ...fleet,
    builders: fleet.builders.map((machine) => ({
      ...machine,
      trust: "signed",
      sshUsers: { none: "nix-builder", signed: "nix-builder", full: "nix-builder-trusted" },
    })),
    clientSettings: {
      ...fleet.clientSettings,
      trust: "signed",
      clients: [
        { name: "ci", localSystems: [], trust: "none" },
        { name: "alice", localSystems: [], trust: "full" },
      ],
    },
    clientPrivateKeys: { ci: "CI\n", alice: "ALICE\n" },
    clientSigningKey: "dev-client:SECRET",
  };
  let directory = "";
  beforeEach(() => {
    directory = mkdtempSync(`${tmpdir()}/fleet-level-`);
  });
  afterEach(() => {
    rmSync(directory, { recursive: true });
  });
  const write = (choice: ClientChoice) => writeClient(levels, { ...choice, directory });
  const read = (name: string): string => readFileSync(`${directory}/${name}`, "utf8");

  it("brings the key with which it signs, for nobody else to read, and the setting that names it", () => {
    write({});
    expect(read("signing-key")).toBe("dev-client:SECRET\n");
    expect(statSync(`${directory}/signing-key`).mode & 0o777).toBe(0o600);
    expect(read("nix.conf")).toContain(`extra-secret-key-files = ${directory}/signing-key\n`);
    expect(read("machines")).toContain("ssh-ng://nix-builder@");
  });

  it("has no such key at none, and at full the user whom the builders trust, in words that say what that is", () => {
    expect(write({ client: "ci" }).notes).toEqual([]);
    expect(existsSync(`${directory}/signing-key`)).toBe(false);
    expect(read("nix.conf")).not.toContain("secret-key-files");
    const { notes } = write({ client: "alice", force: true });
    expect(notes).toEqual(["A client of this fleet is root on its builders (trust: full)."]);
    expect(read("machines")).toContain("ssh-ng://nix-builder-trusted@");
    expect(read("ssh_config")).toContain("User nix-builder-trusted\n");
  });

  it("is said to have no rows where the client's Nix is too old, and a way that works", () => {
    expect(write({ nixVersion: "2.15.3" }).notes).toEqual([
      expect.stringMatching(
        /can't be rows .*needs Nix 2\.16 or newer on both sides, and here it is 2\.15\.3; use one as a store/,
      ),
    ]);
    expect(write({ nixVersion: "2.18.1" }).notes).toEqual([]);
    expect(write({ client: "alice", nixVersion: "2.8", force: true }).notes).toHaveLength(1);
  });
});

describe("fleet client", () => {
  it("prints one form, with the paths of the configured directory", () => {
    expect(writeClient(fleet, { form: "machines" })).toEqual({
      notes: [],
      text: expect.stringContaining("x86_64-linux /etc/nix/fleet/id_ed25519 4 1") as string,
    });
    expect(writeClient(fleet, { form: "nixosModule" })).toEqual({
      notes: [],
      text: expect.stringContaining('"/etc/nix/fleet/id_ed25519"') as string,
    });
  });

  it("writes one form under its usual name", () => {
    writeClient(fleet, { form: "nixosModule", directory });
    expect(read("fleet.nix")).toContain("dev-x86");
  });

  it("writes the plain files with the shared key, readable by nobody else, and the caches", () => {
    writeClient(fleet, { directory });
    expect(read("id_ed25519")).toBe("SHARED\n");
    expect(statSync(`${directory}/id_ed25519`).mode & 0o777).toBe(0o600);
    expect(read("machines")).toContain(`${directory}/id_ed25519`);
    expect(read("nix.conf")).toContain("extra-substituters = https://cache.example.org");
  });

  it("gives this checkout's own client the same caches", () => {
    const own = { ...fleet, stack: `client-test-${process.pid}` };
    try {
      expect(readFileSync(`${writeOwnClient(own)}/nix.conf`, "utf8")).toBe(
        clientDirectoryFiles(own.builders, { ...own.clientSettings, directory: writeOwnClient(own), privateKey: "K" })[
          "nix.conf"
        ],
      );
      expect(readFileSync(`${writeOwnClient(own)}/nix.conf`, "utf8")).toContain(
        "extra-substituters = https://cache.example.org",
      );
    } finally {
      rmSync(stackDirectory(own.stack), { recursive: true, force: true });
    }
  });

  it("gives a client of the configuration its own key and profile", () => {
    writeClient(fleet, { directory, client: "ci" });
    expect(read("id_ed25519")).toBe("CI\n");
    expect(read("nix.conf")).toContain("max-jobs = 0");
  });

  it("writes no key for a client that keeps its own", () => {
    const result = writeClient(fleet, { directory, client: "alice" });
    expect(result).toMatchObject({ needsOwnKey: true, files: ["machines", "nix.conf", "ssh_config", "known_hosts"] });
  });

  const paths = (name: string) => read(name).match(/\/\S+(?=\/(id_ed25519|known_hosts|machines|nix-%i))/g);

  it("names another folder in the files that it writes where a person says that they will lie there", () => {
    const result = writeClient(fleet, { directory, client: "ci", installedAt: "/srv/fleet/" });
    expect(result).toMatchObject({ directory, installedAt: "/srv/fleet" });
    for (const name of ["machines", "nix.conf", "ssh_config"]) {
      expect(new Set(paths(name)), name).toEqual(new Set(["/srv/fleet"]));
    }
    // It is the same folder of the same owner: written again with other paths, no force is needed.
    writeClient(fleet, { directory, client: "ci" });
    expect(read("machines")).toContain(` ${directory}/id_ed25519 `);
    expect(writeClient(fleet, { form: "nixosModule", installedAt: "/srv/fleet" })).toEqual({
      notes: [],
      text: expect.stringContaining('"/srv/fleet/id_ed25519"') as string,
    });
  });

  it("names the configured folder for a client whose key, and so who, is on another machine", () => {
    expect(writeClient(fleet, { directory, client: "alice" })).toMatchObject({ installedAt: "/etc/nix/fleet" });
    for (const name of ["machines", "nix.conf", "ssh_config"]) {
      expect(new Set(paths(name)), name).toEqual(new Set(["/etc/nix/fleet"]));
    }
    writeClient(fleet, { directory, client: "alice", form: "machines" });
    expect(read("machines")).toContain(" /etc/nix/fleet/id_ed25519 ");
    writeClient(fleet, { directory, client: "alice", installedAt: directory });
    expect(read("machines")).toContain(` ${directory}/id_ed25519 `);
  });

  it("lets a person choose another profile", () => {
    writeClient(fleet, { directory, profile: "offline" });
    expect(read("machines").trim()).toBe("");
  });

  it("writes again over its own files", () => {
    writeClient(fleet, { directory });
    writeClient({ ...fleet, clientPrivateKey: "NEW\n" }, { directory });
    expect(read("id_ed25519")).toBe("NEW\n");
  });

  it.each(["machines", "nix.conf", "ssh_config", "known_hosts"])(
    "refuses a folder with somebody's %s, unless forced, and writes nothing there",
    (name) => {
      // Naming one of the builders proves nothing.
      writeFileSync(`${directory}/${name}`, "# dev-x86\n");
      expect(() => writeClient(fleet, { directory })).toThrow(
        `${directory} holds ${name} that this fleet did not write; choose another folder, or overwrite with --force`,
      );
      expect([read(name), readdirSync(directory)]).toEqual(["# dev-x86\n", [name]]);
      writeClient(fleet, { directory, force: true });
      expect(read(name)).not.toBe("# dev-x86\n");
    },
  );

  it("refuses a folder of another fleet whose stack and builders are called the same", () => {
    writeClient(fleet, { directory });
    const other = { ...fleet, adminPrivateKey: "OTHER ADMIN\n", clientPrivateKey: "OTHER\n" };
    expect(() => writeClient(other, { directory })).toThrow(/holds id_ed25519 of another fleet;.*--force/);
    expect(read("id_ed25519")).toBe("SHARED\n");
    writeClient(other, { directory, force: true });
    expect(read("id_ed25519")).toBe("OTHER\n");
    writeClient(other, { directory });
  });

  it.each([false, true])("never overwrites a private key that no fleet made (forced: %s)", (force) => {
    writeFileSync(`${directory}/id_ed25519`, "MINE\n");
    const message =
      /id_ed25519 is a private key that this fleet did not make, and is never overwritten; choose another/;
    expect(() => writeClient(fleet, { directory, force })).toThrow(message);
    // Not either where the fleet wrote all the rest: alice put her own key beside it, as she was told to.
    rmSync(`${directory}/id_ed25519`);
    writeClient(fleet, { directory, client: "alice", force });
    writeFileSync(`${directory}/id_ed25519`, "MINE\n");
    expect(() => writeClient(fleet, { directory, force })).toThrow(message);
    expect(() => writeClient(fleet, { directory, client: "ci", force })).toThrow(message);
    expect(read("id_ed25519")).toBe("MINE\n");
    writeClient(fleet, { directory, client: "alice", profile: "balanced" });
    expect(read("id_ed25519")).toBe("MINE\n");
  });

  it("refuses to turn one client's folder into another's, unless forced", () => {
    writeClient(fleet, { directory, client: "ci" });
    expect(() => writeClient(fleet, { directory })).toThrow(
      /holds nix.conf, id_ed25519 of another client of this fleet/,
    );
    writeClient(fleet, { directory, force: true });
    expect(read("id_ed25519")).toBe("SHARED\n");
  });

  it("refuses what somebody changed since, and writes what it did not write so far", () => {
    writeClient(fleet, { directory });
    writeClient(fleet, { directory, form: "nixosModule" });
    writeFileSync(`${directory}/nix.conf`, `${read("nix.conf")}cores = 3\n`);
    writeClient(fleet, { directory, form: "nixosModule", profile: "balanced" });
    expect(() => writeClient(fleet, { directory, profile: "balanced" })).toThrow(
      /holds nix.conf that somebody changed since this fleet wrote it/,
    );
    expect(read("nix.conf")).toContain("cores = 3");
  });

  it("takes a folder without a marker whose files are as they would be written", () => {
    writeClient(fleet, { directory });
    rmSync(`${directory}/.nix-builder-fleet.json`);
    writeClient(fleet, { directory });
    writeClient(fleet, { directory, profile: "balanced" });
    expect(read("nix.conf")).toContain("max-jobs = auto");
  });

  it("names root's key beside the configured directory in the system modules, wherever they are written", () => {
    for (const form of ["nixosModule", "darwinModule"] as const) {
      expect(writeClient(fleet, { form })).toEqual({
        notes: [],
        text: expect.stringContaining(`"/etc/nix/fleet/id_ed25519"`) as string,
      });
    }
    writeClient(fleet, { form: "nixosModule", directory });
    expect(read("fleet.nix")).toContain(`"/etc/nix/fleet/id_ed25519"`);
    writeClient(fleet, { form: "machines", directory });
    expect(read("machines")).toContain(` ${directory}/id_ed25519 `);
  });

  it("names the user's own key in the home-manager module, not one that only root can read", () => {
    const { text } = writeClient(fleet, { form: "homeManagerModule" }) as { text: string };
    expect(text).toContain("IdentityFile ~/.ssh/nix-builder-fleet_ed25519\n");
    expect(text).not.toContain("/etc/nix/fleet");
  });

  it.each([
    ["an unknown form", { form: "toml" }, /form is "toml", but allowed is one of nixosModule, /],
    [
      "an unknown client",
      { directory: "x", client: "bob" },
      /client 'bob' is not in the configuration; the clients are ci, alice/,
    ],
    [
      "an unknown profile",
      { form: "nixConf", profile: "turbo" },
      /profile 'turbo' does not exist; the profiles are remote-only, /,
    ],
    [
      "a folder on the client that depends on where one is",
      { directory: "x", installedAt: "./fleet" },
      /--installed-at is "\.\/fleet", but allowed is an absolute path/,
    ],
    ["neither folder nor form", {}, /name a folder to write to, or a form to print: --form nixosModule \| /],
  ])("says what is allowed instead of %s", (_, choice, message) => {
    expect(() => writeClient(fleet, choice)).toThrow(message);
  });

  it("says with what else a form goes that can't express something", () => {
    const [builder] = fleet.builders;
    if (builder === undefined) throw new Error("no builder");
    const odd = { ...fleet, builders: [{ ...builder, port: 2222 }] };
    expect(() => writeClient(odd, { form: "buildersOption" })).toThrow(
      /Nix 2.31.*--nix-version 2.31.*machines and sshConfig/,
    );
    expect(writeClient(odd, { form: "buildersOption", nixVersion: "2.31" })).toEqual({
      notes: [],
      text: expect.stringContaining("ssh-ng://nix-builder@192.0.2.7:2222 ") as string,
    });
  });

  it("lists every form with what it is", () => {
    expect(describeForms()).toMatch(/^ {2}nixosModule +a NixOS module/);
  });
});
