# home-manager, as far as our module sets options: modules/programs/ssh.nix and modules/files.nix of 25.11 to 26.11, and what they do where
# a person lets home-manager write ~/.ssh/config.
{ config, lib, ... }:
let
  inherit (lib) mkIf mkOption types;
  of = type: default: mkOption { inherit type default; };
  cfg = config.programs.ssh;
in
{
  options = {
    programs.ssh.enable = of types.bool false;
    programs.ssh.enableDefaultConfig = of types.bool true;
    programs.ssh.includes = of (types.listOf types.str) [ ];
    home.file = of (types.attrsOf (types.submodule { text = of (types.nullOr types.lines) null; })) { };
    warnings = of (types.listOf types.str) [ ];
  };
  config = mkIf cfg.enable {
    home.file.".ssh/config".text = "Include ${builtins.concatStringsSep " " cfg.includes}\n";
    warnings = mkIf cfg.enableDefaultConfig [ "`programs.ssh` default values will be removed in the future." ];
  };
}
