/**
 * What a conversion fetches, where no network is: an archive of Nix and one of nixpkgs, both with real hashes. The programs in the first
 * run this machine's own Nix, so that hashes, evaluation, builds and profiles are real; what the second builds is no NixOS: its
 * `switch-to-configuration` makes of an emulated Debian what NixOS would be with nixos/builder.nix, as far as a client can tell. sshd's
 * configuration and the forced command are those that the module itself evaluates to.
 */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  chmodSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { findLocalTools } from "../../../src/local/tools.ts";
import { systemOfThisMachine } from "../../../src/nix/system.ts";
import type { Pin } from "../../../src/nixosRelease.ts";
import { evaluateBuilder, sshdConfig } from "../../nixos/evaluateBuilder.ts";
import { sandboxShell } from "./host.ts";

/** What may differ from what emulated servers need. */
export interface StandInOptions {
  /** Shell, run as `switch-to-configuration boot`. */
  readonly switchScript?: string;
  /** Text of nixpkgs' `nixos/default.nix`. */
  readonly nixosNix?: string;
  /** Where the server has the programs of a real Nix; default: where this machine has them. */
  readonly nixPrograms?: string;
  /** The shell of sandboxes on the server; default: where emulated hosts have it. */
  readonly shell?: string;
  /** Where the server finds the archives; default: where they are here. */
  readonly addressOf?: (directory: string, file: string) => string;
}

/** The archives; their `configuration` goes into the stack's `hcloud`. */
export class ConversionStandIn {
  readonly configuration: {
    readonly nixArchives: Readonly<Record<"x86_64-linux" | "aarch64-linux", Pin>>;
    readonly nixpkgs: Pin;
  };
  /** Visible to every emulated host; they hide /tmp. */
  readonly directory = mkdtempSync("/var/lib/fleet-conversion-");

  constructor({
    switchScript = switchToConfiguration(),
    nixosNix = wholeNixos,
    nixPrograms,
    shell,
    addressOf,
  }: StandInOptions = {}) {
    const url = (file: string): string => addressOf?.(this.directory, file) ?? `file://${this.directory}/${file}`;
    const system = systemOfThisMachine();
    if (system === undefined) throw new Error("conversions are tried on Linux on x86_64 or Arm");
    const programs =
      nixPrograms ??
      realpathSync(execFileSync("which", ["nix-store"], { encoding: "utf8" }).trim()).replace(/\/[^/]*$/, "");
    const nix = this.#archive("nix.tar.xz", (top) => {
      archiveOfNix(top, programs, shell ?? sandboxShell(system));
    });
    const fileHash = createHash("sha256").update(readFileSync(nix)).digest("hex");
    const pin = { url: url("nix.tar.xz"), hash: fileHash };
    let hash = "";
    this.#archive("nixpkgs.tar.xz", (top) => {
      nixpkgsStandIn(top, switchScript, nixosNix, findLocalTools(system).shell);
      hash = execFileSync("nix-hash", ["--type", "sha256", "--base32", top], { encoding: "utf8" }).trim();
    });
    this.configuration = {
      nixArchives: { "x86_64-linux": pin, "aarch64-linux": pin },
      nixpkgs: { url: url("nixpkgs.tar.xz"), hash },
    };
  }

  remove(): void {
    rmSync(this.directory, { recursive: true, force: true });
  }

  #archive(name: string, fill: (top: string) => void): string {
    const own = mkdtempSync(join(tmpdir(), "fleet-archive-"));
    try {
      mkdirSync(join(own, "top"));
      fill(join(own, "top"));
      const path = join(this.directory, name);
      execFileSync("tar", ["-cJf", path, "-C", own, "--owner=0", "--group=0", "--mtime=@1", "top"]);
      return path;
    } finally {
      execFileSync("chmod", ["-R", "u+w", own]);
      rmSync(own, { recursive: true });
    }
  }
}

const storePath = (name: string): string => `/nix/store/${"0".repeat(31)}${name.length % 10}-${name}`;

