# nix-darwin, as far as our modules set options (25.05 to 26.11).
{ config, lib, ... }:
{
  imports = [ ./client.nix ];
  config = lib.mkIf config.nix.enable {
    nix.settings = {
      build-users-group = "nixbld";
      sandbox-fallback = false;
    };
  };
}
