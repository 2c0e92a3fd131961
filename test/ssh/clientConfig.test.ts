/** ssh_config and known_hosts, read by OpenSSH itself. */
import { execFileSync } from "node:child_process";
import { chmodSync, chownSync, existsSync, mkdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { userInfo } from "node:os";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { parseKnownHosts, renderKnownHosts } from "../../src/ssh/knownHosts.ts";
import { canMultiplexIn, parseSshConfig, renderSshConfig, type SshConfigOptions } from "../../src/ssh/sshConfig.ts";
import { toHostKey } from "../../src/ssh/hostKey.ts";
import { directories, ed25519, fleets, x86 } from "../nix/fleets.ts";
import { temporaryDirectory } from "../nix/realNix.ts";

/** What ssh would do for `host`, keyword (in lower case) → value. */
function resolve(config: string, host: string, ...args: string[]): Map<string, string> {
  using directory = temporaryDirectory();
  const file = `${directory.path}/ssh_config`;
  writeFileSync(file, config);
  const text = execFileSync("ssh", ["-G", "-F", file, ...args, host], {
    encoding: "utf8",
    timeout: 10_000,
    stdio: ["ignore", "pipe", "pipe"],
  });
  return new Map(text.split("\n").map((line) => [line.split(" ", 1)[0] ?? "", line.slice(line.indexOf(" ") + 1)]));
}

describe("ssh resolves", () => {
  test("every host of any fleet to exactly the values meant", () => {
    fc.assert(
      fc.property(fleets(3), directories, (fleet, directory) => {
        const identityFile = `${directory}/id_ed25519`;
        const config = renderSshConfig(fleet, { identityFile, knownHostsFile: `${directory}/known_hosts` });
        for (const machine of fleet) {
          const values = resolve(config, `${machine.sshUser}@${machine.alias}`);
          expect(Object.fromEntries(values)).toMatchObject({
            hostname: machine.hostName,
            port: String(machine.port),
            user: machine.sshUser,
            identityfile: machine.sshKey ?? identityFile,
            identitiesonly: "yes",
            hostkeyalias: machine.alias,
            userknownhostsfile: `${directory}/known_hosts`,
            globalknownhostsfile: "/dev/null",
            stricthostkeychecking: "true",
            batchmode: "yes",
            updatehostkeys: "false",
            connecttimeout: "10",
            serveraliveinterval: "15",
            serveralivecountmax: "4",
            controlmaster: "false",
          });
        }
      }),
      { numRuns: 30 },
    );
  });

  test("ssh's own choice of key exchange, but for what doesn't leave this machine", () => {
    const keyExchanges = (hostName: string) => {
      const config = renderSshConfig([{ ...x86, hostName }], { identityFile: "/k" });
      return resolve(config, "x86").get("kexalgorithms");
    };
    expect(keyExchanges("127.1.2.3")).toBe("curve25519-sha256");
    expect(keyExchanges("203.0.113.7")).toBe(resolve("", "x86").get("kexalgorithms"));
  });

  test("nothing of it for a host that is no builder", () => {
    const config = renderSshConfig([x86], { identityFile: "/k", knownHostsFile: "/h" });
    expect(resolve(config, "x86-2").get("stricthostkeychecking")).toBe("ask");
    expect(resolve(config, "127.0.0.1").get("port")).toBe("22");
  });

  test("the pin of Nix's column 8 before the file, under the same alias", () => {
    const config = renderSshConfig([x86], { identityFile: "/k", knownHostsFile: "/h" });
    const values = resolve(config, "nix-builder@x86", "-oUserKnownHostsFile=/pin");
    expect([values.get("userknownhostsfile"), values.get("hostkeyalias")]).toEqual(["/pin", "x86"]);
  });

  test("without a known_hosts of its own: the system's, and no user's", () => {
    const values = resolve(renderSshConfig([x86], { identityFile: "/k" }), "x86");
    expect(values.get("userknownhostsfile")).toBe("/dev/null");
    expect(values.get("globalknownhostsfile")).toContain("/etc/ssh/ssh_known_hosts");
  });
});

describe("shared connections", () => {
  const options: SshConfigOptions = { identityFile: "/k" };

  test("lie in the directory, apart for each local user", () => {
    const values = resolve(renderSshConfig([x86], { ...options, multiplexing: { directory: "/var/fleet" } }), "x86");
    expect(values.get("controlmaster")).toBe("auto");
    expect(values.get("controlpersist")).toBe("60");
    expect(values.get("controlpath")).toMatch(new RegExp(`^/var/fleet/nix-${userInfo().uid}-[0-9a-f]{8}$`));
  });

  test("lie in ~/.ssh of whoever connects, which is made, where that and their home are theirs", () => {
    using directory = temporaryDirectory();
    const home = `${directory.path}/home`;
    const inside = `${home}/.ssh`;
    const { homedir, uid } = userInfo();
    // ssh asks the system for the home: the condition gets one of the test's own.
    const config = renderSshConfig([x86], { ...options, multiplexing: "home" }).replaceAll("%d", home);
    const shared = () => {
      const values = resolve(config, "x86");
      const path = new RegExp(`^${homedir}/.ssh/nix-${uid}-[0-9a-f]{8}$`).test(values.get("controlpath") ?? "");
      expect(values.get("controlmaster")).toBe(path ? "auto" : "false");
      return path;
    };
    // A fresh NixOS, where root has none yet.
    mkdirSync(home);
    expect([shared(), statSync(inside).mode & 0o777]).toEqual([true, 0o700]);
    chmodSync(inside, 0o755);
    expect([shared(), statSync(inside).mode & 0o777]).toEqual([true, 0o755]);
    rmSync(home, { recursive: true });
    expect([shared(), existsSync(home)]).toEqual([false, false]);
    if (uid !== 0) return;
    const stranger = 4711;
    mkdirSync(inside, { recursive: true });
    chownSync(inside, stranger, stranger);
    expect(shared()).toBe(false);
    rmSync(inside, { recursive: true });
    chownSync(home, stranger, stranger);
    expect([shared(), existsSync(inside)]).toEqual([false, false]);
  });

  test("are left to builders whose sshd allows as many sessions as they take jobs", () => {
    const config = (maxJobs: number, maxSessions?: number) =>
      renderSshConfig([{ ...x86, maxJobs }], {
        ...options,
        multiplexing: { directory: "/d" },
        ...(maxSessions && { maxSessions }),
      });
    const shared = [config(9), config(10), config(10, 100), config(100, 100)].map((text) =>
      text.includes("ControlMaster"),
    );
    expect(shared).toEqual([true, false, true, false]);
  });

  test("aren't found again by a builder with another host key, address or user", () => {
    const path = (machine: typeof x86) =>
      resolve(renderSshConfig([machine], { ...options, multiplexing: { directory: "/d" } }), "x86").get("controlpath");
    const others = [
      { ...x86, port: 1 },
      { ...x86, hostName: "::1" },
      { ...x86, publicHostKey: ed25519(new Uint8Array(32)) },
    ];
    expect(new Set([x86, ...others].map(path)).size).toBe(4);
  });

  test("are left out where the path of the socket would be too long, which would end ssh", () => {
    const longest = `/${"d".repeat(65)}`;
    expect([canMultiplexIn(longest), canMultiplexIn(`${longest}ddddd`)]).toEqual([false, false]);
    const config = renderSshConfig([x86], { ...options, multiplexing: { directory: longest } });
    expect(resolve(config, "x86").get("controlmaster")).toBe("false");
  });
});

describe("known_hosts", () => {
  test("ssh-keygen finds every builder by alias and by address, with its key", () => {
    fc.assert(
      fc.property(fleets(3), (fleet) => {
        using directory = temporaryDirectory();
        const file = `${directory.path}/known_hosts`;
        writeFileSync(file, renderKnownHosts(fleet));
        for (const machine of fleet) {
          const address = machine.port === 22 ? machine.hostName : `[${machine.hostName}]:${machine.port}`;
          for (const name of [machine.alias, address]) {
            const found = execFileSync("ssh-keygen", ["-F", name, "-f", file], {
              encoding: "utf8",
              timeout: 10_000,
              stdio: ["ignore", "pipe", "pipe"],
            });
            expect(found).toContain(toHostKey(machine.publicHostKey));
          }
        }
      }),
      { numRuns: 30 },
    );
  });

  test("can be read back", () => {
    fc.assert(
      fc.property(fleets(), (fleet) => {
        expect(parseKnownHosts(renderKnownHosts(fleet))).toEqual(
          fleet.map(({ alias, hostName, port, publicHostKey }) => ({ alias, hostName, port, publicHostKey })),
        );
      }),
    );
  });

  test("a line that pins nothing is refused", () => {
    expect(() => parseKnownHosts("x86\n")).toThrow(/known_hosts is "x86"/);
    expect(() => parseKnownHosts("a,b,c ssh-ed25519 AAAA\n")).toThrow(/ALIAS,ADDRESS/);
  });
});

test("ssh_config can be read back", () => {
  fc.assert(
    fc.property(fleets(), fc.constantFrom("off", "home"), (fleet, multiplexing) => {
      const options = { identityFile: "/fleet/id_ed25519", multiplexing } satisfies SshConfigOptions;
      expect(parseSshConfig(renderSshConfig(fleet, options), options)).toEqual(
        fleet.map(({ alias, hostName, port, sshUser, sshKey }) => ({
          alias,
          hostName,
          port,
          sshUser,
          ...(sshKey === undefined ? {} : { sshKey }),
        })),
      );
    }),
  );
});

test.each(["relative", "/a b", "/a%h", "/a${HOME}", "/a\nHost *"])("a path like %j is refused", (path) => {
  expect(() => renderSshConfig([x86], { identityFile: path })).toThrow(/identityFile is/);
  expect(() => renderSshConfig([x86], { identityFile: "/k", knownHostsFile: path })).toThrow(/knownHostsFile is/);
});
