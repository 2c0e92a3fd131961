/**
 * What a virtual machine boots in NixOS's place: Debian's own kernel, an initrd of systemd's with the very service of nixos/hcloud.nix, and
 * below /nix a Debian that serves as NixOS would. The root file system is empty when it takes over, as it is for NixOS.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { systemdInitrd } from "../../../tools/setup/virtualMachine.ts";
import { evaluateHcloud } from "../../nixos/evaluateBuilder.ts";
import { nixosStandIn } from "./conversionStandIn.ts";
import { sandboxShell } from "./host.ts";

/** Where the stand-in leaves what cloud-init said of its first boot; the old root's files are gone when somebody asks. */
export const cloudInitSaid = "/etc/nixos/cloud-init-said";

/** A service as NixOS evaluates it, in systemd's own format. */
function unit(service: Readonly<Record<string, unknown>>, script: string): string {
  const values = (value: unknown): string[] =>
    (Array.isArray(value) ? value : value === undefined ? [] : [value]).map(String);
  const lines = (section: Readonly<Record<string, unknown>>): string =>
    Object.entries(section)
      .flatMap(([key, value]) => values(value).map((one) => `${key}=${one}\n`))
      .join("");
  const { description, before, after, conflicts, requisite, wantedBy, unitConfig, serviceConfig } = service;
  return `[Unit]
${lines({ Description: description, Before: before, After: after, Conflicts: conflicts, Requisite: requisite, ...(unitConfig as object) })}[Service]
${lines({ ...(serviceConfig as object) })}ExecStart=/bin/sh ${script}
[Install]
${lines({ WantedBy: wantedBy })}`;
}

/**
 * `switch-to-configuration boot` of what stands in: makes the disk bootable by BIOS and by UEFI, with GRUB's own program.
 *
 * @param powerCut Whether the first try to move the old root away ends by a reset of the machine, before anything was written out.
 */
