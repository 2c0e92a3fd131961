import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { conversionLog, moveMark } from "../../src/bootstrap/conversion.ts";
import { hostObstacle } from "../support/hcloud/host.ts";
import { runInOwnRoot } from "../support/ownRoot.ts";
import { evaluateHcloud, type Disk } from "./evaluateBuilder.ts";

const directory = mkdtempSync(join(tmpdir(), "hcloud-nix-"));
afterAll(() => {
  rmSync(directory, { recursive: true });
});

const both: Disk = { disk: "/dev/sda", root: "1234-5678", esp: "ABCD-EF01", bios: true };
const hetzner = evaluateHcloud(directory, both);
const moving = "nix-builder-move-old-root";

describe("nixos/hcloud.nix, evaluated by Nix over stubs of NixOS", () => {
  it("boots by BIOS and by EFI, so that one snapshot starts on every type", () => {
    expect(hetzner.boot.loader).toEqual({
      grub: {
        enable: true,
        devices: ["/dev/sda"],
        efiSupport: true,
        efiInstallAsRemovable: true,
        configurationLimit: 10,
      },
      efi: { efiSysMountPoint: "/boot/efi" },
    });
    expect(hetzner.fileSystems["/boot/efi"]).toMatchObject({ device: "/dev/disk/by-uuid/ABCD-EF01", fsType: "vfat" });
  });

  it("has the whole of a larger disk", () => {
    expect(hetzner.boot.growPartition).toBe(true);
    expect(hetzner.fileSystems["/"]).toMatchObject({
      device: "/dev/disk/by-uuid/1234-5678",
      fsType: "ext4",
      autoResize: true,
    });
  });

  it("boots by EFI alone on Arm, and by BIOS alone where there is no EFI system partition", () => {
    const arm = evaluateHcloud(directory, { ...both, bios: false }, true);
    expect(arm.boot.loader.grub).toMatchObject({ devices: ["nodev"], efiSupport: true });
    expect([arm.boot.kernelParams, arm.boot.initrd.kernelModules]).toEqual([
      expect.arrayContaining(["console=tty"]),
      ["virtio_gpu"],
    ]);
    const old = evaluateHcloud(directory, { ...both, esp: null });
    expect(old.boot.loader.grub).toMatchObject({
      devices: ["/dev/sda"],
      efiSupport: false,
      efiInstallAsRemovable: false,
    });
    expect(Object.keys(old.fileSystems)).toEqual(["/"]);
  });

  it("moves the old root away in a systemd initrd, once, after it was mounted and before anything goes on with it", () => {
    const { enable, services } = hetzner.boot.initrd.systemd;
    expect(enable).toBe(true);
    expect(services[moving]).toMatchObject({
      wantedBy: ["initrd.target"],
      before: ["initrd-fs.target", "initrd.target", "shutdown.target"],
      unitConfig: {
        DefaultDependencies: false,
        RequiresMountsFor: "/sysroot/nix/store",
        ConditionPathExists: `/sysroot${moveMark}`,
      },
    });
  });

  it("deletes the old root only after a boot into which one can log in", () => {
    expect(hetzner.systemd.services["nix-builder-delete-old-root"]).toMatchObject({
      wantedBy: ["multi-user.target"],
      requisite: ["sshd.service"],
      after: ["sshd.service"],
      unitConfig: { ConditionPathExists: "/old-root" },
    });
  });

  it("follows the channel of its release", () => {
    expect(hetzner.system.defaultChannel).toBe("https://channels.nixos.org/nixos-26.05");
  });
});

const obstacle = hostObstacle();
if (obstacle !== undefined) console.log(`skipped: the service that moves the old root. ${obstacle}`);

