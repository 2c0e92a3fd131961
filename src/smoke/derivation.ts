/** The smoke test's derivation: new every time, needs no input, and its output names the machine that built it. */

/** What the derivation's output says. */
export interface BuiltBy {
  readonly nonce: string;
  /** `/proc/sys/kernel/random/boot_id` as seen in the build sandbox: names the kernel that really ran the build. */
  readonly bootId: string;
  /** `uname -m` in the sandbox; where the shell has no `uname`, the kernel's own architecture. */
  readonly arch: string;
}

/**
 * A Nix expression for a derivation that has never been built.
 *
 * It needs `/bin/sh` in the sandbox and nothing else: NixOS has a static ash there, without applets.
 *
 * @param nonce Letters and digits; part of the name, so that no cache can know the output.
 * @param features Features that the derivation requires, for a builder with mandatory features.
 */
export function smokeExpression(nonce: string, system: string, features: readonly string[]): string {
  return `derivation {
  name = "fleet-smoke-${nonce}";
  system = "${system}";
  requiredSystemFeatures = [ ${features.map((feature) => `"${feature}"`).join(" ")} ];
  builder = "/bin/sh";
  args = [ "-c" ''
    read -r boot < /proc/sys/kernel/random/boot_id
    arch=$(uname -m 2>/dev/null) || read -r arch < /proc/sys/kernel/arch
    echo "${nonce} $boot $arch" > $out
  '' ];
}
`;
}

/**
 * Reads the derivation's output.
 *
 * @throws Error when it isn't what the derivation writes.
 */
export function parseBuiltBy(output: string): BuiltBy {
  const [nonce, bootId, arch] = output.trim().split(" ");
  if (nonce === undefined || bootId === undefined || arch === undefined) {
    throw new Error(`the smoke test's output is not what its derivation writes: ${JSON.stringify(output)}`);
  }
  return { nonce, bootId, arch };
}
