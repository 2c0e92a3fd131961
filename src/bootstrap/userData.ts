/** User data of an EC2 instance that runs the official NixOS image: the pinned host key, then a script that makes a builder. */
import { gzipSync } from "node:zlib";
import {
  appliedMark,
  builderDirectory,
  keyFiles,
  moduleFiles,
  type BuilderKeys,
  type BuilderParameters,
} from "./builderFiles.ts";
import { conversionLog, stateFile } from "./conversion.ts";

/** Size that EC2 accepts, in bytes. Source: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-add-user-data.html. */
export const ec2UserDataLimit = 16 * 1024;

/** What an instance is told at birth. */
export interface InstanceBirth extends BuilderKeys {
  /** OpenSSH private host key (PEM), made before the instance. */
  readonly hostPrivateKey: string;
  /** Its public line. */
  readonly hostPublicKey: string;
  readonly parameters: BuilderParameters;
  /** Text of nixos/builder.nix. */
  readonly builderNix: string;
  /** NixOS release: `YY.MM`. */
  readonly nixosRelease: string;
}

/**
 * Text that the image takes in two ways. Before sshd starts, its `apply-ec2-data` picks the host key out of the two
 * `SSH_HOST_ED25519_KEY` lines: with `sed 's/|/\n/g; …; t; d'`, which takes every other line with a `|` for a part of the key,
 * so there is none. After the boot, and after every later one, its `amazon-init` runs the whole with bash because it starts
 * with `#!`. The script does nothing once the builder stands, and goes on where an interrupted run has stopped.
 *
 * The files are compressed: that keeps the text below the limit, and free of `|`.
 *
 * Source: nixpkgs, nixos/modules/virtualisation/ec2-data.nix and amazon-init.nix.
 *
 * @throws Error when it is larger than EC2 accepts.
 */
export function instanceUserData(birth: InstanceBirth): string {
  const module = moduleFiles(birth.parameters, birth.builderNix);
  const files = { ...module, ...keyFiles(birth) };
  const text = `#!/usr/bin/env bash
: <<'SSH_HOST_KEY'
SSH_HOST_ED25519_KEY_PUB:${birth.hostPublicKey.trim()}
SSH_HOST_ED25519_KEY:${birth.hostPrivateKey.trim().replaceAll("\n", "|")}
SSH_HOST_KEY
set -u
umask 022
mkdir -p ${builderDirectory}/keys
if ! cd ${builderDirectory}; then exit 1; fi
if [ -e applied ]; then exit 0; fi
exec >>${conversionLog} 2>&1
say() {
  echo "$1" >${stateFile}.new
  mv ${stateFile}.new ${stateFile}
  echo "nix-builder-fleet: $1" >>/dev/console
}
attempt() {
  for pause in 1 4 16 64; do
    if "$@"; then return 0; fi
    sleep $pause
  done
  "$@"
}
say "writing the builder's configuration"
base64 -d >files.gz <<'FILES'
${wrapped(gzipSync(writeFiles(files), { level: 9 }).toString("base64"))}
FILES
gzip -dc files.gz >files
. ./files
rm files files.gz
if ! grep -q nix-builder/builder.nix /etc/nixos/configuration.nix; then
  if [ -e /etc/nixos/configuration.nix ]; then mv /etc/nixos/configuration.nix /etc/nixos/nix-builder-image.nix; fi
  cat >/etc/nixos/configuration.nix.new <<'NIX'
${configurationNix(birth.nixosRelease)}NIX
  mv /etc/nixos/configuration.nix.new /etc/nixos/configuration.nix
fi
if [ ! -e /nix/var/nix/profiles/per-user/root/channels/nixos ]; then
  say "fetching the channel nixos-${birth.nixosRelease}"
  nix-channel --add https://channels.nixos.org/nixos-${birth.nixosRelease} nixos
  if ! attempt nix-channel --update nixos; then
    say "failed: the channel nixos-${birth.nixosRelease} could not be fetched"
    exit 1
  fi
fi
say "rebuilding NixOS as a builder"
if ! attempt nixos-rebuild switch; then
  say "failed: nixos-rebuild ended with an error"
  exit 1
fi
echo ${appliedMark(module)} >applied.new
mv applied.new applied
say "running"
`;
  const size = Buffer.byteLength(text);
  if (size > ec2UserDataLimit) {
    throw new Error(
      `the user data has ${size} bytes, but EC2 allows only ${ec2UserDataLimit}; ` +
        "configure fewer clients with keys of their own or fewer features",
    );
  }
  return text;
}

/** What the image was configured with stays: it knows how the instance boots. */
function configurationNix(release: string): string {
  return `{ lib, modulesPath, ... }:
{
  imports = [
    ./nix-builder/builder.nix
    (if builtins.pathExists ./nix-builder-image.nix then ./nix-builder-image.nix else "\${modulesPath}/virtualisation/amazon-image.nix")
  ];
  system.stateVersion = lib.mkDefault "${release}";
}
`;
}

/** Shell that writes the files below the working directory. */
function writeFiles(files: Readonly<Record<string, string>>): string {
  return Object.entries(files)
    .map(([name, text]) =>
      // A here-document has one line at least.
      text === "" ? `: >'${name}'\n` : `cat >'${name}' <<'NIX_BUILDER_FILE'\n${text.trimEnd()}\nNIX_BUILDER_FILE\n`,
    )
    .join("");
}

function wrapped(base64: string): string {
  return base64.replaceAll(/.{76}/g, "$&\n").trimEnd();
}
