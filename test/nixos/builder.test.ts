import { execFileSync, spawnSync } from "node:child_process";
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { resolve } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import * as z from "zod";
import { keyFiles, moduleFiles, type BuilderParameters } from "../../src/bootstrap/builderFiles.ts";

const directory = mkdtempSync(`${tmpdir()}/builder-nix-`);
afterAll(() => {
  rmSync(directory, { recursive: true });
});

const parameters: BuilderParameters = {
  provider: "hcloud",
  maxJobs: null,
  systemFeatures: ["big-parallel", "kvm"],
  keepDays: 14,
  automaticUpgrades: false,
};

const service = z.looseObject({ script: z.string().optional() });
const evaluated = z.object({
  nix: z.object({ settings: z.record(z.string(), z.unknown()), extraOptions: z.string() }),
  services: z.object({
    openssh: z.looseObject({
      authorizedKeysFiles: z.array(z.string()),
      settings: z.record(z.string(), z.union([z.string(), z.number(), z.boolean(), z.array(z.string())])),
      extraConfig: z.string(),
      hostKeys: z.array(z.object({ path: z.string(), type: z.string() })),
    }),
  }),
  systemd: z.object({ services: z.record(z.string(), service) }),
  system: z.object({ autoUpgrade: z.object({ enable: z.boolean() }) }),
  networking: z.object({ firewall: z.object({ extraCommands: z.string() }) }),
});

/** Has the real Nix evaluate nixos/builder.nix with these parameters, over a stub of nixpkgs. */
function evaluate(changed: Partial<BuilderParameters> = {}): z.infer<typeof evaluated> {
  const own = mkdtempSync(`${directory}/`);
  const builderNix = readFileSync(resolve(import.meta.dirname, "../../nixos/builder.nix"), "utf8");
  for (const [name, text] of Object.entries(moduleFiles({ ...parameters, ...changed }, builderNix))) {
    writeFileSync(`${own}/${name}`, text);
  }
  writeFileSync(`${own}/nix.conf`, "build-users-group =\n");
  copyFileSync(`${import.meta.dirname}/stub.nix`, `${own}/stub.nix`);
  const expression = `import ${own}/stub.nix { directory = ${own}; }`;
  const env = {
    ...process.env,
    NIX_STATE_DIR: `${own}/state`,
    NIX_REMOTE: `local?root=${own}/root`,
    NIX_CONF_DIR: own,
  };
  const json = execFileSync(
    "nix-instantiate",
    ["--eval", "--strict", "--json", "--read-write-mode", "--expr", expression],
    {
      encoding: "utf8",
      env,
      timeout: 20_000,
    },
  );
  // Store paths are below a root of the test's own.
  return evaluated.parse(JSON.parse(json.replaceAll("/nix/store/", `${own}/root/nix/store/`)));
}

describe("nixos/builder.nix, evaluated by Nix over a stub of nixpkgs", () => {
  const builder = evaluate();

  it("gives sshd a configuration that it accepts, with keys alone and the client bound to the forced command", () => {
    const { settings, extraConfig, authorizedKeysFiles } = builder.services.openssh;
    const own = mkdtempSync(`${directory}/`);
    execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", `${own}/key`]);
    const value = (given: (typeof settings)[string]): string =>
      Array.isArray(given) ? given.join(" ") : typeof given === "boolean" ? (given ? "yes" : "no") : String(given);
    const lines = Object.entries(settings).map(([name, given]) => `${name} ${value(given)}`);
    writeFileSync(
      `${own}/sshd_config`,
      [`HostKey ${own}/key`, `AuthorizedKeysFile ${authorizedKeysFiles.join(" ")}`, ...lines, extraConfig].join("\n"),
    );
    const effective = (user: string): string =>
      execFileSync("/usr/sbin/sshd", ["-T", "-f", `${own}/sshd_config`, "-C", `user=${user},host=h,addr=192.0.2.1`], {
        encoding: "utf8",
      });
    const client = effective("nix-builder");
    expect(client).toMatch(/^forcecommand .*nix-builder-ssh$/m);
    expect(client).toMatch(/^disableforwarding yes$/m);
    expect(client).toMatch(/^permittty no$/m);
    expect(client).toMatch(/^passwordauthentication no$/m);
    expect(client).toMatch(/^maxstartups 100:30:200$/m);
    expect(client).toMatch(/^authorizedkeysfile \/etc\/nixos\/nix-builder\/keys\/%u$/m);
    expect(effective("root")).toMatch(/^forcecommand none$/m);
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

  it("tells Nix the configured features, trusts the builder user, and sizes the rest on the machine", () => {
    expect(builder.nix.settings).toMatchObject({
      "system-features": ["big-parallel", "kvm"],
      "trusted-users": ["root", "nix-builder"],
      sandbox: true,
    });
    expect(builder.nix.extraOptions).toBe("!include /run/nix-builder/nix.conf");
    const own = mkdtempSync(`${directory}/`);
    const script = (builder.systemd.services["nix-builder-sizes"]?.script ?? "")
      .replaceAll("/run/nix-builder", own)
      .replace("/nix/store", "/");
    execFileSync("bash", ["-eu"], { input: script });
    const cpus = execFileSync("nproc", { encoding: "utf8" }).trim();
    expect(readFileSync(`${own}/nix.conf`, "utf8")).toMatch(
      new RegExp(`^max-jobs = ${cpus}\ncores = 2\nmin-free = [1-9]\\d{6,}\nmax-free = [1-9]\\d{6,}\n$`),
    );
  });

  it("takes maxJobs where it is configured", () => {
    expect(evaluate({ maxJobs: 3 }).systemd.services["nix-builder-sizes"]?.script).toContain("jobs=3\n");
  });

  it("has no syntax error in any of its scripts", () => {
    for (const [name, { script }] of Object.entries(builder.systemd.services)) {
      const check = spawnSync("bash", ["-n"], { input: script ?? "", encoding: "utf8" });
      expect(check, `${name}: ${check.stderr}`).toMatchObject({ status: 0 });
    }
  });

  it("upgrades itself only when told to, and is born from user data only at Hetzner", () => {
    expect(builder.system.autoUpgrade.enable).toBe(false);
    expect(evaluate({ automaticUpgrades: true }).system.autoUpgrade.enable).toBe(true);
    expect(builder.systemd.services["nix-builder-birth"]?.script).toContain("169.254.169.254");
    expect(evaluate({ provider: "aws" }).systemd.services["nix-builder-birth"]).toEqual({});
  });

  it("keeps builds away from the metadata service", () => {
    expect(builder.networking.firewall.extraCommands).toMatch(
      /-d 169\.254\.169\.254 -m owner ! --uid-owner 0 -j REJECT/,
    );
  });
});

describe("a builder's key files", () => {
  it("never lets the client's key near root", () => {
    const files = keyFiles({ clientPublicKey: "ssh-ed25519 AAAAclient", adminPublicKey: "ssh-ed25519 AAAAadmin" });
    expect(files).toEqual({
      "keys/root": "ssh-ed25519 AAAAadmin\n",
      "keys/nix-builder": "restrict ssh-ed25519 AAAAclient\n",
    });
  });
});
