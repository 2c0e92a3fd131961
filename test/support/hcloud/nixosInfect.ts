/**
 * A stand-in for nixos-infect, in a git repository of its own: turns an emulated Debian into what NixOS would be with
 * nixos/builder.nix, as far as a client can tell. sshd's configuration and the forced command are those that the module itself
 * evaluates to.
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemOfThisMachine } from "../../../src/nix/system.ts";
import { evaluateBuilder, sshdConfig } from "../../nixos/evaluateBuilder.ts";
import { sandboxShell } from "./host.ts";

/** The repository; its `configuration` goes into the stack's `hcloud`. */
export class NixosInfect {
  readonly configuration: { readonly repository: string; readonly commit: string };
  /** Visible to every emulated host; they hide /tmp. */
  readonly directory: string;

  /** @param script Shell that converts the server that it runs on. */
  constructor(script: string = conversionStandIn()) {
    this.directory = mkdtempSync("/var/lib/fleet-nixos-infect-");
    const git = (...words: string[]): string =>
      execFileSync("git", ["-c", "user.name=test", "-c", "user.email=test@localhost", ...words], {
        cwd: this.directory,
        encoding: "utf8",
      }).trim();
    git("init", "-q");
    writeFileSync(join(this.directory, "nixos-infect"), script);
    git("add", ".");
    git("commit", "-q", "-m", "stand-in");
    git("config", "uploadpack.allowAnySHA1InWant", "true");
    this.configuration = { repository: `file://${this.directory}`, commit: git("rev-parse", "HEAD") };
  }

  remove(): void {
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** Shell that turns an emulated host into what NixOS would be with nixos/builder.nix. */
export function conversionStandIn(): string {
  const own = mkdtempSync(`${tmpdir()}/fleet-module-`);
  const module = evaluateBuilder(own, { trustedClients: true });
  const { config, forcedCommand } = sshdConfig(module);
  rmSync(own, { recursive: true });
  const system = systemOfThisMachine();
  if (system === undefined) throw new Error("emulated hosts need Linux on x86_64 or Arm");
  return `set -eu
[ "$NIXOS_IMPORT" = ./nix-builder/builder.nix ]
[ -e /etc/nixos/nix-builder/builder.nix ]
cat >/etc/nix-ssh <<'EOF'
${forcedCommand.trimEnd()}
EOF
chmod 755 /etc/nix-ssh
cat >/etc/sshd_nixos <<'EOF'
HostKey /etc/ssh/ssh_host_ed25519_key
PidFile none
${config.replace(/ForceCommand \S+/, "ForceCommand /etc/nix-ssh").trimEnd()}
EOF
cat >/etc/nix-start <<'EOF'
mkdir -p /etc/nix
shell=${sandboxShell(system)}
extra=
case " $(cat /etc/emulated-system 2>/dev/null) " in
  *" aarch64-linux "*) shell=${sandboxShell("aarch64-linux")} extra=aarch64-linux ;;
esac
cat >/etc/nix/nix.conf <<CONF
build-users-group = nixbld
trusted-users = root $(! grep -q '"trustedClients": true' /etc/nixos/nix-builder/parameters.json || echo nix-builder-trusted)
!include /etc/nixos/nix-builder/signing/nix.conf
sandbox = true
sandbox-fallback = false
sandbox-paths = /bin/sh=$shell
substituters =
extra-platforms = $extra
system-features = $(awk '/"systemFeatures"/,/]/' /etc/nixos/nix-builder/parameters.json | tr -d '[]",:' | sed 's/systemFeatures//' | xargs)
CONF
[ ! -e /run/nix-daemon.pid ] || kill "$(cat /run/nix-daemon.pid)"
nix-daemon &
echo $! >/run/nix-daemon.pid
EOF
cat >/etc/nixos-boot <<'EOF'
getent group nix-builder >/dev/null || echo 'nix-builder:x:29999:' >>/etc/group
id -u nix-builder >/dev/null 2>&1 || echo 'nix-builder:x:29999:29999::/var/empty:/bin/sh' >>/etc/passwd
id -u nix-builder-trusted >/dev/null 2>&1 || echo 'nix-builder-trusted:x:29998:29999::/var/empty:/bin/sh' >>/etc/passwd
getent group nixbld >/dev/null || {
  members=
  for i in 1 2 3 4 5 6 7 8; do
    echo "nixbld$i:x:$((30000 + i)):30000::/var/empty:/bin/false" >>/etc/passwd
    members=$members,nixbld$i
  done
  echo "nixbld:x:30000:$members" | sed 's/:,/:/' >>/etc/group
}
sed -i 's/^root:[^:]*:/root:*:/' /etc/shadow
for user in nix-builder nix-builder-trusted; do
  grep -q "^$user:" /etc/shadow || echo "$user:*:1::::::" >>/etc/shadow
done
mkdir -p /var/empty
sh /etc/nix-start
/usr/sbin/sshd -D -e -f /etc/sshd_nixos -o ListenAddress="$(cat /etc/emulated-address)":22 &
EOF
cat >/usr/local/sbin/nixos-rebuild <<'EOF'
#!/bin/sh
sh /etc/nix-start </dev/null >/dev/null 2>&1
EOF
chmod 755 /usr/local/sbin/nixos-rebuild
cat >/usr/local/sbin/systemctl <<'EOF'
#!/bin/sh
[ "$*" = "try-restart nix-daemon.service" ] || exec /usr/bin/systemctl "$@"
sh /etc/nix-start </dev/null >/dev/null 2>&1
EOF
chmod 755 /usr/local/sbin/systemctl
echo 'ID=nixos' >/etc/os-release
touch /etc/NIXOS
`;
}

/**
 * The same for a whole Debian, whose systemd starts at every boot what NixOS would start. Its cloud-init stays, so that it can
 * still be asked how it went.
 */
export function debianStandIn(): string {
  return `${conversionStandIn()}
install -D /bin/busybox ${sandboxShell("x86_64-linux")}
echo 0.0.0.0 >/etc/emulated-address
cat >/etc/systemd/system/nixos.service <<'EOF'
[Unit]
After=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
RuntimeDirectory=sshd
ExecStart=/bin/sh /etc/nixos-boot
[Install]
WantedBy=multi-user.target
EOF
systemctl disable ssh
systemctl enable nixos
`;
}
