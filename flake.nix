{
  description = "Your own Nix build farm: the flake of nixos/, and checks of what whole systems make of its modules";

  inputs = {
    # What src/nixosRelease.ts has new builders install, by the same hash.
    nixpkgs.url = "https://releases.nixos.org/nixos/26.05/nixos-26.05.11576.7c8764b7c7b0/nixexprs.tar.xz";
    nix-darwin = {
      url = "github:nix-darwin/nix-darwin/nix-darwin-26.05";
      inputs.nixpkgs.follows = "nixpkgs";
    };
    home-manager = {
      url = "github:nix-community/home-manager/release-26.05";
      inputs.nixpkgs.follows = "nixpkgs";
    };
  };

  outputs = inputs: (import ./nixos/flake.nix).outputs inputs // { checks = import ./test/nixos/systems.nix inputs; };
}
