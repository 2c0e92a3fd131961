/** Looks at a machine from the inside: the script that runs there, what it refuses, and what it printed. */
import { oneLine, quoted } from "../machineText.ts";
import type { SshUsers } from "../nix/buildMachine.ts";
import type { Trust } from "../nix/trust.ts";
import { kernelArch, type System } from "../nix/system.ts";

/** What was measured. Sizes in MiB. */
export interface Measurement {
  /** `/proc/sys/kernel/random/boot_id`: names this machine since its last boot. */
  readonly bootId: string;
  /** The kernel's own architecture, as `uname -m`. */
  readonly arch: string;
  /** Processors that a build may use. */
  readonly cpus: number;
  readonly memoryMiB: number;
  /** Size of the file system with the Nix store, and what is free of it. */
  readonly diskMiB: number;
  readonly diskFreeMiB: number;
  /** Whether there is a `/dev/kvm`. */
  readonly kvm: boolean;
  /** For instance `2.8.0`. */
  readonly nixVersion: string;
  /** Systems that its Nix builds for: `system` and `extra-platforms`. */
  readonly nixSystems: readonly string[];
  /** Its Nix's `system-features`. */
  readonly nixFeatures: readonly string[];
  /** Its Nix's `sandbox` setting: `true` or `relaxed`, as anything else is refused. */
  readonly sandbox: string;
  /** Its Nix's `cores`, `min-free` and `max-free`, as they stand there (free space in bytes). */
  readonly cores: string;
  readonly minFree: string;
  readonly maxFree: string;
  /** sshd's limit of connections under way, as `10:30:100`; empty where it doesn't tell this user. */
  readonly maxStartups: string;
}

/** What the fleet says of a builder, and what has to be found. */
export interface Declared {
  /** Name within the fleet, for messages. */
  readonly name: string;
  readonly system: System;
  /** Supported and mandatory features. */
  readonly features: readonly string[];
  /** Users that clients log in as, and whether its Nix is to trust them. */
  readonly users: readonly { readonly user: string; readonly trusted: boolean }[];
}

/**
 * The users of these levels; none where one user serves both kinds of clients, as then something else tells them apart.
 *
 * @param levels Those in use.
 */
export function measuredUsers(sshUsers: SshUsers, levels: readonly Trust[]): Declared["users"] {
  if (sshUsers.none === sshUsers.full || sshUsers.signed === sshUsers.full) return [];
  const users = new Map(levels.map((level) => [sshUsers[level], level === "full"]));
  return [...users].map(([user, trusted]) => ({ user, trusted }));
}

/** What is unusual about where and how a machine runs Nix. */
export interface Peculiarities {
  /** Folder of its Nix's programs. Default: where a login finds them, or NixOS and the official installer put them. */
  readonly path?: string;
  /** True where builds run through emulation, so that the kernel is of another architecture. Default: false. */
  readonly emulated?: boolean;
  /** Folder of its `nix.conf`. Default: the system's. */
  readonly nixConfDir?: string;
  /** Folder on the file system that the store is on, where clients write to that store without a daemon. Default: `/nix`, with one. */
  readonly ownStore?: string;
  /** sshd's configuration file. Default: the system's. */
  readonly sshdConfig?: string;
}

/** The settings of Nix that are looked at → the shell's variable. The shell would take as long to go through all as Nix to print them. */
const settings: Readonly<Record<string, string>> = {
  system: "systems",
  "extra-platforms": "platforms",
  "system-features": "nixFeatures",
  sandbox: "sandbox",
  "trusted-users": "trusted",
  cores: "cores",
  "min-free": "minFree",
  "max-free": "maxFree",
};

/** Command whose standard input is `measureScript`: what a failing command prints of itself is then two words. */
export const measureCommand = "sh -s";

/**
 * POSIX shell. Prints `NAME = VALUE` lines; what contradicts the declaration is said on stderr in words, and fails it.
 *
 * Declared ≠ measured is decided on the machine itself, so that the measurement fails and is made again by the next deployment:
 * the result of a successful one would be remembered.
 */
