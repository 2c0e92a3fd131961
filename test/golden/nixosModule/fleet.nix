# This machine as a client of a fleet of Nix builders. Written by nix-builder-fleet: change the stack, not this file.
{ config, lib, ... }:
let
  # The client's private key on this machine, readable by root only. A string, so that the key never enters the Nix store.
  sshKey = "/etc/nix/fleet/id_ed25519";
in
{
  nix.distributedBuilds = lib.mkOverride 900 true;
  nix.settings = {
    builders-use-substitutes = lib.mkOverride 900 true;
    max-jobs = lib.mkOverride 900 "auto";
    extra-substituters = [
      "https://cache.garnix.io"
    ];
    extra-trusted-public-keys = [
      "cache.garnix.io:CTFPyKSLcx5RMJKfLo5EEPUObbA78b0YQ2DTCJXqr9g="
    ];
  };
  nix.buildMachines = [
    {
      hostName = "x86";
      protocol = "ssh-ng";
      systems = [
        "x86_64-linux"
        "i686-linux"
      ];
      sshUser = "nix-builder";
      sshKey = sshKey;
      maxJobs = 8;
      speedFactor = 2;
      supportedFeatures = [
        "benchmark"
        "big-parallel"
        "kvm"
        "nixos-test"
      ];
      mandatoryFeatures = [ ];
      publicHostKey = "c3NoLWVkMjU1MTkgQUFBQUMzTnphQzFsWkRJMU5URTVBQUFBSUFFQkFRRUJBUUVCQVFFQkFRRUJBUUVCQVFFQkFRRUJBUUVCQVFFQkFRRUI=";
    }
    {
      hostName = "arm";
      protocol = "ssh-ng";
      systems = [
        "aarch64-linux"
      ];
      sshUser = "nix-builder";
      sshKey = sshKey;
      maxJobs = 16;
      speedFactor = 1;
      supportedFeatures = [
        "big-parallel"
      ];
      mandatoryFeatures = [
        "arm-only"
      ];
      publicHostKey = "c3NoLWVkMjU1MTkgQUFBQUMzTnphQzFsWkRJMU5URTVBQUFBSUFJQ0FnSUNBZ0lDQWdJQ0FnSUNBZ0lDQWdJQ0FnSUNBZ0lDQWdJQ0FnSUM=";
    }
    {
      hostName = "nixbuild";
      protocol = "ssh-ng";
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      sshUser = "root";
      sshKey = "/run/secrets/nixbuild";
      maxJobs = 100;
      speedFactor = 1;
      supportedFeatures = [
        "benchmark"
        "big-parallel"
      ];
      mandatoryFeatures = [ ];
      publicHostKey = "c3NoLWVkMjU1MTkgQUFBQUMzTnphQzFsWkRJMU5URTVBQUFBSVBJUUNaYzU0cG9KOHZxYXdkOFRyYU5yeVFlSm52SDFlTHBJRGdiaXF5bU0=";
    }
  ];

  programs.ssh.knownHosts = {
    x86 = {
      hostNames = [
        "x86"
      ];
      publicKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB";
    };
    arm = {
      hostNames = [
        "arm"
      ];
      publicKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIC";
    };
    nixbuild = {
      hostNames = [
        "nixbuild"
      ];
      publicKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPIQCZc54poJ8vqawd8TraNryQeJnvH1eLpIDgbiqymM";
    };
  };

  # First, because ssh takes the first value that it finds. The last line ends the last block for what others add.
  programs.ssh.extraConfig = lib.mkBefore ''
    Host x86
      HostName 203.0.113.7
      Port 22
      User nix-builder
      IdentityFile ${sshKey}
      IdentitiesOnly yes
      PreferredAuthentications publickey
      BatchMode yes
      StrictHostKeyChecking yes
      HostKeyAlias x86
      UserKnownHostsFile /dev/null
      UpdateHostKeys no
      CheckHostIP no
      ForwardAgent no
      ConnectTimeout 10
      ServerAliveInterval 15
      ServerAliveCountMax 4
    Match originalhost x86 exec "test -O '%d' && mkdir -p -m 700 '%d/.ssh' && test -O '%d/.ssh'"
      ControlMaster auto
      ControlPath ~/.ssh/nix-%i-8d0cc299
      ControlPersist 60

    Host arm
      HostName 2001:db8::7
      Port 2222
      User nix-builder
      IdentityFile ${sshKey}
      IdentitiesOnly yes
      PreferredAuthentications publickey
      BatchMode yes
      StrictHostKeyChecking yes
      HostKeyAlias arm
      UserKnownHostsFile /dev/null
      UpdateHostKeys no
      CheckHostIP no
      ForwardAgent no
      ConnectTimeout 10
      ServerAliveInterval 15
      ServerAliveCountMax 4

    Host nixbuild
      HostName eu.nixbuild.net
      Port 22
      User root
      IdentityFile /run/secrets/nixbuild
      IdentitiesOnly yes
      PreferredAuthentications publickey
      BatchMode yes
      StrictHostKeyChecking yes
      HostKeyAlias nixbuild
      UserKnownHostsFile /dev/null
      UpdateHostKeys no
      CheckHostIP no
      ForwardAgent no
      ConnectTimeout 10
      ServerAliveInterval 15
      ServerAliveCountMax 4

    Host *
  '';

  # An older nix-darwin doesn't have the option.
  warnings = lib.optional (!(config.nix.enable or true)) "nix-builder-fleet: nix.enable is false, so that nothing here tells Nix of the fleet; use the plain files, as docs/clients.md says for any Linux or macOS.";
}
