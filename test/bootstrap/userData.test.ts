import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { randomBytes } from "node:crypto";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { defaultBuildLimits } from "../../src/bootstrap/defaults.ts";
import { ec2UserDataLimit, instanceUserData } from "../../src/bootstrap/userData.ts";
import { currentRelease } from "../../src/nixosRelease.ts";

const builderNix = readFileSync(resolve(import.meta.dirname, "../../nixos/builder.nix"), "utf8");

const directory = mkdtempSync(join(tmpdir(), "fleet-user-data-"));
afterAll(() => {
  rmSync(directory, { recursive: true });
});
execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", join(directory, "key")]);
const hostPrivateKey = readFileSync(join(directory, "key"), "utf8");
const hostPublicKey = readFileSync(join(directory, "key.pub"), "utf8");

const birth = {
  hostPrivateKey,
  hostPublicKey,
  clients: [{ publicKey: "ssh-ed25519 AAAACLIENT", trust: "signed" }],
  adminPublicKey: "ssh-ed25519 AAAAADMIN",
  parameters: {
    provider: "aws",
    maxJobs: null,
    ...defaultBuildLimits,
    systemFeatures: ["big-parallel"],
    keepDays: 14,
    trustedClients: false,
    automaticUpgrades: false,
  },
  builderNix,
  nixosRelease: currentRelease,
} as const;

