/** The script that turns a Debian server into NixOS at first boot, and says how far it is. */
import { builderDirectory } from "./builderFiles.ts";

/** Where the tool comes from and what it installs. */
export interface Conversion {
  /** Git repository of nixos-infect. */
  readonly repository: string;
  /** Commit, all 40 digits: git checks what it fetches against it. */
  readonly commit: string;
  /** NixOS channel without its prefix: `25.11`. */
  readonly nixosRelease: string;
}

/** One line: what is being done, or `failed: REASON`. Read over SSH while people wait. */
export const stateFile = `${builderDirectory}/state`;

/** Everything that the conversion printed. */
export const conversionLog = "/var/log/nix-builder-convert.log";

/**
 * POSIX shell, for cloud-init's runcmd. Ends with a reboot into NixOS.
 *
 * PROVIDER is set to a name that nixos-infect doesn't know: with its own for Hetzner it would write the server's address
 * into the configuration, and no snapshot of the builder could run anywhere else. NixOS uses DHCP then.
 */
export function conversionScript({ repository, commit, nixosRelease }: Conversion): string {
  return `set -u
exec >>${conversionLog} 2>&1
say() { echo "$1" >${stateFile}.new && mv ${stateFile}.new ${stateFile}; }
fail() { say "failed: $1"; exit 1; }
attempt() {
  for pause in 1 2 4 8 16; do "$@" && return 0; sleep $pause; done
  "$@"
}
say "fetching nixos-infect"
command -v git >/dev/null || { attempt apt-get update && attempt apt-get install -y git; } || fail "git could not be installed"
cd "$(mktemp -d)" && git init -q . || fail "git does not work"
attempt git fetch -q --depth 1 '${repository}' ${commit} || fail "nixos-infect could not be fetched from ${repository} at ${commit}"
[ "$(git rev-parse FETCH_HEAD)" = ${commit} ] || fail "${repository} sent another commit than ${commit}; nothing of it was run"
git -c advice.detachedHead=false checkout -q FETCH_HEAD || fail "what was fetched from ${repository} can't be checked out"
say "converting to NixOS ${nixosRelease}"
PROVIDER=dhcp NIX_CHANNEL=nixos-${nixosRelease} NIXOS_IMPORT=./nix-builder/builder.nix NO_REBOOT=1 bash ./nixos-infect ||
  fail "nixos-infect ended with exit code $?"
say "rebooting into NixOS"
reboot
`;
}
