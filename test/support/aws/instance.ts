/**
 * An instance of the emulated EC2: a host as Hetzner's, that boots as the official NixOS image does. The steps of the image
 * are quoted from nixpkgs (MIT): `apply-ec2-data` before sshd, `amazon-init` after it. `nixos-rebuild` is a stand-in.
 */
import type { HostOptions } from "../hcloud/host.ts";
import { nixosStandIn } from "../hcloud/conversionStandIn.ts";

/** What an instance is told by its metadata. */
export interface Metadata {
  readonly userData: string;
  /** OpenSSH public key line of the key pair. */
  readonly publicKey: string;
  readonly address: string;
  readonly hostName: string;
  readonly arm: boolean;
  /** What is wrong with it. */
  readonly fault?: "never opens SSH" | "another host key" | "nixos-rebuild fails" | undefined;
}

/** A host for it. */
export function instanceHost({ userData, publicKey, address, hostName, arm, fault }: Metadata): HostOptions {
  return {
    address,
    hostName,
    userData,
    disk: (put) => {
      put("/etc/hostname", `${hostName}\n`);
      put("/etc/emulated-address", address);
      put("/etc/emulated-system", arm ? "aarch64-linux" : "");
      put("/etc/os-release", "ID=nixos\n");
      put("/etc/NIXOS", "");
      put("/etc/nixos/configuration.nix", "{ }\n");
      put("/etc/ec2-metadata/user-data", userData, 0o600);
      put("/etc/ec2-metadata/public-keys-0-openssh-key", `${publicKey.trim()}\n`);
      put("/etc/nixos-boot", boot);
      put("/etc/nixos-convert", conversion());
      put("/usr/local/sbin/nix-channel", "#!/bin/sh\nexit 0\n", 0o755);
      put("/usr/local/sbin/nixos-rebuild", rebuilds[fault ?? "another host key"], 0o755);
      put("/usr/local/sbin/sleep", "#!/bin/sh\nexec /bin/sleep 0.05\n", 0o755);
      if (fault === "never opens SSH") put("/etc/emulated-no-sshd", "");
      // The image generates one of its own where it finds none in the user data.
      if (fault === "another host key") put("/etc/emulated-other-key", "");
    },
  };
}

const boot = `touch /run/host/console
mount --bind /run/host/console /dev/console
mkdir -p -m 0700 /root/.ssh
if ! [ -e /root/.ssh/authorized_keys ]; then
  (umask 177; cat /etc/ec2-metadata/public-keys-0-openssh-key >>/root/.ssh/authorized_keys)
fi
userData=/etc/ec2-metadata/user-data
mkdir -p /etc/ssh
[ ! -e /etc/emulated-other-key ] || [ -e /etc/ssh/ssh_host_ed25519_key ] ||
  ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key
if [ -s "$userData" ]; then
  key="$(sed 's/|/\\n/g; s/SSH_HOST_ED25519_KEY://; t; d' $userData)"
  key_pub="$(sed 's/SSH_HOST_ED25519_KEY_PUB://; t; d' $userData)"
  if [ -n "$key" ] && [ -n "$key_pub" ] && [ ! -e /etc/ssh/ssh_host_ed25519_key ]; then
    (umask 077; echo "$key" > /etc/ssh/ssh_host_ed25519_key)
    echo "$key_pub" > /etc/ssh/ssh_host_ed25519_key.pub
  fi
fi
if [ -e /etc/emulated-no-sshd ]; then :
elif [ -e /etc/nixos-boot-builder ]; then sh /etc/nixos-boot-builder
else
  cat >/etc/ssh/sshd_config <<CONF
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin prohibit-password
PasswordAuthentication no
PidFile /run/sshd-image.pid
CONF
  /usr/sbin/sshd -D -e -f /etc/ssh/sshd_config -o ListenAddress="$(cat /etc/emulated-address)":22 &
fi
bash $userData &
`;

const rebuild = `#!/bin/sh
set -e
echo "$@" >>/etc/nixos/rebuilds
[ ! -e /etc/nixos-boot-builder ] || exit 0
grep -q ./nix-builder/builder.nix /etc/nixos/configuration.nix
sh /etc/nixos-convert
image=$(cat /run/sshd-image.pid)
kill "$image"
while kill -0 "$image" 2>/dev/null; do /bin/sleep 0.02; done
sh /etc/nixos-boot-builder
`;

const failing = `#!/bin/sh
echo "error: attribute 'broken' missing"
exit 1
`;

const rebuilds: Readonly<Record<NonNullable<Metadata["fault"]>, string>> = {
  "never opens SSH": "#!/bin/sh\nexec /bin/sleep 600\n",
  "nixos-rebuild fails": failing,
  "another host key": rebuild,
};

/** What makes the host a builder, at the places that are free here. */
function conversion(): string {
  return nixosStandIn()
    .replaceAll("/etc/nixos-boot", "/etc/nixos-boot-builder")
    .replaceAll("/usr/local/sbin/nixos-rebuild", "/etc/nixos-rebuild-of-debian");
}
