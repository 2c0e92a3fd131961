# The options of home-manager that the module sets, as its modules/programs/ssh.nix and modules/files.nix declare them.
{ lib, ... }:
let
  inherit (lib) mkOption types;
in
{
  options = {
    programs.ssh.enable = mkOption {
      type = types.bool;
      default = false;
    };
    programs.ssh.includes = mkOption {
      type = types.listOf types.str;
      default = [ ];
    };
    home.file = mkOption {
      type = types.attrsOf (types.submodule { text = types.nullOr types.lines; });
      default = { };
    };
  };
}
