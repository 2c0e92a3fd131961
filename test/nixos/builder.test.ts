import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { defaultsFor, type Size } from "../../src/bootstrap/defaults.ts";
import { keyFiles, type BuilderParameters } from "../../src/bootstrap/builderFiles.ts";
import { clientKeyTypes } from "../../src/ssh/hostKey.ts";
import { evaluateBuilder, sshdConfig } from "./evaluateBuilder.ts";

const directory = mkdtempSync(`${tmpdir()}/builder-nix-`);
afterAll(() => {
  rmSync(directory, { recursive: true });
});

/** Everything that an image of one's own may say otherwise, also last of all. */
const contrary = `{ lib, ... }: {
  services.openssh = {
    extraConfig = lib.mkAfter "MaxAuthTries 4\\n";
    authorizedKeysFiles = [ "/own" ];
    hostKeys = [ { type = "rsa"; path = "/etc/ssh/ssh_host_rsa_key"; } ];
    openFirewall = false;
    settings = {
      AllowUsers = [ "me" ];
      LoginGraceTime = 120;
      MaxSessions = 10;
      PasswordAuthentication = true;
      PermitRootLogin = "yes";
      X11Forwarding = true;
    };
  };
  nix.settings = {
    builders-use-substitutes = false;
    sandbox = "relaxed";
    system-features = [ "kvm" "own" ];
    timeout = 1;
    trusted-users = [ "*" ];
  };
  boot.tmp.cleanOnBoot = false;
  networking.firewall.enable = false;
  system.autoUpgrade = { enable = true; allowReboot = true; };
  services.logrotate.checkConfig = true;
  zramSwap.enable = false;
}`;