describe("an instance's user data", () => {
  it("is a script, by which the image tells it from a Nix expression", () => {
    expect(instanceUserData(birth)).toMatch(/^#!/);
    execFileSync("bash", ["-n"], { input: instanceUserData(birth) });
  });

  it("has a '|' in the line of the private key alone: the image takes every such line for a part of the key", () => {
    const lines = instanceUserData(birth)
      .split("\n")
      .filter((line) => line.includes("|"));
    expect(lines).toHaveLength(1);
    expect(lines[0]).toMatch(/^SSH_HOST_ED25519_KEY:-----BEGIN OPENSSH PRIVATE KEY-----\|.*\|-----END/);
  });

  it("leaves room below the limit, and says so when there is none", () => {
    expect(Buffer.byteLength(instanceUserData(birth))).toBeLessThan(ec2UserDataLimit / 2);
    const clients = Array.from({ length: 300 }, () => {
      return { publicKey: `ssh-ed25519 ${randomBytes(51).toString("base64")}`, trust: "none" } as const;
    });
    expect(() => instanceUserData({ ...birth, clients })).toThrow(
      /the user data has \d+ bytes, but EC2 allows only 16384; configure fewer clients/,
    );
  });
});

const root = mkdtempSync(join(tmpdir(), "fleet-nixos-root-"));
const namespaces = (() => {
  try {
    execFileSync("unshare", ["--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], { stdio: "pipe" });
    return process.getuid?.() === 0;
  } catch {
    return false;
  }
})();
if (!namespaces)
  console.warn("skipped: the user data is run as root in a mount namespace, which this machine does not allow");

/** The steps of the NixOS image at a boot: `apply-ec2-data`, then `amazon-init`. Quoted from nixpkgs (MIT). */
const boot = `set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
cd /mnt
mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
cd root
mount --rbind /dev dev
for folder in etc/ssh etc/nixos etc/ec2-metadata nix var/log; do
  mkdir -p ${root}/$folder $folder
  mount --bind ${root}/$folder $folder
done
mkdir -p ./${root}
mount --bind ${root} ./${root}
exec chroot . bash <<'BOOT'
set -eu
userData=/etc/ec2-metadata/user-data
key="$(sed 's/|/\\n/g; s/SSH_HOST_ED25519_KEY://; t; d' $userData)"
key_pub="$(sed 's/SSH_HOST_ED25519_KEY_PUB://; t; d' $userData)"
if [ -n "$key" ] && [ -n "$key_pub" ] && [ ! -e /etc/ssh/ssh_host_ed25519_key ]; then
  (umask 077; echo "$key" > /etc/ssh/ssh_host_ed25519_key)
  echo "$key_pub" > /etc/ssh/ssh_host_ed25519_key.pub
fi
export PATH=${root}/bin:$PATH
IFS= LC_ALL=C read -rN2 shebang < $userData && [ "$shebang" = '#!' ]
exec bash $userData </dev/null
BOOT
`;

/** One boot; returns the exit code of the script. */
function bootOnce(): number {
  try {
    execFileSync("unshare", ["--mount", "bash", "-c", boot], { stdio: "pipe", timeout: 20_000 });
    return 0;
  } catch (error) {
    if (typeof error === "object" && error !== null && "status" in error && typeof error.status === "number") {
      return error.status;
    }
    throw error;
  }
}

describe.skipIf(!namespaces)("booting the NixOS image with it", () => {
  const file = (path: string): string => readFileSync(join(root, path), "utf8");
  const program = (name: string, script: string): void => {
    writeFileSync(join(root, "bin", name), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  };
  const rebuilds = (): number => (existsSync(join(root, "rebuilds")) ? file("rebuilds").split("\n").length - 1 : 0);

  beforeAll(() => {
    mkdirSync(join(root, "bin"));
    mkdirSync(join(root, "etc/ec2-metadata"), { recursive: true });
    mkdirSync(join(root, "etc/nixos"), { recursive: true });
    writeFileSync(join(root, "etc/ec2-metadata/user-data"), instanceUserData(birth));
    writeFileSync(join(root, "etc/nixos/configuration.nix"), "# the image's own\n");
    program("sleep", "exit 0");
    program("nix-channel", `echo "$@" >>${root}/channels; mkdir -p /nix/var/nix/profiles/per-user/root/channels/nixos`);
  });
  afterAll(() => {
    rmSync(root, { recursive: true });
  });

  it("keeps a failed rebuild to be tried again at the next boot, with the reason for those who wait", () => {
    program("nixos-rebuild", `echo "$@" >>${root}/rebuilds; exit 1`);
    expect(bootOnce()).toBe(1);
    expect(file("etc/nixos/nix-builder/state")).toBe("failed: nixos-rebuild ended with an error\n");
    expect(existsSync(join(root, "etc/nixos/nix-builder/applied"))).toBe(false);
    expect(rebuilds()).toBe(5);
  });

  it("has the pinned host key before sshd starts, whole", () => {
    expect(file("etc/ssh/ssh_host_ed25519_key").trim()).toBe(hostPrivateKey.trim());
    const read = execFileSync("ssh-keygen", ["-y", "-f", join(root, "etc/ssh/ssh_host_ed25519_key")]);
    expect(String(read).trim()).toBe(hostPublicKey.trim());
    expect(file("etc/ssh/ssh_host_ed25519_key.pub").trim()).toBe(hostPublicKey.trim());
  });

  it("rebuilds at the next boot, into the builder on top of what the image was configured with", () => {
    program("nixos-rebuild", `echo "$@" >>${root}/rebuilds`);
    expect(bootOnce()).toBe(0);
    expect(rebuilds()).toBe(6);
    expect(file("rebuilds")).toContain("switch");
    expect(file("etc/nixos/nix-builder/builder.nix")).toBe(builderNix);
    expect(JSON.parse(file("etc/nixos/nix-builder/parameters.json"))).toEqual(birth.parameters);
    expect(file("etc/nixos/nix-builder/keys/nix-builder")).toBe("restrict ssh-ed25519 AAAACLIENT\n");
    expect(file("etc/nixos/nix-builder/keys/root")).toBe("ssh-ed25519 AAAAADMIN\n");
    expect(file("etc/nixos/nix-builder-image.nix")).toBe("# the image's own\n");
    expect(file("etc/nixos/configuration.nix")).toContain("./nix-builder/builder.nix");
    expect(file("etc/nixos/nix-builder/state")).toBe("running\n");
    expect(file("channels")).toContain(`nixos-${currentRelease} nixos`);
  });

  it("does nothing at later boots, so that what was changed over SSH stays", () => {
    writeFileSync(join(root, "etc/nixos/nix-builder/keys/root"), "changed\n");
    expect(bootOnce()).toBe(0);
    expect(rebuilds()).toBe(6);
    expect(file("etc/nixos/nix-builder/keys/root")).toBe("changed\n");
  });
});
