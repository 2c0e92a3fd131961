# The least of nixpkgs that nixos/builder.nix asks for, to evaluate it where NixOS isn't: packages are their names, scripts
# their text, and every option that the module sets has to be one of these.
{ directory }:
let
  lib = {
    mkForce = value: value;
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
    sqlite = "sqlite";
  };
  module = import (directory + "/builder.nix") {
    inherit lib pkgs;
    config = { };
  };
  options = {
    boot = [ "tmp" ];
    networking = [ "firewall" ];
    nix = [
      "extraOptions"
      "settings"
    ];
    services = [
      "journald"
      "openssh"
    ];
    system = [ "autoUpgrade" ];
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
      known = options.${name} or (throw "builder.nix sets ${name}, which is no option of the stub");
      unknown = builtins.filter (key: !(builtins.elem key known)) (builtins.attrNames value);
    in
    if unknown == [ ] then value else throw "builder.nix sets ${name}.${builtins.head unknown}, which is no option of the stub";
in
builtins.mapAttrs check module
