/** A Debian that boots under QEMU, for the slow tests: programs by apt, the Debian itself made once for all checkouts. */
import { cpSync, existsSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fingerprint, LaunchError } from "../launch.mjs";
import { installPackages } from "./apt.ts";
import { cached } from "./cache.ts";
import { run } from "./commands.ts";
import { findProgram, type Host } from "./host.ts";
import { step } from "./progress.ts";

/** What virtual machines start from. */
export interface BootableDebian {
  /** The emulator. */
  readonly qemu: string;
  readonly kernel: string;
  readonly initrd: string;
  /** Its file system, ext4 without a partition table. All virtual machines share it: none may write to it. */
  readonly disk: string;
}

/** Folder in which it finds what lies on a disk labelled CIDATA; cloud-init looks for its seed there, too. */
export const seedMount = "/run/seed";

/** The release that `hcloud.baseImage` names by default. */
const suite = "bookworm";

/**
 * With cloud-init as Debian configures it, the host keys that installing sshd makes (cloud-init has to delete them), and what
 * a builder needs: nothing can be installed later, as it reaches no network.
 */
const packages = [
  ...["systemd-sysv", "udev", "dbus", "linux-image-cloud-amd64", "initramfs-tools", "zstd", "e2fsprogs"],
  ...["cloud-init", "openssh-server", "git", "nix-bin", "busybox-static"],
];

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";

const options = [
  "--mode=root",
  "--variant=apt",
  `--keyring=${keyring}`,
  // A mirror may lag, and nothing but these tests ever runs it.
  `--aptopt=Acquire::Check-Valid-Until "false"`,
  `--include=${packages.join(",")}`,
  // Debian's own cloud images have a network manager that cloud-init can configure, and a locale that exists.
  `--customize-hook=chroot "$1" systemctl enable systemd-networkd`,
  `--customize-hook=echo "locale: C.UTF-8" >"$1/etc/cloud/cloud.cfg.d/50-locale.cfg"`,
  `--customize-hook=echo "LABEL=CIDATA ${seedMount} vfat ro,nofail" >"$1/etc/fstab"`,
];

/** Why no virtual machine can be had here; `undefined`: one can. */
export function virtualMachineObstacle(host: Host): string | undefined {
  if (host.platform !== "linux-x64") return `its Debian is one for Linux on x86_64, and this is ${host.platform}`;
  if (host.distribution === "other") return "its programs are installed with apt, and this is not a Debian or Ubuntu";
  if (!host.root) return "making its disk and listening on port 22 of loopback addresses needs root";
  return undefined;
}

/**
 * Installs QEMU and makes the disk, where they are missing.
 *
 * @throws {LaunchError} where there is an obstacle, or apt fails.
 */
export async function findBootableDebian(host: Host): Promise<BootableDebian> {
  const obstacle = virtualMachineObstacle(host);
  if (obstacle !== undefined) throw new LaunchError(`There is no virtual machine here: ${obstacle}.`);
  const qemu = await installed("qemu-system-x86_64", "qemu-system-x86");
  const name = `debian-${suite}-vm-${fingerprint(...options).slice(0, 12)}`;
  const directory = await cached(name, ["vmlinuz", "initrd.img", "disk"], async (draft) => {
    await installed("mmdebstrap", "mmdebstrap");
    await installed("mke2fs", "e2fsprogs");
    if (!existsSync(keyring)) await installPackages(["debian-archive-keyring"]);
    await step(
      `making a Debian (${suite}) for virtual machines with mmdebstrap`,
      () => makeDebian(draft),
      "about 2 minutes",
    );
  });
  const inside = (file: string): string => join(directory, file);
  return { qemu, kernel: inside("vmlinuz"), initrd: inside("initrd.img"), disk: inside("disk") };
}

async function makeDebian(draft: string): Promise<void> {
  const tree = join(draft, "tree");
  await run("mmdebstrap", [...options, suite, tree], { seconds: 1200 });
  // Started by QEMU itself: the disk needs no boot loader.
  for (const file of ["vmlinuz", "initrd.img"]) {
    const versioned = readdirSync(join(tree, "boot")).find((entry) => entry.startsWith(`${file}-`));
    if (versioned === undefined) throw new LaunchError(`Debian's kernel package holds no ${file}.`);
    cpSync(join(tree, "boot", versioned), join(draft, file));
  }
  await run("mke2fs", ["-q", "-t", "ext4", "-d", tree, join(draft, "disk"), "3G"], { seconds: 300 });
  rmSync(tree, { recursive: true });
}

/** Where the program is, after its package was installed if need be. */
async function installed(program: string, name: string): Promise<string> {
  const find = (): string | undefined => findProgram(program, ["/usr/sbin", "/sbin"]);
  if (find() === undefined) await step(`installing ${name} for a test with apt`, () => installPackages([name]));
  const path = find();
  if (path === undefined) throw new LaunchError(`Debian's package ${name} holds no ${program}.`);
  return path;
}
