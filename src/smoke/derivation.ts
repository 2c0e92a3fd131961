/** The smoke test's derivations: new every time, and their outputs name the machine that built them. */
import { createHash } from "node:crypto";
import { oneLine } from "../machineText.ts";

/** What a derivation's output says of the build. */
export interface BuiltBy {
  readonly nonce: string;
  /** `/proc/sys/kernel/random/boot_id` as seen in the build sandbox: names the kernel that really ran the build. */
  readonly bootId: string;
  /** `uname -m` in the sandbox; where the shell has no `uname`, the kernel's own architecture. */
  readonly arch: string;
  /** Whether the build was in a sandbox: in its own folder `/build`, or alone in its process namespace. */
  readonly sandboxed: boolean;
  /** The builder's clock during the build, in seconds since 1970, to the second. */
  readonly clock: number;
  /** Whether the build could open `/dev/kvm`. */
  readonly kvm: boolean;
}

/** What is asked of one derivation. */
export interface SmokeDerivation {
  /** Letters and digits; part of the name, so that no cache can know the output. */
  readonly nonce: string;
  readonly system: string;
  /** Features that it requires. */
  readonly features: readonly string[];
}

/**
 * A derivation that has never been built, without inputs.
 *
 * Like all of them it needs `/bin/sh` in the sandbox and nothing else: NixOS has a static ash there, without applets.
 */
export function smokeExpression(derivation: SmokeDerivation): string {
  return expression(
    derivation,
    `read -r boot < /proc/sys/kernel/random/boot_id
    arch=$(uname -m 2>/dev/null) || read -r arch < /proc/sys/kernel/arch
    while read -r key value rest; do case $key in btime) booted=$value ;; esac; done < /proc/stat
    read -r up rest < /proc/uptime
    if [ -c /dev/kvm ] && ( : <> /dev/kvm ) 2>/dev/null; then kvm=kvm; else kvm=-; fi
    echo "${derivation.nonce} $boot $arch $NIX_BUILD_TOP $$ $((booted + \${up%.*})) $kvm" > $out`,
  );
}

/**
 * Reads the output of `smokeExpression`.
 *
 * @throws Error when it isn't what the derivation writes.
 */
export function parseBuiltBy(output: string): BuiltBy {
  const [nonce, bootId, arch, top, pid, clock, kvm] = output.trim().split(" ");
  if (nonce === undefined || bootId === undefined || arch === undefined || !/^\d{1,12}$/.test(clock ?? "") || !kvm) {
    throw new Error(`the smoke test's output is not what its derivation writes: ${oneLine(output, 200)}`);
  }
  for (const word of [nonce, bootId, arch]) {
    if (!/^[\w.-]{1,64}$/.test(word))
      throw new Error(`the smoke test's output has the word ${oneLine(word, 60)}, which its derivation doesn't write`);
  }
  const sandboxed = top === "/build" || Number(pid) < 10;
  return { nonce, bootId, arch, sandboxed, clock: Number(clock), kvm: kvm === "kvm" };
}

/** A derivation that depends on a file of the client and on another derivation; its output is `NONCE NONCE`. */
export function inputsExpression(derivation: SmokeDerivation): string {
  const { nonce } = derivation;
  const other = expression({ ...derivation, nonce: `${nonce}-input` }, `echo ${nonce} > $out`);
  return expression(
    derivation,
    "read -r a < $file; read -r b < $other; echo $a $b > $out",
    `file = builtins.toFile "fleet-smoke-${nonce}-file" "${nonce}\\n"; other = ${other};`,
  );
}

/** Size of the large output. */
export const bigMiB = 64;

/** A derivation with an output of 64 MiB; the line at its end says how long making it took, in hundredths of a second. */
export function bigExpression(derivation: SmokeDerivation): string {
  const eightTimes = "0 1 2 3 4 5 6 7";
  return expression(
    derivation,
    `read -r start rest < /proc/uptime
    block=0123456789abcde${derivation.nonce.slice(0, 1)}
    for i in ${eightTimes} ${eightTimes}; do block=$block$block; done
    for i in ${eightTimes}; do for j in ${eightTimes}; do printf %s "$block"; done; done > $out
    read -r end rest < /proc/uptime
    echo " $((\${end%.*}\${end#*.} - \${start%.*}\${start#*.}))" >> $out`,
  );
}

/** Two derivations that each take three seconds; their outputs are `START END`, in hundredths of a second of uptime. */
export function pairExpression(derivation: SmokeDerivation): string {
  const half = (name: string) =>
    expression(
      { ...derivation, nonce: `${derivation.nonce}-${name}` },
      `read -r start rest < /proc/uptime
    start=\${start%.*}\${start#*.}
    end=$start
    sleep 3 2>/dev/null || while [ $end -lt $((start + 300)) ]; do
      read -r end rest < /proc/uptime
      end=\${end%.*}\${end#*.}
    done
    read -r end rest < /proc/uptime
    echo "$start \${end%.*}\${end#*.}" > $out`,
    );
  return `[ (${half("a")}) (${half("b")}) ]`;
}

/** A derivation that fails after it wrote `logLine` into its log. */
export function failingExpression(derivation: SmokeDerivation): string {
  return expression(derivation, `echo "${logLine(derivation.nonce)}" >&2; exit 7`);
}

/** The nonce spelled backwards, as no message of Nix has it. */
export function logLine(nonce: string): string {
  return `log ${Array.from(nonce).reverse().join("")}`;
}

/** A fixed-output derivation: Nix knows the hash of what it will write. */
export function fixedOutputExpression(derivation: SmokeDerivation): string {
  const hash = createHash("sha256").update(`${derivation.nonce}\n`).digest("hex");
  return expression(
    derivation,
    `echo ${derivation.nonce} > $out`,
    `outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = "${hash}";`,
  );
}

/** What a build must not be able to change, one word each. */
export type Hole = "kernel" | "devices" | "shell" | "inputs";

/**
 * A derivation whose output is its nonce and the holes that it found. It looks without changing anything: opened for appending, nothing is
 * written, and what a build owns it can change whatever its mode. The shell's own means alone, as for all of them.
 */
export function takeoverExpression(derivation: SmokeDerivation): string {
  const { nonce } = derivation;
  return expression(
    derivation,
    `found=
    if ( : >> /proc/sys/kernel/core_pattern ) 2>/dev/null; then found="$found kernel"; fi
    if [ -O /dev/null ]; then found="$found devices"; fi
    if [ -w /bin/sh ]; then found="$found shell"; fi
    if [ -O $file ] || [ -w $file ]; then found="$found inputs"; fi
    echo "${nonce}$found" > $out`,
    `file = builtins.toFile "fleet-smoke-${nonce}-file" "${nonce}\\n";`,
  );
}

/** A derivation that runs a shell script. */
function expression({ nonce, system, features }: SmokeDerivation, script: string, attributes = ""): string {
  return `derivation {
  name = "fleet-smoke-${nonce}";
  system = "${system}";
  requiredSystemFeatures = [ ${features.map((feature) => `"${feature}"`).join(" ")} ];
  builder = "/bin/sh";
  args = [ "-c" ''
    ${script.replaceAll("${", "''${")}
  '' ];
  ${attributes}
}
`;
}
