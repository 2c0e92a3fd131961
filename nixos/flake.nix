{
  description = "A NixOS or nix-darwin machine as a client of a nix-builder-fleet";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { nixpkgs, ... }:
    let
      forEachSystem = nixpkgs.lib.genAttrs [
        "x86_64-linux"
        "aarch64-linux"
        "x86_64-darwin"
        "aarch64-darwin"
      ];
    in
    {
      # nix.builderFleet.file = ./fleet.json; and the rest of the options in client.nix.
      nixosModules.default = ./client.nix;
      darwinModules.default = ./client.nix;

      # What working on this project needs, and what `npm start` would otherwise fetch.
      devShells = forEachSystem (
        system:
        let
          pkgs = nixpkgs.legacyPackages.${system};
        in
        {
          default = pkgs.mkShell {
            packages = [
              pkgs.nodejs_24
              pkgs.pulumi
              pkgs.pulumiPackages.pulumi-nodejs
              pkgs.nix
              pkgs.openssh
              pkgs.git
              pkgs.jq
              pkgs.actionlint
            ];
          };
        }
      );
    };
}