describe.skipIf(obstacle !== undefined)("the service that moves the old root", { timeout: 60_000 }, () => {
  /** Makes an old system on a file system at /sysroot. A file's text is its own old path. */
  const oldSystem = `
mkdir -p /sysroot
umount /sysroot 2>/dev/null || :
truncate -s 0 /tmp/disk && truncate -s 32M /tmp/disk && mke2fs -q -t ext4 /tmp/disk
mount -o loop /tmp/disk /sysroot 2>/dev/null || { mount -t tmpfs tmpfs /sysroot; mkdir /sysroot/lost+found; }
cd /sysroot
mkdir -p boot/grub dev etc/nixos/nix-builder etc/ssh/sshd_config.d home/a nix/store nix/var proc root/.ssh run sys usr/bin var/log/apt var/lib "with space/below"
ln -s usr/bin bin; ln -s boot/vmlinuz vmlinuz; ln -s /nowhere etc/dangling
for file in .hidden ..odd boot/vmlinuz boot/grub/grub.cfg etc/passwd etc/.pwd.lock etc/nixos/configuration.nix etc/ssh/ssh_host_ed25519_key \\
  etc/ssh/ssh_host_ed25519_key.pub etc/ssh/ssh_host_rsa_key etc/ssh/sshd_config home/a/b nix/store/x root/.ssh/authorized_keys usr/bin/sh \\
  var/log/syslog .${conversionLog} var/lib/x "with space/below/*"; do echo "$file" >"$file"; done
chmod 600 etc/ssh/ssh_host_ed25519_key
: >.${moveMark}
cd /
`;
  const listing = `cd /sysroot && find . -path ./old-root -prune -o ! -type d -print | sort && echo -- && cd old-root && find . ! -type d | sort; cd /`;
  const stayed = [
    "./boot/grub/grub.cfg",
    "./boot/vmlinuz",
    "./etc/nixos/configuration.nix",
    "./etc/ssh/ssh_host_ed25519_key",
    "./etc/ssh/ssh_host_ed25519_key.pub",
    "./nix/store/x",
    `.${conversionLog}`,
  ];
  const moved = [
    "./..odd",
    "./.hidden",
    "./bin",
    "./etc/.pwd.lock",
    "./etc/dangling",
    "./etc/passwd",
    "./etc/ssh/ssh_host_rsa_key",
    "./etc/ssh/sshd_config",
    "./home/a/b",
    "./root/.ssh/authorized_keys",
    "./usr/bin/sh",
    "./var/lib/x",
    "./var/log/syslog",
    "./vmlinuz",
    "./with space/below/*",
  ];
  const script = hetzner.boot.initrd.systemd.services[moving]?.script ?? "";
  const run = (commands: string, programs: Readonly<Record<string, string>> = {}) =>
    runInOwnRoot(directory, { files: { "/move": script }, programs }, commands, []);

  it("leaves what NixOS goes on with, moves everything else, whatever its name, and then never runs again", () => {
    const { output } = run(`set -e
export LC_ALL=C
${oldSystem}
sh /move
${listing}
stat -c %a /sysroot/old-root /sysroot/etc/ssh/ssh_host_ed25519_key
ls -A /sysroot | xargs
test -e /sysroot${moveMark} || echo done
umount /sysroot`);
    const [left, right] = output.split("--\n");
    expect(left?.trim().split("\n")).toEqual(stayed.toSorted());
    const lines = right?.trim().split("\n") ?? [];
    expect(lines.slice(0, moved.length)).toEqual(moved);
    expect(lines.slice(moved.length)).toEqual([
      "700",
      "600",
      "boot dev etc lost+found nix old-root proc run sys var",
      "done",
    ]);
  });

  it("comes to the same when it is killed before any one of its commands, and starts again", () => {
    const killed = `#!/bin/sh
count=$(($(cat /tmp/count) + 1))
echo $count >/tmp/count
[ $count != "$(cat /tmp/last)" ] || { kill -KILL $PPID; exit; }
exec /bin/\${0##*/} "$@"
`;
    const programs = Object.fromEntries(
      ["chmod", "mkdir", "mv", "rm", "sync"].map((name) => [`/killers/${name}`, killed]),
    );
    const { output } = run(
      `set -e
export LC_ALL=C
last=0
while :; do
  last=$((last + 1))
  ${oldSystem}
  echo 0 >/tmp/count; echo $last >/tmp/last
  code=0
  PATH=/killers:$PATH sh /move 2>/dev/null || code=$?
  [ $code != 0 ] || break
  # As the unit's condition has it.
  [ ! -e /sysroot${moveMark} ] || sh /move
  [ ! -e /sysroot${moveMark} ] || { echo "the mark is there after $last"; exit 1; }
  { ${listing}; } >/tmp/listing.$last
  cmp /tmp/listing.1 /tmp/listing.$last || exit 1
  umount /sysroot
done
echo "killed $((last - 1)) times"
cat /tmp/listing.1
umount /sysroot`,
      programs,
    );
    const [, times = "0"] = /killed (\d+) times/.exec(output) ?? [];
    expect(Number(times), output).toBeGreaterThan(20);
    expect(output).toContain([...stayed.toSorted(), "--", ...moved].join("\n"));
  });

  it("gives a number to a name that is taken, should it ever move what a later system wrote", () => {
    const { output } = run(`set -e
${oldSystem}
sh /move
mkdir -p /sysroot/usr /sysroot/var/log && echo new >/sysroot/etc/passwd && : >/sysroot${moveMark}
sh /move
ls /sysroot/old-root/etc | xargs
umount /sysroot`);
    expect(output).toMatch(/passwd passwd\.~1~/);
  });
});
