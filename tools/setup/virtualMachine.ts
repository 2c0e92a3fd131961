/** A Debian that boots under QEMU, for the slow tests: programs by apt, the Debian itself made once for all checkouts. */
import { cpSync, existsSync, readdirSync, rmSync, truncateSync, writeFileSync } from "node:fs";
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
  /** Its firmware for UEFI; without it, it has a BIOS. */
  readonly uefi: string;
  /** Debian's own, for a first boot: there is no boot loader on the disk yet. */
  readonly kernel: string;
  readonly initrd: string;
  /** UUID of the root file system. */
  readonly root: string;
  /** Laid out as Hetzner's: GPT, a place for a BIOS boot loader, an EFI system partition. All virtual machines start from copies of it. */
  readonly disk: string;
}

/** Debian's releases that `hcloud.baseImage` may name. */
export type Suite = "bookworm" | "trixie";

/** Folder in which it finds what lies on a disk labelled CIDATA; cloud-init looks for its seed there, too. */
export const seedMount = "/run/seed";

/** In the virtual machine: an initrd of systemd's, made by dracut, for what stands in for NixOS. */
export const systemdInitrd = "/usr/local/lib/systemd-initrd";

/**
 * With cloud-init as Debian configures it, the host keys that installing sshd makes (cloud-init has to delete them), and what
 * a conversion and a builder need: nothing can be installed later, as it reaches no network.
 */
const packages = [
  ...["systemd-sysv", "udev", "dbus", "linux-image-cloud-amd64", "initramfs-tools", "zstd", "e2fsprogs"],
  ...["cloud-init", "iproute2", "openssh-server", "curl", "xz-utils", "nix-bin", "busybox-static"],
  ...["dosfstools", "grub2-common", "grub-pc-bin", "grub-efi-amd64-bin", "dracut-core", "cpio"],
];

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";

// As in NixOS's initrd, and what reads the EFI system partition.
const initrdPrograms = "cat chmod cp echo ln ls mkdir mv rm sleep sync";
const initrdModules = "ext4 vfat nls_ascii nls_cp437 nls_iso8859-1 virtio_blk virtio_pci virtio_scsi";

const options = [
  "--mode=root",
  "--variant=apt",
  `--keyring=${keyring}`,
  // A mirror may lag, and nothing but these tests ever runs it.
  `--aptopt=Acquire::Check-Valid-Until "false"`,
  `--include=${packages.join(",")}`,
  // Debian's own cloud images have a network manager that cloud-init can configure (with iproute2), and a locale that exists.
  `--customize-hook=chroot "$1" systemctl enable systemd-networkd`,
  `--customize-hook=echo "locale: C.UTF-8" >"$1/etc/cloud/cloud.cfg.d/50-locale.cfg"`,
  `--customize-hook=printf "LABEL=CIDATA ${seedMount} vfat ro,nofail\\nLABEL=ESP /boot/efi vfat umask=0077,nofail\\n" >"$1/etc/fstab"`,
  `--customize-hook=chroot "$1" sh -c 'dracut --quiet --no-hostonly --no-hostonly-cmdline --install "${initrdPrograms}" --add-drivers "${initrdModules}" ${systemdInitrd} "$(ls /lib/modules)"'`,
];

/** GPT, in sectors of 512 bytes: number, start, size, type. */
const layout = {
  bios: { number: 14, start: 2048, size: 2048, type: "21686148-6449-6e6f-744e-656564454649" },
  esp: { number: 15, start: 4096, size: 131_072, type: "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" },
  root: { number: 1, start: 135_168, size: 7_340_032, type: "0fc63daf-8483-4772-8e79-3d69d8477de4" },
};
const rootUuid = "8c5d2f6e-3f0a-4b3e-9d55-6a1c02f1d0a7";

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
export async function findBootableDebian(host: Host, suite: Suite): Promise<BootableDebian> {
  const obstacle = virtualMachineObstacle(host);
  if (obstacle !== undefined) throw new LaunchError(`There is no virtual machine here: ${obstacle}.`);
  const qemu = await installed("qemu-system-x86_64", "qemu-system-x86");
  const uefi = "/usr/share/ovmf/OVMF.fd";
  if (!existsSync(uefi)) await step("installing ovmf for a test with apt", () => installPackages(["ovmf"]));
  const name = `debian-${suite}-vm-${fingerprint(...options, JSON.stringify(layout), rootUuid).slice(0, 12)}`;
  const directory = await cached(name, ["vmlinuz", "initrd.img", "disk"], async (draft) => {
    await installed("mmdebstrap", "mmdebstrap");
    await installed("mke2fs", "e2fsprogs");
    const programs = { sfdisk: await installed("sfdisk", "fdisk"), mkfs: await installed("mkfs.vfat", "dosfstools") };
    if (!existsSync(keyring)) await installPackages(["debian-archive-keyring"]);
    await step(
      `making a Debian (${suite}) for virtual machines with mmdebstrap`,
      () => makeDebian(draft, suite, programs),
      "about 3 minutes",
    );
  });
  const inside = (file: string): string => join(directory, file);
  return { qemu, uefi, kernel: inside("vmlinuz"), initrd: inside("initrd.img"), root: rootUuid, disk: inside("disk") };
}

async function makeDebian(
  draft: string,
  suite: Suite,
  { sfdisk, mkfs }: { readonly sfdisk: string; readonly mkfs: string },
): Promise<void> {
  const tree = join(draft, "tree");
  await run("mmdebstrap", [...options, suite, tree], { seconds: 1800 });
  for (const file of ["vmlinuz", "initrd.img"]) {
    const versioned = readdirSync(join(tree, "boot")).find((entry) => entry.startsWith(`${file}-`));
    if (versioned === undefined) throw new LaunchError(`Debian's kernel package holds no ${file}.`);
    cpSync(join(tree, "boot", versioned), join(draft, file));
  }
  const disk = join(draft, "disk");
  const { esp, root } = layout;
  writeFileSync(disk, "");
  truncateSync(disk, (root.start + root.size + 2048) * 512);
  const lines = Object.values(layout).map(
    ({ number, start, size, type }) => `disk${number} : start=${start}, size=${size}, type=${type}`,
  );
  const table = join(draft, "layout");
  writeFileSync(table, ["label: gpt", ...lines, ""].join("\n"));
  await run("sh", ["-c", `${sfdisk} --quiet ${disk} <${table}`]);
  const boot = join(draft, "esp");
  writeFileSync(boot, "");
  truncateSync(boot, esp.size * 512);
  await run(mkfs, ["-n", "ESP", boot]);
  const copied = ["bs=512", `seek=${esp.start}`, "conv=notrunc,sparse"];
  await run("dd", [`if=${boot}`, `of=${disk}`, ...copied]);
  const ext4 = ["-q", "-F", "-t", "ext4", "-U", rootUuid, "-E", `offset=${root.start * 512}`, "-d", tree];
  await run("mke2fs", [...ext4, disk, `${root.size / 2}k`], { seconds: 300 });
  for (const made of [tree, boot, table]) rmSync(made, { recursive: true });
}

/** Where the program is, after its package was installed if need be. */
async function installed(program: string, name: string): Promise<string> {
  const find = (): string | undefined => findProgram(program, ["/usr/sbin", "/sbin"]);
  if (find() === undefined) await step(`installing ${name} for a test with apt`, () => installPackages([name]));
  const path = find();
  if (path === undefined) throw new LaunchError(`Debian's package ${name} holds no ${program}.`);
  return path;
}