export function debianSwitch(powerCut: boolean): string {
  const own = mkdtempSync(`${tmpdir()}/fleet-module-`);
  const hcloud = evaluateHcloud(own, { disk: "/dev/vda", root: "", esp: "", bios: true });
  rmSync(own, { recursive: true });
  const [moving, deleting] = ["nix-builder-move-old-root", "nix-builder-delete-old-root"];
  const move = hcloud.boot.initrd.systemd.services[moving];
  const remove = hcloud.systemd.services[deleting];
  if (move === undefined || remove === undefined) throw new Error("nixos/hcloud.nix has other services");
  return `set -eux
[ "$1 $NIXOS_INSTALL_BOOTLOADER" = "boot 1" ]
[ -e /etc/NIXOS ]
{ cloud-init schema --system 2>&1; grep -E '\\[(WARNING|ERROR|CRITICAL)\\]' /var/log/cloud-init.log; } >${cloudInitSaid} || :
root=$(sed -n 's/.*"root": "\\([^"]*\\)".*/\\1/p' /etc/nixos/nix-builder/disk.json)
disk=$(sed -n 's/.*"disk": "\\([^"]*\\)".*/\\1/p' /etc/nixos/nix-builder/disk.json)

# The system that comes: all that it is lies below /nix.
new=/nix/stand-in
mkdir $new
cp -al /usr $new/usr
for folder in etc var; do cp -a /$folder $new/$folder; done
rm -rf $new/etc/nixos $new/etc/ssh $new/var/log/* $new/etc/NIXOS $new/etc/fstab
cat >$new/serve <<'SERVE'
${nixosStandIn()}
SERVE
cat >$new/start <<'START'
#!/bin/sh
set -eu
[ -e /etc/nixos-boot ] || { install -D /bin/busybox ${sandboxShell("x86_64-linux")}; echo 0.0.0.0 >/etc/emulated-address; sh /nix/stand-in/serve; }
exec sh /etc/nixos-boot
START
cat >$new/etc/systemd/system/sshd.service <<'UNIT'
[Unit]
After=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
RuntimeDirectory=sshd
ExecStart=/bin/sh /nix/stand-in/start
[Install]
WantedBy=multi-user.target
UNIT
cat >$new/delete <<'SCRIPT'
${remove.script}
SCRIPT
cat >$new/etc/systemd/system/${deleting}.service <<'UNIT'
${unit(remove, `/nix/stand-in/delete`)}
UNIT
wants=$new/etc/systemd/system/multi-user.target.wants
rm -rf $new/etc/systemd/system/ssh*.service.wants $wants/ssh*.service $wants/cloud*
rm -rf $new/etc/systemd/system/cloud-init.target.wants
touch $new/etc/cloud/cloud-init.disabled
ln -s ../sshd.service $wants/sshd.service
ln -s ../${deleting}.service $wants/${deleting}.service

# Its initrd: what NixOS would build, made of dracut's and a second archive.
initrd=$(mktemp -d)
mkdir -p $initrd/etc/systemd/system/initrd.target.wants $initrd/etc/systemd/system/initrd-switch-root.service.requires $initrd/nixos
cat >$initrd/nixos/move <<'SCRIPT'
${powerCut ? cutAtTenthMove : ""}${move.script}
SCRIPT
cat >$initrd/etc/systemd/system/${moving}.service <<'UNIT'
${unit(move, "/nixos/move")}
UNIT
# After the service of nixos/hcloud.nix and where NixOS itself has its own: makes of an empty root what systemd can start.
cat >$initrd/etc/systemd/system/initrd-nixos-activation.service <<'UNIT'
[Unit]
DefaultDependencies=no
After=initrd-switch-root.target
Before=initrd-switch-root.service
[Service]
Type=oneshot
ExecStart=/bin/sh /nixos/activate
UNIT
cat >$initrd/nixos/activate <<'SCRIPT'
set -eu
cd /sysroot
ls -A >/sysroot/nix/root-before-activation
[ ! -e usr ] || exit 0
mv nix/stand-in/usr usr
for name in bin sbin lib lib64; do ln -s usr/$name $name; done
cp -a nix/stand-in/etc/. etc/
cp -a nix/stand-in/var/. var/
mkdir -p root tmp home
chmod 1777 tmp
SCRIPT
ln -s ../${moving}.service $initrd/etc/systemd/system/initrd.target.wants/
ln -s ../initrd-nixos-activation.service $initrd/etc/systemd/system/initrd-switch-root.service.requires/
cp ${systemdInitrd} $new/initrd
# The kernel finds a further archive where a number of four bytes begins.
truncate -s %4 $new/initrd
(cd $initrd && find . | cpio -o -H newc --quiet) >>$new/initrd
cp /boot/vmlinuz-* $new/kernel

grub-install --target=i386-pc "$disk"
grub-install --target=x86_64-efi --efi-directory=/boot/efi --removable --no-nvram
cat >/boot/grub/grub.cfg <<CFG
insmod part_gpt
insmod ext2
search --no-floppy --fs-uuid --set=root $root
linux $new/kernel root=UUID=$root rw console=ttyS0
initrd $new/initrd
boot
CFG
mkdir -p /boot/efi/EFI/debian && echo old >/boot/efi/EFI/debian/shimx64.efi
`;
}

/** The machine loses its power in the middle, once. What says so is on another file system: a write to this one would save the rest. */
const cutAtTenthMove = `
mkdir -p /run/esp && mount -t vfat /dev/disk/by-label/ESP /run/esp
if [ ! -e /run/esp/cut ]; then
  echo 0 >/run/moves
  mv() {
    echo $(($(cat /run/moves) + 1)) >/run/moves
    if [ "$(cat /run/moves)" = 10 ]; then
      : >/run/esp/cut
      umount /run/esp
      echo "power cut after" $(ls -A /sysroot/old-root) >/dev/console
      echo b >/proc/sysrq-trigger
      sleep 60
    fi
    command mv "$@"
  }
fi
`;
