import { spawnSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import { defaultBuildLimits } from "../../src/bootstrap/defaults.ts";
import { parse } from "yaml";
import * as z from "zod";
import { cloudConfig, type Birth } from "../../src/bootstrap/cloudConfig.ts";
import { conversionScript } from "../../src/bootstrap/conversion.ts";

const conversion = {
  repository: "https://git.example/nixos-infect",
  commit: "0123456789012345678901234567890123456789",
  nixosRelease: "25.11",
};
const birth: Birth = {
  hostPrivateKey: "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----\n",
  hostPublicKey: "ssh-ed25519 AAAAhost",
  adminPublicKey: "ssh-ed25519 AAAAadmin",
  clients: [{ publicKey: "ssh-ed25519 AAAAclient", trust: "signed" }],
  parameters: {
    provider: "hcloud",
    maxJobs: null,
    ...defaultBuildLimits,
    trustedClients: false,
    systemFeatures: [],
    keepDays: 14,
    automaticUpgrades: false,
  },
  builderNix: "{ }\n",
  conversion,
};
const config = z.looseObject({
  ssh_keys: z.object({ ed25519_private: z.string(), ed25519_public: z.string() }),
  users: z.array(z.looseObject({ name: z.string(), ssh_authorized_keys: z.array(z.string()) })),
  write_files: z.array(z.object({ path: z.string(), permissions: z.string(), content: z.string() })),
  runcmd: z.array(z.array(z.string())).optional(),
});

describe("a server's user data", () => {
  const text = cloudConfig(birth);
  const parsed = config.parse(parse(text));

  it("is cloud-config as YAML, and JSON below its first line for a snapshot's birth service", () => {
    expect(text.startsWith("#cloud-config\n")).toBe(true);
    expect(JSON.parse(text.slice(text.indexOf("\n")))).toEqual(parsed);
  });

  it("pins the host key, by which cloud-init generates none", () => {
    expect(parsed.ssh_keys).toEqual({
      ed25519_private: birth.hostPrivateKey,
      ed25519_public: "ssh-ed25519 AAAAhost\n",
    });
  });

  it("lets the administrator alone be root: nixos-infect would strip the restriction from the client's key", () => {
    expect(parsed.users).toMatchObject([{ name: "root", ssh_authorized_keys: ["ssh-ed25519 AAAAadmin"] }]);
    const client = parsed.write_files.filter(({ content }) => content.includes("AAAAclient"));
    expect(client).toMatchObject([
      { path: "/etc/nixos/nix-builder/keys/nix-builder", content: "restrict ssh-ed25519 AAAAclient\n" },
    ]);
  });

  it("converts Debian, but not a snapshot, which has nothing applied until it was compared", () => {
    expect(parsed.runcmd).toEqual([["sh", "/var/lib/nix-builder-convert"]]);
    const snapshot = config.parse(parse(cloudConfig({ ...birth, conversion: undefined })));
    expect(snapshot.runcmd).toBeUndefined();
    const names = snapshot.write_files.map(({ path }) => path.replace("/etc/nixos/nix-builder/", ""));
    expect(names).toEqual([
      "builder.nix",
      "parameters.json",
      "keys/root",
      "keys/nix-builder",
      "keys/nix-builder-trusted",
      "born",
    ]);
  });

  it("is refused when it is larger than Hetzner accepts", () => {
    expect(() => cloudConfig({ ...birth, builderNix: "x".repeat(32 * 1024) })).toThrow(/32768/);
  });
});

describe("the conversion", () => {
  const script = conversionScript(conversion);

  it("is a POSIX shell script without syntax errors", () => {
    const { status, stderr } = spawnSync("sh", ["-n"], { input: script, encoding: "utf8" });
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
  });

  it("runs nixos-infect at the pinned commit, checked by git, with the builder's module", () => {
    expect(script).toContain(`git fetch -q --depth 1 '${conversion.repository}' ${conversion.commit}`);
    expect(script).toContain(`[ "$(git rev-parse FETCH_HEAD)" = ${conversion.commit} ]`);
    expect(script).toMatch(/NIX_CHANNEL=nixos-25\.11 NIXOS_IMPORT=\.\/nix-builder\/builder\.nix .*nixos-infect/);
  });
});
