import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { describe, expect, it } from "vitest";
import { defaultBuildLimits } from "../../src/bootstrap/defaults.ts";
import { parse } from "yaml";
import * as z from "zod";
import { cloudConfig, userDataLimit, type Birth } from "../../src/bootstrap/cloudConfig.ts";
import type { Conversion } from "../../src/bootstrap/conversion.ts";
import { currentRelease, pinnedNix, pinnedNixpkgs } from "../../src/nixosRelease.ts";

const nixos = (name: string): string => readFileSync(resolve(import.meta.dirname, `../../nixos/${name}`), "utf8");
const conversion: Conversion = {
  system: "x86_64-linux",
  nix: pinnedNix["x86_64-linux"],
  nixpkgs: pinnedNixpkgs[currentRelease],
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
  hcloudNix: "{ }\n",
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

  it("lets the administrator alone be root", () => {
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
      "hcloud.nix",
      "parameters.json",
      "keys/root",
      "keys/nix-builder",
      "keys/nix-builder-trusted",
      "born",
    ]);
  });

  it("leaves room for the keys that people add", () => {
    const whole = { ...birth, builderNix: nixos("builder.nix"), hcloudNix: nixos("hcloud.nix") };
    expect(Buffer.byteLength(cloudConfig(whole))).toBeLessThan((userDataLimit * 7) / 8);
  });

  it("is refused when it is larger than Hetzner accepts", () => {
    expect(() => cloudConfig({ ...birth, builderNix: "x".repeat(32 * 1024) })).toThrow(/32768/);
  });
});
