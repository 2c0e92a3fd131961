import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { execa } from "execa";
import { afterAll, describe, expect, it } from "vitest";
import { defaultBuildLimits } from "../../src/bootstrap/defaults.ts";
import { cloudConfig, type Birth } from "../../src/bootstrap/cloudConfig.ts";
import { currentRelease, pinnedNix, pinnedNixpkgs } from "../../src/nixosRelease.ts";
import { findCloudInit } from "../../tools/setup/cloudInit.ts";
import { thisHost } from "../../tools/setup/host.ts";

const directory = mkdtempSync(join(tmpdir(), "fleet-cloud-init-"));
afterAll(() => {
  rmSync(directory, { recursive: true });
});
const cloudInit = await findCloudInit(thisHost()).catch((error: unknown) => {
  console.log(`skipped: cloud-config read by cloud-init. ${error instanceof Error ? error.message : String(error)}`);
  return undefined;
});

/** What `cloud-init schema` says to a text. */
async function judge(text: string): Promise<{ exitCode: number | undefined; said: string }> {
  if (cloudInit === undefined) throw new Error("no cloud-init");
  const file = join(directory, "user-data");
  writeFileSync(file, text);
  const words = ["-W", "ignore", "-m", "cloudinit.cmd.main", "schema", "--config-file", file];
  const { exitCode, all } = await execa(cloudInit.python, words, {
    env: { PYTHONPATH: cloudInit.path, PYTHONDONTWRITEBYTECODE: "1" },
    reject: false,
    all: true,
  });
  return { exitCode, said: all };
}

function keyPair(name: string): { privateKey: string; publicKey: string } {
  const path = join(directory, name);
  execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path]);
  return { privateKey: readFileSync(path, "utf8"), publicKey: readFileSync(`${path}.pub`, "utf8") };
}

describe.skipIf(cloudInit === undefined)("real cloud-init", { timeout: 60_000 }, () => {
  const host = keyPair("host");
  const birth: Birth = {
    hostPrivateKey: host.privateKey,
    hostPublicKey: host.publicKey,
    adminPublicKey: keyPair("admin").publicKey,
    clients: [{ publicKey: keyPair("client").publicKey, trust: "signed" }],
    parameters: {
      provider: "hcloud",
      maxJobs: null,
      ...defaultBuildLimits,
      systemFeatures: ["big-parallel"],
      keepDays: 14,
      trustedClients: false,
      automaticUpgrades: false,
    },
    builderNix: readFileSync(resolve(import.meta.dirname, "../../nixos/builder.nix"), "utf8"),
    hcloudNix: readFileSync(resolve(import.meta.dirname, "../../nixos/hcloud.nix"), "utf8"),
    conversion: {
      system: "x86_64-linux",
      nix: pinnedNix["x86_64-linux"],
      nixpkgs: pinnedNixpkgs[currentRelease],
    },
  };

  it.each([
    ["a server that is converted", birth],
    ["a server from a snapshot", { ...birth, conversion: undefined }],
  ])("finds the cloud-config of %s valid, nothing of it deprecated", async (_, one) => {
    const { exitCode, said } = await judge(cloudConfig(one));
    expect(exitCode, said).toBe(0);
    expect(said).toMatch(/^Valid/);
    expect(said).not.toMatch(/deprecat/i);
  });

  it("finds what is wrong, so that its word counts", async () => {
    const wrong = cloudConfig(birth).replace('"lock_passwd":true', '"lock_passwd":"perhaps"');
    expect(await judge(wrong)).toMatchObject({ exitCode: 1, said: expect.stringContaining("lock_passwd") as unknown });
  });
});
