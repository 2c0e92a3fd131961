# This user as a client of a fleet of Nix builders. Written by nix-builder-fleet: change the stack, not this file.
# It can't make the Nix daemon use the fleet: the daemon connects as root, with root's ssh configuration, and a user who isn't in
# trusted-users can't give it builders. The NixOS or nix-darwin module does that. What works with this module alone:
#   nix build --store ssh-ng://USER@ALIAS --eval-store auto …         builds entirely on a builder
#   nix build --builders @$HOME/.ssh/nix-builder-fleet/machines …    where Nix runs without a daemon
# Your ~/.ssh/config stays yours. Where home-manager writes it (programs.ssh.enable), this module is in it; elsewhere let it begin with
#   Include nix-builder-fleet/config
{ lib, ... }:
{
  # From ~/.ssh, and before the user's own blocks: ssh takes the first value that it finds.
  programs.ssh.includes = lib.mkBefore [ "nix-builder-fleet/config" ];

  home.file.".ssh/nix-builder-fleet/config".text = ''
    Host x86
      HostName 203.0.113.7
      Port 22
      User nix-builder
      IdentityFile ~/.ssh/nix-builder-fleet_ed25519
      IdentitiesOnly yes
      PreferredAuthentications publickey
      BatchMode yes
      StrictHostKeyChecking yes
      HostKeyAlias x86
      UserKnownHostsFile ~/.ssh/nix-builder-fleet/known_hosts
      GlobalKnownHostsFile /dev/null
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
      IdentityFile ~/.ssh/nix-builder-fleet_ed25519
      IdentitiesOnly yes
      PreferredAuthentications publickey
      BatchMode yes
      StrictHostKeyChecking yes
      HostKeyAlias arm
      UserKnownHostsFile ~/.ssh/nix-builder-fleet/known_hosts
      GlobalKnownHostsFile /dev/null
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
      UserKnownHostsFile ~/.ssh/nix-builder-fleet/known_hosts
      GlobalKnownHostsFile /dev/null
      UpdateHostKeys no
      CheckHostIP no
      ForwardAgent no
      ConnectTimeout 10
      ServerAliveInterval 15
      ServerAliveCountMax 4
  '';
  home.file.".ssh/nix-builder-fleet/known_hosts".text = ''
    x86,203.0.113.7 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB
    arm,[2001:db8::7]:2222 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIC
    nixbuild,eu.nixbuild.net ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPIQCZc54poJ8vqawd8TraNryQeJnvH1eLpIDgbiqymM
  '';
  home.file.".ssh/nix-builder-fleet/machines".text = ''
    ssh-ng://nix-builder@x86 x86_64-linux,i686-linux - 8 2 benchmark,big-parallel,kvm,nixos-test - c3NoLWVkMjU1MTkgQUFBQUMzTnphQzFsWkRJMU5URTVBQUFBSUFFQkFRRUJBUUVCQVFFQkFRRUJBUUVCQVFFQkFRRUJBUUVCQVFFQkFRRUI=
    ssh-ng://nix-builder@arm aarch64-linux - 16 1 big-parallel,arm-only arm-only c3NoLWVkMjU1MTkgQUFBQUMzTnphQzFsWkRJMU5URTVBQUFBSUFJQ0FnSUNBZ0lDQWdJQ0FnSUNBZ0lDQWdJQ0FnSUNBZ0lDQWdJQ0FnSUM=
    ssh-ng://root@nixbuild x86_64-linux,aarch64-linux /run/secrets/nixbuild 100 1 benchmark,big-parallel - c3NoLWVkMjU1MTkgQUFBQUMzTnphQzFsWkRJMU5URTVBQUFBSVBJUUNaYzU0cG9KOHZxYXdkOFRyYU5yeVFlSm52SDFlTHBJRGdiaXF5bU0=
  '';
}
