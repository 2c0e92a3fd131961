# NixOS, as far as our modules set options: their types, and what NixOS itself defines of them, at its own priority and order. Read from
# nixpkgs of July 2026 (26.11pre), whose files are named at each part; what 26.05 itself makes of our modules, `nix flake check` says.
{ config, lib, ... }:
let
  inherit (lib) mkIf mkOption types;
  of = type: default: mkOption { inherit type default; };
  strings = types.listOf types.str;
  cfg = config.services.openssh;

  # lib/systemd-unit-options.nix
  service = types.submodule {
    enable = of types.bool true;
    description = of types.str "";
    after = of strings [ ];
    before = of strings [ ];
    conflicts = of strings [ ];
    path = of strings [ ];
    requisite = of strings [ ];
    restartTriggers = of (types.listOf types.unitOption) [ ];
    script = of types.lines "";
    serviceConfig = of (types.attrsOf types.unitOption) { };
    startAt = of (types.either types.str strings) [ ];
    unitConfig = of (types.attrsOf types.unitOption) { };
    wantedBy = of strings [ ];
    wants = of strings [ ];
  };
in
{
  imports = [ ./client.nix ];

  options = {
    # services/networking/ssh/sshd.nix
    services.openssh = {
      enable = of types.bool false;
      openFirewall = of types.bool true;
      hostKeys = of (types.listOf types.attrs) [
        {
          type = "rsa";
          bits = 4096;
          path = "/etc/ssh/ssh_host_rsa_key";
        }
        {
          type = "ed25519";
          path = "/etc/ssh/ssh_host_ed25519_key";
        }
      ];
      authorizedKeysFiles = of strings [ ];
      extraConfig = of types.lines "";
      settings = of (types.submoduleWith {
        freeform = types.nullOr (types.oneOf [ types.bool types.int types.float types.str (types.listOf types.str) ]);
        options = {
          AllowUsers = of (types.nullOr strings) null;
          KbdInteractiveAuthentication = of (types.nullOr types.bool) true;
          PasswordAuthentication = of (types.nullOr types.bool) true;
          PermitRootLogin = of (types.nullOr (
            types.enum [ "yes" "without-password" "prohibit-password" "forced-commands-only" "no" ]
          )) "prohibit-password";
          StrictModes = of (types.nullOr types.bool) true;
          UseDns = of (types.nullOr types.bool) false;
          X11Forwarding = of (types.nullOr types.bool) false;
        };
      }) { };
    };

    # config/users-groups.nix
    users.groups = of (types.attrsOf (
      types.submodule {
        gid = of (types.nullOr types.int) null;
        members = of strings [ ];
      }
    )) { };
    users.users = of (types.attrsOf (
      types.submodule {
        name = of types.str "";
        isNormalUser = of types.bool false;
        isSystemUser = of types.bool false;
        group = of types.str "";
        home = of types.path "/var/empty";
        useDefaultShell = of types.bool false;
      }
    )) { };

    systemd.services = of (types.attrsOf service) { };
    systemd.tmpfiles.rules = of strings [ ];

    # system/boot/tmp.nix, config/zram.nix, system/boot/systemd/journald.nix, tasks/auto-upgrade.nix, services/logging/logrotate.nix
    boot.tmp.cleanOnBoot = of types.bool false;
    zramSwap.enable = of types.bool false;
    services.journald.extraConfig = of types.lines "";
    system.autoUpgrade.enable = of types.bool false;
    system.autoUpgrade.allowReboot = of types.bool false;
    services.logrotate.checkConfig = of types.bool true;

    # services/networking/firewall.nix and firewall-iptables.nix
    networking.firewall.enable = of types.bool true;
    networking.firewall.extraCommands = of types.lines "";
    networking.firewall.extraStopCommands = of types.lines "";

    # tasks/filesystems.nix, system/boot/grow-partition.nix
    fileSystems = of (types.attrsOf (
      types.submodule {
        device = of (types.nullOr types.str) null;
        fsType = of types.str "auto";
        options = of strings [ "defaults" ];
        autoResize = of types.bool false;
      }
    )) { };
    boot.growPartition = of types.bool false;

    # system/boot/kernel.nix, system/boot/systemd/initrd.nix (enabled by default from 26.05 on)
    boot.kernelParams = of strings [ ];
    boot.initrd.availableKernelModules = of strings [ ];
    boot.initrd.kernelModules = of strings [ ];
    boot.initrd.systemd.enable = of types.bool true;
    boot.initrd.systemd.services = of (types.attrsOf service) { };

    # system/boot/loader/grub/grub.nix and efi.nix
    boot.loader.grub = {
      enable = of types.bool true;
      devices = of strings [ ];
      efiSupport = of types.bool false;
      efiInstallAsRemovable = of types.bool false;
      configurationLimit = of types.int 100;
    };
    boot.loader.efi.efiSysMountPoint = of types.str "/boot";

    # misc/documentation.nix, misc/version.nix, config/nix-channel.nix
    documentation.enable = of types.bool true;
    system.nixos.release = of types.str "26.05";
    system.defaultChannel = of types.str "https://channels.nixos.org/nixos-unstable";
  };

  config = {
    # config/nix.nix: at normal priority, beside the default of the option.
    nix.settings.system-features = mkIf config.nix.enable [ "nixos-test" "benchmark" "big-parallel" "kvm" ];
    boot.kernelParams = [ "loglevel=4" ];
    boot.initrd.availableKernelModules = [ "ahci" "sd_mod" ];
    users.users.root.home = "/root";
    users.groups.root.gid = 0;
    systemd.services.nix-daemon.path = [ "nix" "openssh" ];
    systemd.tmpfiles.rules = mkIf config.boot.tmp.cleanOnBoot [ "D! /tmp 1777 root root" ];
    services.openssh.authorizedKeysFiles = mkIf cfg.enable [ "%h/.ssh/authorized_keys" "/etc/ssh/authorized_keys.d/%u" ];
    services.openssh.extraConfig = mkIf cfg.enable (
      lib.mkOrder 0 "AddressFamily any\nAuthorizedKeysFile ${builtins.concatStringsSep " " cfg.authorizedKeysFiles}\n"
    );
  };
}