/** As Nix's release archives are: `install`, `store/` and what `nix-store --load-db` reads. */
function archiveOfNix(top: string, programs: string, shell: string): void {
  const [nix, cacert] = [storePath("nix-2.34.7"), storePath("nss-cacert-3.100")];
  const inside = (path: string): string => join(top, path.replace("/nix/store", "store"));
  mkdirSync(inside(`${nix}/bin`), { recursive: true });
  for (const name of ["nix-build", "nix-env", "nix-instantiate", "nix-store"]) {
    // No cache can be asked here, and the shell of sandboxes is one that runs on the server.
    const wrapper = `#!/bin/sh
export NIX_CONFIG="$NIX_CONFIG
substitute = false
sandbox-paths = /bin/sh=${shell}"
exec ${programs}/${name} "$@"
`;
    writeFileSync(inside(`${nix}/bin/${name}`), wrapper, { mode: 0o755 });
  }
  mkdirSync(inside(`${cacert}/etc/ssl/certs`), { recursive: true });
  writeFileSync(inside(`${cacert}/etc/ssl/certs/ca-bundle.crt`), "");
  const registrations = [nix, cacert].map((path) => {
    execFileSync("chmod", ["-R", "a-w", inside(path)]);
    const nar = execFileSync("nix-store", ["--dump", inside(path)], { maxBuffer: 1 << 24 });
    return `${path}\n${createHash("sha256").update(nar).digest("hex")}\n${nar.length}\n\n0\n`;
  });
  writeFileSync(join(top, ".reginfo"), registrations.join(""));
  writeFileSync(
    join(top, "install"),
    `#!/bin/sh\nnix="${nix}"\ncacert="${cacert}"\necho "nobody runs this" >&2\nexit 1\n`,
    { mode: 0o755 },
  );
}

/** A tree with what the conversion asks nixpkgs for: a release, a NixOS and `linkFarm`. */
function nixpkgsStandIn(top: string, switchScript: string, nixosNix: string, shell: string): void {
  const put = (path: string, text: string, mode = 0o644): void => {
    mkdirSync(join(top, path, ".."), { recursive: true });
    writeFileSync(join(top, path), text, { mode });
  };
  put("lib/.version", "26.05");
  mkdirSync(join(top, "bin"));
  cpSync(shell, join(top, "bin/busybox"));
  chmodSync(join(top, "bin/busybox"), 0o755);
  for (const name of ["cp", "ln", "mkdir"]) symlinkSync("busybox", join(top, "bin", name));
  put("switch-to-configuration", `#!/bin/sh\n${switchScript}`, 0o755);
  put(
    "default.nix",
    `{ }:
rec {
  run = name: script: derivation {
    inherit name script;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-euc" ''PATH=\${./bin}; eval "$script"'' ];
  };
  linkFarm = name: links: run name ("mkdir $out;" + builtins.concatStringsSep "" (map (link: "ln -s \${link.path} $out/\${link.name};") links));
}
`,
  );
  put("nixos/default.nix", nixosNix);
}

/** It is made of exactly the modules that the conversion wrote, and of a disk that they could boot from; in a dozen builds, to be waited for. */
const wholeNixos = `{ configuration }:
let
  own = import configuration;
  directory = /etc/nixos/nix-builder;
  disk = builtins.fromJSON (builtins.readFile (directory + "/disk.json"));
  inherit (import ../. { }) run;
  part = number: run "part-\${toString number}" "mkdir $out";
in
assert own == {
  imports = [ (directory + "/builder.nix") (directory + "/hcloud.nix") ];
  system.stateVersion = "26.05";
};
assert builtins.attrNames disk == [ "bios" "disk" "esp" "root" ];
assert builtins.all builtins.pathExists own.imports;
{
  system = run "nixos-system-stand-in" ''
    mkdir -p $out/bin; cp \${../switch-to-configuration} $out/bin/switch-to-configuration; ln -s \${toString (builtins.genList part 11)} $out/bin
  '';
}
`;

/** `switch-to-configuration` of the system that stands in for NixOS. */
function switchToConfiguration(): string {
  return `set -eu
[ "$1 $NIXOS_INSTALL_BOOTLOADER" = "boot 1" ]
# NixOS's own refuses any other system.
[ -e /etc/NIXOS ]
${nixosStandIn()}`;
}

/** Shell that turns an emulated host into what NixOS would be with nixos/builder.nix. */
export function nixosStandIn(): string {
  const own = mkdtempSync(`${tmpdir()}/fleet-module-`);
  const module = evaluateBuilder(own, { trustedClients: true });
  const { config, forcedCommand } = sshdConfig(module);
  rmSync(own, { recursive: true });
  const system = systemOfThisMachine();
  if (system === undefined) throw new Error("emulated hosts need Linux on x86_64 or Arm");
  return `set -eu
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