describe("nixos/builder.nix, evaluated by Nix over stubs of NixOS", () => {
  const evaluate = (changed?: Partial<BuilderParameters>) => evaluateBuilder(directory, changed);
  const builder = evaluate();

  it("gives sshd a configuration that it accepts, with keys alone and the client bound to the forced command", () => {
    const own = mkdtempSync(`${directory}/`);
    execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", `${own}/key`]);
    // Another module's line, last of its own, which a Match doesn't allow.
    const others = ['{ lib, ... }: { services.openssh.extraConfig = lib.mkAfter "UseDNS no\\n"; }'];
    const beside = evaluateBuilder(directory, {}, { others });
    writeFileSync(`${own}/sshd_config`, `HostKey ${own}/key\n${sshdConfig(beside).config}`);
    const effective = (user: string): string =>
      execFileSync("/usr/sbin/sshd", ["-T", "-f", `${own}/sshd_config`, "-C", `user=${user},host=h,addr=192.0.2.1`], {
        encoding: "utf8",
      });
    const client = effective("nix-builder");
    expect(client).toMatch(/^forcecommand .*nix-builder-ssh$/m);
    expect(client).toMatch(/^disableforwarding yes$/m);
    expect(client).toMatch(/^permittty no$/m);
    expect(client).toMatch(/^passwordauthentication no$/m);
    expect(client).toMatch(/^maxstartups 200:30:400$/m);
    expect(client).toMatch(/^logingracetime 20$/m);
    expect(client).toMatch(/^usedns no$/m);
    expect(client).toMatch(/^authorizedkeysfile \/etc\/nixos\/nix-builder\/keys\/%u$/m);
    expect(effective("root")).toMatch(/^forcecommand none$/m);
  });

  it("has no feature but those that the fleet says, whatever NixOS has itself", () => {
    expect(evaluate({ systemFeatures: ["benchmark"] }).nix.settings["system-features"]).toEqual(["benchmark"]);
  });

  it("counts, whatever an image of one's own says: the same configuration, but for that image's lines for sshd", () => {
    const { services, ...rest } = evaluateBuilder(directory, {}, { others: [contrary] });
    const { extraConfig, ...openssh } = services.openssh;
    expect(extraConfig).toContain("\nMaxAuthTries 4\n\nMatch User nix-builder\n");
    const { extraConfig: own, ...ours } = builder.services.openssh;
    const storeHash = (text: unknown) => JSON.stringify(text).replaceAll(/"[^"]*\/root\/nix\/store\//g, '"');
    expect(storeHash([openssh, rest])).toBe(storeHash([ours, { ...builder, services: undefined }]));
    expect(own).not.toContain("MaxAuthTries");
  });

  it("has another unit of Nix's daemon when a number of the fleet changes, so that a switch restarts it", () => {
    const triggers = (changed: Partial<BuilderParameters>) =>
      evaluate(changed).systemd.services["nix-daemon"]?.restartTriggers;
    expect(triggers({})).toEqual(triggers({}));
    expect(triggers({ maxJobs: 3 })).not.toEqual(triggers({}));
  });

  it("penalises no address, where OpenSSH would", () => {
    expect(builder.services.openssh.settings).not.toHaveProperty("PerSourcePenalties");
    expect(
      evaluateBuilder(directory, {}, { opensshVersion: "10.0p2" }).services.openssh.settings["PerSourcePenalties"],
    ).toBe("no");
  });

  it("has the limits of builds that the fleet says, as Nix's own settings", () => {
    expect(builder.nix.settings).toMatchObject({ timeout: 172_800, "max-silent-time": 0 });
    const limits = { timeout: 60, maxSilentTime: 30 };
    expect(evaluate(limits).nix.settings).toMatchObject({ timeout: 60, "max-silent-time": 30 });
  });

  it("lets in every kind of key that a client may have, by algorithms without SHA-1, and certificates not", () => {
    const own = mkdtempSync(`${directory}/`);
    const key = (name: string, ...words: string[]) => {
      execFileSync("ssh-keygen", ["-q", "-N", "", "-f", `${own}/${name}`, ...words]);
      return readFileSync(`${own}/${name}.pub`, "utf8");
    };
    key("host", "-t", "ed25519");
    const kinds = {
      ed25519: ["-t", "ed25519"],
      rsa: ["-t", "rsa", "-b", "3072"],
      p256: ["-t", "ecdsa", "-b", "256"],
      p384: ["-t", "ecdsa", "-b", "384"],
      p521: ["-t", "ecdsa", "-b", "521"],
    };
    const keys = Object.entries(kinds).map(([name, words]) => key(name, ...words));
    writeFileSync(`${own}/authorized_keys`, keys.map((line) => `command="echo in" ${line}`).join(""));
    // Of the module's own, all but where keys lie and who may log in: the test's user.
    const config = sshdConfig(builder)
      .config.replace(/^AuthorizedKeysFile .*$/m, `AuthorizedKeysFile ${own}/authorized_keys`)
      .replace(/^AllowUsers .*$/m, "StrictModes no");
    writeFileSync(`${own}/sshd_config`, `HostKey ${own}/host\n${config}`);
    const logIn = (name: string, ...options: string[]): string => {
      const proxy = `ProxyCommand=/usr/sbin/sshd -i -f ${own}/sshd_config`;
      const only = ["-F", "none", "-i", `${own}/${name}`, "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"];
      const pin = ["-o", "StrictHostKeyChecking=no", "-o", `UserKnownHostsFile=${own}/known_hosts`];
      const words = [...only, ...pin, "-o", proxy, ...options, "sshd-of-builder-nix", "x"];
      const { stdout, stderr } = spawnSync("ssh", words, { encoding: "utf8", timeout: 20_000 });
      return stdout === "in\n" ? "in" : stderr;
    };
    for (const name of Object.keys(kinds)) expect([name, logIn(name)]).toEqual([name, "in"]);
    expect(logIn("rsa", "-o", "PubkeyAcceptedAlgorithms=ssh-rsa")).not.toBe("in");
    const accepted = String(builder.services.openssh.settings["PubkeyAcceptedAlgorithms"]).split(",");
    const wanted = clientKeyTypes.flatMap((type) => (type === "ssh-rsa" ? ["rsa-sha2-256", "rsa-sha2-512"] : [type]));
    expect(accepted.toSorted()).toEqual(wanted.toSorted());
  });

  it("lets the forced command run the two store protocols and exit with 1 on anything else", () => {
    const path = /ForceCommand (\S+)/.exec(builder.services.openssh.extraConfig)?.[1] ?? "";
    const run = (command: string) =>
      spawnSync("/bin/sh", [path], { env: { PATH: "/nowhere", SSH_ORIGINAL_COMMAND: command }, encoding: "utf8" });
    // With no Nix on PATH, what is allowed ends with 127, "not found".
    expect(run("nix-daemon --stdio").stderr).toMatch(/nix-daemon.*not found/);
    expect(run("nix-store --serve --write").stderr).toMatch(/nix-store.*not found/);
    for (const refused of ["", "sh", "nix-daemon --stdio; id", "nix-store --serve", "nix-daemon  --stdio"]) {
      expect(run(refused)).toMatchObject({ status: 1, stdout: "" });
    }
  });

  it("has a user whom Nix trusts only where a client is fully trusted, and binds that one to the forced command too", () => {
    const users = (of: typeof builder) => [
      of.nix.settings["trusted-users"],
      of.services.openssh.settings["AllowUsers"],
    ];
    expect(users(builder)).toEqual([["root"], ["root", "nix-builder"]]);
    expect(Object.keys(builder.users.users)).toEqual(["nix-builder", "root"]);
    const trusting = evaluate({ trustedClients: true });
    expect(users(trusting)).toEqual([
      ["root", "nix-builder-trusted"],
      ["root", "nix-builder", "nix-builder-trusted"],
    ]);
    expect(Object.keys(trusting.users.users)).toEqual(["nix-builder", "nix-builder-trusted", "root"]);
    const own = mkdtempSync(`${directory}/`);
    execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", `${own}/key`]);
    writeFileSync(`${own}/sshd_config`, `HostKey ${own}/key\n${sshdConfig(trusting).config}`);
    for (const user of ["nix-builder", "nix-builder-trusted"]) {
      const words = ["-T", "-f", `${own}/sshd_config`, "-C", `user=${user},host=h,addr=192.0.2.1`];
      const effective = execFileSync("/usr/sbin/sshd", words, { encoding: "utf8" });
      expect(effective, user).toMatch(/^forcecommand .*nix-builder-ssh$/m);
      expect(effective, user).toMatch(/^disableforwarding yes$/m);
    }
  });

  it("tells Nix the configured features, and includes what the machine and the fleet say later", () => {
    expect(builder.nix.settings).toMatchObject({
      "system-features": ["big-parallel", "kvm"],
      sandbox: true,
    });
    expect(builder.nix.extraOptions).toBe(
      "!include /run/nix-builder/nix.conf\n!include /etc/nixos/nix-builder/signing/nix.conf\n",
    );
  });

  /** nix.conf as the builder writes it at its start, on a machine of this size. */
  function sizedSettings(size: Size, evaluated = builder): string {
    const own = mkdtempSync(`${directory}/`);
    writeFileSync(`${own}/meminfo`, `MemTotal:    ${size.memoryMiB * 1024} kB\nMemFree:    1 kB\n`);
    const printing = (text: string) => `#!/bin/sh\nprintf '${text}\\n'\n`;
    writeFileSync(`${own}/nproc`, printing(String(size.cpus)), { mode: 0o755 });
    const [all, free] = [size.diskMiB * 1024, size.diskFreeMiB * 1024];
    writeFileSync(`${own}/df`, printing(`1K-blocks    Avail\\n ${all} ${free}`), { mode: 0o755 });
    const script = (evaluated.systemd.services["nix-builder-sizes"]?.script ?? "")
      .replaceAll("/run/nix-builder", own)
      .replace("/proc/meminfo", `${own}/meminfo`);
    execFileSync("bash", ["-eu"], { input: script, env: { PATH: `${own}:${process.env["PATH"] ?? ""}` } });
    return readFileSync(`${own}/nix.conf`, "utf8");
  }

  it("sizes itself by the rules of all builders, whatever the machine", () => {
    const size = fc.record({
      cpus: fc.integer({ min: 1, max: 192 }),
      memoryMiB: fc.integer({ min: 400, max: 800_000 }),
      diskMiB: fc.integer({ min: 1000, max: 4_000_000 }),
      diskFreeMiB: fc.integer({ min: 0, max: 1_000_000 }),
    });
    fc.assert(
      fc.property(size, (machine) => {
        const { maxJobs, cores, minFreeMiB, maxFreeMiB } = defaultsFor(machine);
        const bytes = (mebibytes: number) => mebibytes * 2 ** 20;
        expect(sizedSettings(machine)).toBe(
          `max-jobs = ${maxJobs}\ncores = ${cores}\nmin-free = ${bytes(minFreeMiB)}\nmax-free = ${bytes(maxFreeMiB)}\n`,
        );
      }),
      { numRuns: 30 },
    );
  });

  it("takes maxJobs where it is configured, and gives out twice the processors over so many", () => {
    const machine = { cpus: 16, memoryMiB: 65_536, diskMiB: 100_000, diskFreeMiB: 90_000 };
    expect(sizedSettings(machine, evaluate({ maxJobs: 3 }))).toMatch(/^max-jobs = 3\ncores = 11\n/);
  });

  it("has no syntax error in any of its scripts", () => {
    for (const [name, { script }] of Object.entries(builder.systemd.services)) {
      const check = spawnSync("bash", ["-n"], { input: script, encoding: "utf8" });
      expect(check, `${name}: ${check.stderr}`).toMatchObject({ status: 0 });
    }
  });

  it("upgrades itself only when told to, and is born from user data only at Hetzner", () => {
    expect(builder.system.autoUpgrade.enable).toBe(false);
    expect(evaluate({ automaticUpgrades: true }).system.autoUpgrade.enable).toBe(true);
    const birth = builder.systemd.services["nix-builder-birth"];
    expect(birth?.script).toContain("169.254.169.254");
    // sshd-keygen would make a host key, and sshd would have it.
    expect(birth?.before).toEqual(["sshd-keygen.service", "sshd.service"]);
    expect(evaluate({ provider: "aws" }).systemd.services).not.toHaveProperty("nix-builder-birth");
  });

  it("leaves out logrotate's check at build time, which fails where Debian's Nix converts the machine", () => {
    expect(builder.services.logrotate.checkConfig).toBe(false);
  });

  it("keeps builds away from the metadata service", () => {
    expect(builder.networking.firewall.extraCommands).toMatch(
      /-d 169\.254\.169\.254 -m owner ! --uid-owner 0 -j REJECT/,
    );
  });
});

describe("a builder's key files", () => {
  it("never lets the client's key near root", () => {
    const files = keyFiles({
      clients: [
        { publicKey: "ssh-ed25519 AAAAclient", trust: "none" },
        { publicKey: "ssh-ed25519 AAAAother", trust: "signed" },
        { publicKey: "ssh-ed25519 AAAAroot", trust: "full" },
      ],
      adminPublicKey: "ssh-ed25519 AAAAadmin",
    });
    expect(files).toEqual({
      "keys/root": "ssh-ed25519 AAAAadmin\n",
      "keys/nix-builder": "restrict ssh-ed25519 AAAAclient\nrestrict ssh-ed25519 AAAAother\n",
      "keys/nix-builder-trusted": "restrict ssh-ed25519 AAAAroot\n",
      // What `fleet bake` asks for: once a client was root, it may have left something.
      "has-trusted-clients": "Clients at `trust: full` are, or were, root on this builder.\n",
    });
  });
});
