# One derivation for each system of the default fleet; needs nothing but a builder: `npx fleet build docs/hello.nix`.
let
  hello =
    system:
    derivation {
      name = "hello-${system}";
      inherit system;
      builder = "/bin/sh";
      args = [
        "-c"
        "echo \"Hello from a builder for ${system}\" > $out"
      ];
    };
in
{
  x86 = hello "x86_64-linux";
  arm = hello "aarch64-linux";
}
