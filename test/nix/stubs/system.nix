# The options of NixOS and nix-darwin that the client modules set, as nixos/modules/config/nix-remote-build.nix,
# nixos/modules/programs/ssh.nix and nix-darwin's modules of the same names declare them.
{ lib, ... }:
let
  inherit (lib) mkOption types;
in
{
  options = {
    nix.distributedBuilds = mkOption {
      type = types.bool;
      default = false;
    };
    nix.settings = mkOption {
      type = types.attrsOf (types.oneOf [ types.bool types.int types.str (types.listOf types.str) ]);
      default = { };
    };
    nix.buildMachines = mkOption {
      type = types.listOf (
        types.submodule {
          hostName = types.str;
          protocol = types.enum [ null "ssh" "ssh-ng" ];
          system = types.nullOr types.str;
          systems = types.listOf types.str;
          sshUser = types.nullOr types.str;
          sshKey = types.nullOr types.str;
          maxJobs = types.int;
          speedFactor = types.int;
          mandatoryFeatures = types.listOf types.str;
          supportedFeatures = types.listOf types.str;
          publicHostKey = types.nullOr types.str;
        }
      );
      default = [ ];
    };
    programs.ssh.knownHosts = mkOption {
      type = types.attrsOf (
        types.submodule {
          hostNames = types.listOf types.str;
          publicKey = types.nullOr types.str;
        }
      );
      default = { };
    };
    programs.ssh.extraConfig = mkOption {
      type = types.lines;
      default = "";
    };
  };
}
