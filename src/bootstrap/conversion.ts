/** The script that turns a Debian server into NixOS at first boot, and says how far it is. */
import type { Pin } from "../nixosRelease.ts";
import { kernelArch, type System } from "../nix/system.ts";
import { builderDirectory } from "./builderFiles.ts";

/** What a server is converted with. Nothing else is fetched but what cache.nixos.org has signed. */
export interface Conversion {
  readonly system: System;
  /** Nix's official release archive for the system; hash of the file, in hexadecimal. */
  readonly nix: Pin;
  /** nixpkgs, whose NixOS is installed; hash of the unpacked tree. */
  readonly nixpkgs: Pin;
}

/** One line: what is being done, or `failed: REASON`. Read over SSH while people wait. */
export const stateFile = `${builderDirectory}/state`;

/** Everything that the conversion printed, with the seconds at which each step began. */
export const conversionLog = "/var/log/nix-builder-convert.log";

/** What nixos/hcloud.nix has to know of the disk; the conversion writes it. */
export const diskFile = `${builderDirectory}/disk.json`;

/** While it is there, the initrd of nixos/hcloud.nix moves the old system's files away. Below /nix, which it leaves alone. */
export const moveMark = "/nix/var/nix-builder-move-old-root";

/** The last state on Debian. */
export const rebootingState = "rebooting into NixOS";

/** Source: https://cache.nixos.org, and the default of `trusted-public-keys` in Nix's manual. */
const cache = {
  url: "https://cache.nixos.org",
  publicKey: "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=",
};

/** Types of partitions. Source: https://uapi-group.org/specifications/specs/discoverable_partitions_specification, and GRUB's manual. */
const partitionTypes = {
  esp: "c12a7328-f81f-11d2-ba4b-00a0c93ec93b",
  biosBoot: "21686148-6449-6e6f-744e-656564454649",
};

/**
 * POSIX shell, for cloud-init's runcmd. Ends with a reboot into NixOS, or with `failed: REASON` as state and Debian running as before.
 *
 * Nothing of what it fetches is run before its hash was compared. NixOS is built from /etc/nixos/configuration.nix, which it writes.
 */
