# How a builder at Hetzner boots. Only servers that this project converted import it: they have disk.json (src/bootstrap/conversion.ts).
# One snapshot starts on BIOS and EFI types alike, of any disk size.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  disk = builtins.fromJSON (builtins.readFile ./disk.json);
  efi = disk.esp != null;
  oldRoot = "/old-root";
  moveMark = "/nix/var/nix-builder-move-old-root";

  # What NixOS goes on with, and what is mounted over. Everything else is the old system's.
  stays = [
    "boot"
    "dev"
    "etc/nixos"
    "etc/ssh/ssh_host_ed25519_key"
    "etc/ssh/ssh_host_ed25519_key.pub"
    "lost+found"
    "nix"
    "old-root"
    "proc"
    "run"
    "sys"
    "var/log/nix-builder-convert.log"
  ];
in
{
  fileSystems = {
    "/" = {
      device = "/dev/disk/by-uuid/${disk.root}";
      fsType = "ext4";
      # With growPartition: a snapshot on a larger type gets the whole disk.
      autoResize = true;
    };
  }
  // lib.optionalAttrs efi {
    "/boot/efi" = {
      device = "/dev/disk/by-uuid/${disk.esp}";
      fsType = "vfat";
      options = [ "umask=0077" ];
    };
  };
  boot.growPartition = true;

  # The kernels stay in /nix/store, which GRUB reads: the EFI system partition holds nothing but GRUB.
  boot.loader.grub = {
    enable = true;
    devices = if disk.bios then [ disk.disk ] else [ "nodev" ];
    efiSupport = efi;
    # Not every type has a memory in which an entry would last, and a snapshot starts on another server.
    efiInstallAsRemovable = efi;
    configurationLimit = 10;
  };
  boot.loader.efi.efiSysMountPoint = "/boot/efi";

  boot.initrd.availableKernelModules = [
    "ahci"
    "sd_mod"
    "virtio_blk"
    "virtio_net"
    "virtio_pci"
    "virtio_scsi"
    "xhci_pci"
  ];
  # Hetzner's console on Arm.
  boot.initrd.kernelModules = lib.optionals pkgs.stdenv.hostPlatform.isAarch64 [ "virtio_gpu" ];
  boot.kernelParams = lib.optionals pkgs.stdenv.hostPlatform.isAarch64 [ "console=tty" ];

  # The conversion's second half: the old system's files go where they are out of the way, before anything looks for a root. Each is
  # renamed by itself, so that a power failure leaves what the next boot goes on with. Moved again, a name that is taken gets a number.
  boot.initrd.systemd.enable = true;
  boot.initrd.systemd.services.nix-builder-move-old-root = {
    description = "Move away the system from which NixOS was installed";
    wantedBy = [ "initrd.target" ];
    before = [
      "initrd-fs.target"
      "initrd.target"
      "shutdown.target"
    ];
    conflicts = [ "shutdown.target" ];
    unitConfig = {
      DefaultDependencies = false;
      RequiresMountsFor = "/sysroot/nix/store";
      ConditionPathExists = "/sysroot${moveMark}";
    };
    serviceConfig = {
      Type = "oneshot";
      RemainAfterExit = true;
    };
    script = ''
      set -eu
      root=/sysroot
      stays="${builtins.concatStringsSep " " stays}"
      move() {
        for entry in "$root/$1"* "$root/$1".[!.]* "$root/$1"..?*; do
          [ -e "$entry" ] || [ -L "$entry" ] || continue
          name=''${entry#"$root/"}
          case " $stays " in
            *" $name "*) ;;
            *" $name/"*) move "$name/" ;;
            *)
              mkdir -p "$root${oldRoot}/$1"
              mv -T --backup=numbered "$entry" "$root${oldRoot}/$name"
              ;;
          esac
        done
      }
      mkdir -p "$root${oldRoot}"
      # It holds the user data, and with it the host key.
      chmod 700 "$root${oldRoot}"
      move ""
      sync
      rm "$root${moveMark}"
      sync
    '';
  };

  systemd.services.nix-builder-delete-old-root = {
    description = "Delete the system from which NixOS was installed";
    wantedBy = [ "multi-user.target" ];
    # Not before somebody can log in.
    requisite = [ "sshd.service" ];
    after = [ "sshd.service" ];
    unitConfig.ConditionPathExists = oldRoot;
    serviceConfig = {
      Type = "exec";
      Nice = 19;
      IOSchedulingClass = "idle";
    };
    path = [ pkgs.coreutils ];
    script = ''
      rm -rf /boot/vmlinuz-* /boot/initrd.img-* /boot/System.map-* /boot/config-*
      rm -rf --one-file-system ${oldRoot}
    '';
  };

  # A builder shows nobody a manual, and this configuration's own would have to be built on it.
  documentation.enable = false;
  # What `nixos-rebuild --upgrade` follows. Until then the channel is the pinned nixpkgs that the conversion left.
  system.defaultChannel = "https://channels.nixos.org/nixos-${config.system.nixos.release}";
}
