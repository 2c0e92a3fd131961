# What NixOS (nixos/modules/config/nix.nix, nix-remote-build.nix and programs/ssh.nix) and nix-darwin (modules/nix/default.nix and
# programs/ssh) declare alike of what our modules set, and what both define of it themselves.
{ config, lib, ... }:
let
  inherit (lib) mkIf mkOption types;
  of = type: default: mkOption { inherit type default; };
  atom = types.nullOr (types.oneOf [ types.bool types.int types.float types.str types.path ]);
  strings = types.listOf types.str;
in
{
  options = {
    nix.enable = of types.bool true;
    nix.distributedBuilds = of types.bool false;
    nix.extraOptions = of types.lines "";
    nix.settings = of (types.submoduleWith {
      freeform = types.either atom (types.listOf atom);
      options = {
        max-jobs = of (types.either types.int (types.enum [ "auto" ])) "auto";
        cores = of types.int 0;
        sandbox = of (types.either types.bool (types.enum [ "relaxed" ])) true;
        extra-sandbox-paths = of strings [ ];
        substituters = of strings [ ];
        trusted-substituters = of strings [ ];
        trusted-public-keys = of strings [ ];
        trusted-users = of strings [ ];
        allowed-users = of strings [ "*" ];
        require-sigs = of types.bool true;
      };
    }) { };
    nix.buildMachines = of (types.listOf (
      types.submodule {
        hostName = mkOption { type = types.str; };
        protocol = of (types.enum [ null "ssh" "ssh-ng" ]) "ssh";
        system = of (types.nullOr types.str) null;
        systems = of strings [ ];
        sshUser = of (types.nullOr types.str) null;
        sshKey = of (types.nullOr types.str) null;
        maxJobs = of types.int 1;
        speedFactor = of types.int 1;
        mandatoryFeatures = of strings [ ];
        supportedFeatures = of strings [ ];
        publicHostKey = of (types.nullOr types.str) null;
      }
    )) [ ];
    programs.ssh.extraConfig = of types.lines "";
    programs.ssh.knownHosts = of (types.attrsOf (
      types.submodule {
        certAuthority = of types.bool false;
        hostNames = of strings [ ];
        publicKey = of (types.nullOr types.str) null;
        publicKeyFile = of (types.nullOr types.path) null;
      }
    )) { };
    warnings = of strings [ ];
  };

  config = mkIf config.nix.enable {
    nix.settings = {
      trusted-public-keys = [ "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=" ];
      trusted-users = [ "root" ];
      substituters = lib.mkAfter [ "https://cache.nixos.org/" ];
      builders = mkIf (!config.nix.distributedBuilds) null;
    };
  };
}