export function conversionScript({ system, nix, nixpkgs }: Conversion): string {
  return `set -u
umask 022
exec >>${conversionLog} 2>&1
started=$(date +%s)
state() { printf '%s\\n' "$1" >${stateFile}.new && mv ${stateFile}.new ${stateFile}; }
say() {
  seconds=$(($(date +%s) - started))
  echo "[$seconds s] $1"
  state "$1 ($seconds s so far)"
}
fail() {
  rm -f ${moveMark} /etc/NIXOS
  echo "failed: $1"
  state "failed: $1"
  exit 1
}
attempt() {
  for pause in 1 2 4 8 16; do "$@" && return 0; sleep $pause; done
  "$@"
}

say "looking at the disk"
[ "$(uname -m)" = ${kernelArch(system)} ] || fail "this server is $(uname -m), and not ${kernelArch(system)}"
type=$(findmnt -nro FSTYPE /)
[ "$type" = ext4 ] || fail "the root file system is $type, and not ext4 as on Hetzner's Debian"
root=$(findmnt -nro SOURCE /)
disk=$(lsblk -nrpo PKNAME "$root" | head -n 1)
[ -n "$disk" ] || fail "$root, the root file system, is no partition"
ofType() { lsblk -nrpo PARTTYPE,"$2" "$disk" | sed -n "s/^$1 //p" | head -n 1; }
esp=null
partition=$(ofType ${partitionTypes.esp} NAME)
if [ -n "$partition" ]; then
  mkdir -p /boot/efi
  mountpoint -q /boot/efi || mount "$partition" /boot/efi || fail "$partition, the EFI system partition, can't be mounted"
  esp="\\"$(ofType ${partitionTypes.esp} UUID)\\""
fi
bios=false
if [ $(uname -m) = x86_64 ]; then
  [ "$(lsblk -dnro PTTYPE "$disk")" = gpt ] && [ -z "$(ofType ${partitionTypes.biosBoot} NAME)" ] || bios=true
fi
[ "$esp $bios" != "null false" ] || fail "$disk has neither an EFI system partition nor a place for a BIOS boot loader"
printf '{ "disk": "%s", "root": "%s", "esp": %s, "bios": %s }\\n' "$disk" "$(lsblk -nro UUID "$root")" "$esp" $bios >${diskFile}
cat ${diskFile}

say "fetching Nix"
work=$(mktemp -d /var/tmp/nix-builder.XXXXXX) && cd "$work" || fail "there is no room below /var/tmp"
command -v curl && command -v xz || { attempt apt-get update && attempt apt-get install -y curl xz-utils; } || fail "curl and xz could not be installed"
attempt curl -fsSL -o nix.tar.xz '${nix.url}' || fail "${nix.url} could not be fetched"
echo '${nix.hash}  nix.tar.xz' | sha256sum -c || fail "${nix.url} has another SHA-256 than ${nix.hash}; nothing of it was run"
mkdir nix && tar -xJf nix.tar.xz --strip-components=1 --no-same-owner -C nix || fail "${nix.url} can't be unpacked"
nix=$(sed -n 's/^nix="\\(.*\\)"$/\\1/p' nix/install)
cacert=$(sed -n 's/^cacert="\\(.*\\)"$/\\1/p' nix/install)
[ -n "$nix" ] && [ -n "$cacert" ] || fail "${nix.url} is no release archive of Nix"
mkdir -p /nix/store /nix/var/nix
chmod -R a-w nix/store && cp -a nix/store/. /nix/store/ && chmod 1775 /nix/store || fail "Nix can't be copied to /nix"
getent group nixbld || groupadd -r nixbld
for number in 1 2 3 4 5 6 7 8; do
  id -u nixbld$number 2>/dev/null || useradd -r -M -g nixbld -G nixbld -d /var/empty -s /usr/sbin/nologin nixbld$number
done
chgrp nixbld /nix/store || fail "users for builds can't be made"
export HOME=/root PATH="$nix/bin:$PATH" NIX_REMOTE=local NIX_CONF_DIR="$work" NIX_USER_CONF_FILES= NIX_PATH=
export NIX_SSL_CERT_FILE="$cacert/etc/ssl/certs/ca-bundle.crt"
export NIX_CONFIG="build-users-group = nixbld
max-jobs = auto
sandbox = true
substituters = ${cache.url}
trusted-public-keys = ${cache.publicKey}"
nix-store --load-db <nix/.reginfo || fail "Nix does not run"

say "fetching nixpkgs"
cat >install.nix <<'NIX'
rec {
  nixpkgs = builtins.fetchTarball {
    url = "${nixpkgs.url}";
    sha256 = "${nixpkgs.hash}";
  };
  system = (import "\${nixpkgs}/nixos" { configuration = /etc/nixos/configuration.nix; }).system;
  channel = (import nixpkgs { }).linkFarm "nixos-channel" [
    {
      name = "nixos";
      path = nixpkgs;
    }
  ];
}
NIX
nixpkgs=$(nix-instantiate --eval --read-write-mode -A nixpkgs install.nix | tr -d '"')
[ -n "$nixpkgs" ] || fail "${nixpkgs.url} could not be fetched, or is not what its hash says"
release=$(cat "$nixpkgs/lib/.version") || fail "${nixpkgs.url} is no nixpkgs"
cat >/etc/nixos/configuration.nix <<NIX
{
  imports = [
    ./nix-builder/builder.nix
    ./nix-builder/hcloud.nix
  ];
  system.stateVersion = "$release";
}
NIX

say "evaluating NixOS $release"
drv=$(nix-instantiate --add-root "$work/system.drv" --indirect -A system install.nix) || fail "NixOS $release can't be evaluated"

say "fetching and building NixOS $release"
# Tells who waits each tenth of what Nix said there is to do.
progress() {
  all=0 done=0 told=0
  while IFS= read -r line; do
    printf '%s\\n' "$line"
    case $line in
      "these "*" will be "*) all=$((all + $(echo "$line" | cut -d ' ' -f 2))) ;;
      "this "*" will be "*) all=$((all + 1)) ;;
      "copying path "* | "building "*)
        done=$((done + 1))
        if [ $all -gt 0 ] && [ $((done * 10 / all)) -gt $told ] && [ $done -lt $all ]; then
          told=$((done * 10 / all))
          say "fetching and building NixOS $release: $((told * 10)) %"
        fi
        ;;
    esac
  done
}
{ nix-store --realise "$drv" --add-root "$work/system" --indirect 2>&1 >/dev/null; echo $? >code; } | progress
[ "$(cat code)" = 0 ] || fail "NixOS $release can't be built"
nix-build --no-out-link -A channel install.nix >channel || fail "the channel of NixOS $release can't be made"
mkdir -p /nix/var/nix/profiles/per-user/root
nix-env -p /nix/var/nix/profiles/per-user/root/channels --set "$(cat channel)" && nix-env -p /nix/var/nix/profiles/system --set "$(readlink -f system)" ||
  fail "the profiles of NixOS can't be made"

say "installing the boot loader"
: >${moveMark} && : >/etc/NIXOS
NIXOS_INSTALL_BOOTLOADER=1 "$(readlink -f system)/bin/switch-to-configuration" boot || fail "the boot loader can't be installed"
# What the firmware remembers of Debian would start Debian's boot loader.
rm -rf /boot/efi/EFI/debian
sync
echo "[$(($(date +%s) - started)) s] ${rebootingState}"
state "${rebootingState}"
reboot
`;
}
