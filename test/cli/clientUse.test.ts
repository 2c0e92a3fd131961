/** What a person is told to do with a client's folder, done by the real shell and read by the real ssh. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { explainUse, nixHere, type NixHere } from "../../src/cli/clientUse.ts";

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(`${tmpdir()}/fleet-use-`);
});
afterEach(() => {
  rmSync(directory, { recursive: true });
});

const written = {
  directory: "/d",
  installedAt: "/d",
  files: ["id_ed25519"],
  needsOwnKey: false,
  stores: ["ssh-ng://u@dev-x86"],
  notes: [],
};
const singleUser: NixHere = { daemon: false, root: false, sudo: "sudo ", platform: "linux" };
const explain = (changed: Partial<typeof written> = {}, here: Partial<NixHere> = {}) =>
  explainUse({ ...written, ...changed }, "npx fleet client --installed-at /etc/nix/fleet /d", {
    ...singleUser,
    ...here,
  });

describe("a person is told", () => {
  it("of the two variables where Nix reads them, and nowhere else", () => {
    expect(explain()).toContain("NIX_CONF_DIR=/d NIX_SSHOPTS='-F /d/ssh_config' nix-build");
    for (const here of [{ daemon: true }, { daemon: true, root: true }]) {
      expect(explain({}, here)).not.toMatch(/NIX_CONF_DIR|NIX_SSHOPTS/);
    }
  });

  it("to write files that root can have, for the daemon", () => {
    expect(explain({}, { daemon: true })).toContain("\n  npx fleet client --installed-at /etc/nix/fleet /d\n");
  });

  it("as root, how the daemon uses them, and whose the key is", () => {
    const said = explain({}, { daemon: true, root: true });
    expect(said).toContain("\n  sudo systemctl restart nix-daemon\n");
    expect(said).toContain("Root alone may read /d/id_ed25519");
    const mac = explain({}, { daemon: true, root: true, sudo: "", platform: "darwin" });
    expect(mac).toContain("\n  launchctl kickstart -k system/org.nixos.nix-daemon\n");
  });

  it("where the files work, if that isn't where they were written", () => {
    const said = explain({ installedAt: "/etc/nix/fleet", files: [], needsOwnKey: true });
    expect(said).toContain("The files work in /etc/nix/fleet of the client only");
    expect(said).toContain("own private key into /etc/nix/fleet/id_ed25519 (mode 0600)");
    expect(said).toContain('echo "include /etc/nix/fleet/nix.conf" >> /etc/nix/nix.conf');
    expect(said).not.toContain("NIX_CONF_DIR");
    expect(explain()).not.toContain("work in");
  });
});

/** The commands that a person is given for the daemon, run in a home and a configuration folder of the test's own. */
function follow(): void {
  const said = explain({ directory, installedAt: directory }, { daemon: true, root: true, sudo: "" });
  const [include = "", append = ""] = said.split("\n").filter((line) => line.startsWith("  sh -c"));
  for (const command of [include.replace("~root", `${directory}/home`), append.replace("/etc/nix", directory)]) {
    execFileSync("/bin/sh", ["-e"], { input: command, timeout: 10_000 });
  }
}

it.each([undefined, "Host dev-x86\n  HostName 192.0.2.99\n"])(
  "the daemon's steps reach root's ssh and Nix, whether root's ssh had a configuration or none: %j",
  (before) => {
    mkdirSync(`${directory}/home`);
    if (before !== undefined) {
      mkdirSync(`${directory}/home/.ssh`);
      writeFileSync(`${directory}/home/.ssh/config`, before);
    }
    writeFileSync(`${directory}/nix.conf`, "max-jobs = 1\n");
    writeFileSync(`${directory}/ssh_config`, "Host dev-x86\n  HostName 192.0.2.7\n");
    follow();
    const config = `${directory}/home/.ssh/config`;
    const resolved = execFileSync("ssh", ["-G", "-F", config, "dev-x86"], { encoding: "utf8", timeout: 10_000 });
    expect(resolved).toMatch(/^hostname 192\.0\.2\.7$/m);
    expect(readFileSync(config, "utf8")).toContain(before ?? "");
    expect(statSync(config).mode & 0o777).toBe(0o600);
    expect(readFileSync(`${directory}/nix.conf`, "utf8")).toBe(`max-jobs = 1\ninclude ${directory}/nix.conf\n`);
  },
);

describe("whether Nix builds by a daemon here", () => {
  it.each([
    ["local", false],
    ["local?root=/x", false],
    ["/x", false],
    ["daemon", true],
    ["unix:///x/socket", true],
  ])("is what NIX_REMOTE=%s says", (remote, daemon) => {
    expect(nixHere({ NIX_REMOTE: remote })).toMatchObject({ daemon });
  });

  it("depends on its socket otherwise, for whoever can't write to the store and for root", () => {
    const env = { NIX_STATE_DIR: directory };
    expect(nixHere(env).daemon).toBe(false);
    mkdirSync(`${directory}/daemon-socket`);
    writeFileSync(`${directory}/daemon-socket/socket`, "");
    // Whoever owns the state builds in it without a daemon; root sets the daemon up for the others.
    expect(nixHere(env).daemon).toBe(process.getuid?.() === 0);
  });
});