export function measureScript(
  declared: Declared,
  { path, emulated, nixConfDir, ownStore, sshdConfig }: Peculiarities = {},
) {
  const { name, system, features, users } = declared;
  const kvm = features.includes("kvm");
  return `set -u
PATH=${path === undefined ? "" : `'${path}':`}"$PATH:/nix/var/nix/profiles/default/bin:/run/current-system/sw/bin:/usr/sbin:/sbin"
${nixConfDir === undefined ? "" : `export NIX_CONF_DIR='${nixConfDir}' NIX_USER_CONF_FILES=''`}
failed=0
problem() { echo "builder '${name}': $1." >&2; failed=1; }
has() { case " $1 " in *" $2 "*) return 0 ;; esac; return 1; }
${Object.values(settings)
  .map((variable) => `${variable}=`)
  .join(" ")}
while read -r setting _ value; do
  case $setting in
${Object.entries(settings)
  .map(([setting, variable]) => `    ${setting}) ${variable}=$value ;;`)
  .join("\n")}
  esac
done <<END
$(nix show-config --extra-experimental-features nix-command 2>/dev/null </dev/null | sed -nE '/^(${Object.keys(settings).join("|")}) = /p')
END
version=$(nix --version 2>/dev/null </dev/null)
version=\${version##* }
if [ -z "$version" ]; then
  problem "its administrator finds no Nix; install Nix there, or put it on the PATH of a non-interactive login"
  exit 1
fi
arch=$(uname -m)
systems="$systems $platforms"
has "$systems" ${system} ||
  problem "its Nix builds for $systems, not for ${system}; correct \\\`system\\\`, or that machine's \\\`extra-platforms\\\`"
${
  emulated === true
    ? ""
    : `[ "$arch" = ${kernelArch(system)} ] ||
  problem "it is a $arch machine, not the ${kernelArch(system)} one that ${system} needs; correct \\\`system\\\` or take another machine"`
}
for feature in ${features.join(" ")}; do
  has "$nixFeatures" "$feature" ||
    problem "its Nix doesn't have the feature $feature (it has: $nixFeatures); remove it from the builder's features, or add it to that machine's \\\`system-features\\\`"
done
if [ -e /dev/kvm ]; then kvm=true; else kvm=false; fi
${kvm && emulated === true ? `problem "it can't have the feature kvm, because its builds are emulated; remove it from the builder's features"` : ""}
${
  kvm && emulated !== true
    ? `$kvm || problem "it has no /dev/kvm, so builds that need kvm would fail or emulate; remove kvm from its features, or take a machine with virtualisation"`
    : ""
}
case $sandbox in
  true | relaxed) ;;
  *) problem "it builds without a sandbox (\\\`sandbox = $sandbox\\\`), so what it builds may depend on that machine; set \\\`sandbox = true\\\` there" ;;
esac
${
  ownStore === undefined
    ? users
        .map(({ user, trusted }) => {
          const found = trusted
            ? `$trust || problem "its Nix does not trust the user ${user}, so it would refuse what clients at trust: full send; add ${user} to \\\`trusted-users\\\` there"`
            : `$trust && problem "its Nix trusts the user ${user} (\\\`trusted-users = $trusted\\\`), so that clients at trust: none or signed would be root there; take ${user} and its groups out of \\\`trusted-users\\\`"`;
          return `trust=false
[ ${user} = root ] && trust=true
has "$trusted" ${user} && trust=true
has "$trusted" '*' && trust=true
for group in $(id -Gn ${user} 2>/dev/null); do has "$trusted" "@$group" && trust=true; done
${found}`;
        })
        .join("\n")
    : ""
}
[ $failed = 0 ] || exit 1
disk=$(df -Pk '${ownStore ?? "/nix"}' | { read -r _; read -r _ size _ free _; echo "$((size / 1024)) $((free / 1024))"; })
read -r _ memory _ </proc/meminfo
read -r bootId </proc/sys/kernel/random/boot_id
cat <<END
bootId = $bootId
arch = $arch
cpus = $(nproc)
memoryMiB = $((memory / 1024))
diskMiB = \${disk% *}
diskFreeMiB = \${disk#* }
kvm = $kvm
nixVersion = $version
nixSystems = $systems
nixFeatures = $nixFeatures
sandbox = $sandbox
cores = $cores
minFree = $minFree
maxFree = $maxFree
maxStartups = $(sshd -T${sshdConfig === undefined ? "" : ` -f '${sshdConfig}'`} 2>/dev/null </dev/null | sed -n 's/^maxstartups //p')
END
`;
}

/** What a machine may take and send to be measured, encryption included; a sound one needs a second and some kilobytes. */
export const measurementLimits = { seconds: 60, bytes: 64 * 1024 } as const;

/**
 * Reads what the script printed. It is the machine's word: of a value only printable ASCII is taken, and no more than a sound machine has.
 *
 * @throws Error when it isn't that.
 */
export function parseMeasurement(stdout: string): Measurement {
  const values = new Map(
    stdout.split("\n").flatMap((line) => {
      const [, name, value] = /^(\w+) = ?(.*)$/.exec(line) ?? [];
      return name === undefined || value === undefined ? [] : [[name, value.trim()] as const];
    }),
  );
  const text = (name: keyof Measurement): string => {
    const value = values.get(name);
    if (value === undefined) {
      throw new Error(
        `the builder was measured without a value for ${name}. The end of what it said:\n${quoted(stdout, 3)}`,
      );
    }
    if (!/^[ -~]{0,1000}$/.test(value)) {
      throw new Error(`the builder was measured with ${name} = ${oneLine(value, 60)}, which no sound one has`);
    }
    return value;
  };
  const count = (name: keyof Measurement): number => {
    const value = text(name);
    if (!/^\d{1,15}$/.test(value)) {
      throw new Error(`the builder was measured with ${name} = ${oneLine(value, 60)}, not a number`);
    }
    return Number(value);
  };
  const list = (name: keyof Measurement): string[] => text(name).split(" ").filter(Boolean);
  return {
    bootId: text("bootId"),
    arch: text("arch"),
    cpus: count("cpus"),
    memoryMiB: count("memoryMiB"),
    diskMiB: count("diskMiB"),
    diskFreeMiB: count("diskFreeMiB"),
    kvm: text("kvm") === "true",
    nixVersion: text("nixVersion"),
    nixSystems: list("nixSystems"),
    nixFeatures: list("nixFeatures"),
    sandbox: text("sandbox"),
    cores: text("cores"),
    minFree: text("minFree"),
    maxFree: text("maxFree"),
    maxStartups: text("maxStartups"),
  };
}
