# The least of nixpkgs that nixos/builder.nix and nixos/hcloud.nix ask for, to evaluate it where NixOS isn't: packages are their names, scripts
# their text, and every option that the module sets has to be one of these.
{
  directory,
  file ? "builder.nix",
  opensshVersion ? "9.2p1",
  arm ? false,
}:
let
  lib = {
    mkForce = content: { inherit content; stub = "force"; };
    mkAfter = content: { inherit content; stub = "after"; };
    optionalAttrs = condition: value: if condition then value else { };
    optionals = condition: value: if condition then value else [ ];
    mkIf = condition: value: if condition then value else { };
  };
  pkgs = {
    writeShellScript = name: text: builtins.toFile name "#!/bin/sh\n${text}";
    coreutils = "coreutils";
    curl = "curl";
    gnugrep = "gnugrep";
    iproute2 = "iproute2";
    jq = "jq";
    nix = "nix";
    openssh.version = opensshVersion;
    sqlite = "sqlite";
    stdenv.hostPlatform.isAarch64 = arm;
  };
  module = import (directory + "/${file}") {
    inherit lib pkgs;
    config.system.nixos.release = "26.05";
  };
  options = {
    boot = [
      "growPartition"
      "initrd"
      "kernelParams"
      "loader"
      "tmp"
    ];
    documentation = [ "enable" ];
    fileSystems = [
      "/"
      "/boot/efi"
    ];
    networking = [ "firewall" ];
    nix = [
      "extraOptions"
      "settings"
    ];
    services = [
      "journald"
      "openssh"
    ];
    system = [
      "autoUpgrade"
      "defaultChannel"
    ];
    systemd = [
      "services"
      "tmpfiles"
    ];
    users = [
      "groups"
      "users"
    ];
    zramSwap = [ "enable" ];
  };
  check =
    name: value:
    let
      known = options.${name} or (throw "${file} sets ${name}, which is no option of the stub");
      unknown = builtins.filter (key: !(builtins.elem key known)) (builtins.attrNames value);
    in
    if unknown == [ ] then value else throw "${file} sets ${name}.${builtins.head unknown}, which is no option of the stub";

  # What NixOS and other modules define as well, by nixpkgs' rules: lists and lines join unless one is forced, and `mkAfter` comes last.
  kind = value: if builtins.isAttrs value then value.stub or null else null;
  plain =
    value:
    if kind value != null then
      plain value.content
    else if builtins.isAttrs value then
      builtins.mapAttrs (_: plain) value
    else
      value;
  joined =
    value: others:
    if kind value == "force" then
      plain value
    else
      others ++ plain value;
  lines =
    value: others:
    if kind value == "after" then
      others + plain value
    else
      plain value + others;
  settle =
    name: value:
    if name == "nix" then
      plain value
      // {
        settings = plain value.settings // {
          system-features = joined value.settings.system-features [
            "nixos-test"
            "benchmark"
            "big-parallel"
            "kvm"
          ];
        };
      }
    else if name == "services" then
      plain value
      // {
        openssh = plain value.openssh // {
          extraConfig = lines value.openssh.extraConfig "UseDNS no\n";
        };
      }
    else
      plain value;
in
builtins.mapAttrs settle (builtins.mapAttrs check module)
