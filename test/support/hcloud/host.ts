/**
 * A server of the emulated cloud: a Linux of its own on this machine, in namespaces, with an sshd on port 22 of a loopback
 * address. It has this machine's programs and nothing of its state, obeys its user data, and reboots. Needs root.
 */
import { execFileSync, spawn, type ChildProcess } from "node:child_process";
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { isIPv6 } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { parse } from "yaml";
import * as z from "zod";
import { findLocalTools } from "../../../src/local/tools.ts";
import { systems, type System } from "../../../src/nix/system.ts";
import { shellWord } from "../../../src/process.ts";

const userData = z.looseObject({
  ssh_keys: z.object({ ed25519_private: z.string(), ed25519_public: z.string() }),
  users: z.array(z.object({ name: z.string(), ssh_authorized_keys: z.array(z.string()) })),
  write_files: z.array(z.object({ path: z.string(), permissions: z.string(), content: z.string() })),
  runcmd: z.array(z.array(z.string())).default([]),
});

/** What a host is told. */
export interface HostOptions {
  /** Address of its own in 127.0.0.0/8, or ::1. */
  readonly address: string;
  readonly hostName: string;
  /** Cloud-config, unless `disk` takes it otherwise. */
  readonly userData: string;
  /** Puts onto its disk what its image and its user data make of it; default: what Debian's cloud-init does. */
  readonly disk?: (put: (path: string, content: string, mode?: number) => void) => void;
  /** Starts as the NixOS of a snapshot, with the files that a conversion left; else as Debian. */
  readonly snapshot?: string;
  /** Has programs of aarch64 run by emulation. */
  readonly arm?: boolean;
  /** What is wrong with it. */
  readonly fault?: "never opens SSH" | "another host key" | "nothing waits" | undefined;
}

/** What the conversion sees of a disk at Hetzner: GPT, with a place for a BIOS boot loader and an EFI system partition. */
export const diskPrograms: Readonly<Record<string, string>> = {
  "/usr/local/sbin/findmnt": `#!/bin/sh\n[ "$2" = FSTYPE ] && echo ext4 || echo /dev/sda1\n`,
  "/usr/local/sbin/mountpoint": "#!/bin/sh\n",
  "/usr/local/sbin/lsblk": `#!/bin/sh
case "$2" in
  PKNAME) echo /dev/sda ;;
  PTTYPE) echo gpt ;;
  UUID) echo 8c5d2f6e-0000-4000-8000-000000000001 ;;
  PARTTYPE,NAME)
    echo "0fc63daf-8483-4772-8e79-3d69d8477de4 /dev/sda1"
    echo "21686148-6449-6e6f-744e-656564454649 /dev/sda14"
    echo "c12a7328-f81f-11d2-ba4b-00a0c93ec93b /dev/sda15"
    ;;
  PARTTYPE,UUID) echo "c12a7328-f81f-11d2-ba4b-00a0c93ec93b ABCD-1234" ;;
esac
`,
};

/** Where a host has the shell for the sandbox of its builds, where builds for the system can run. */
export function sandboxShell(system: System): string {
  return `/usr/local/lib/sandbox-shell-${system}`;
}

/** Why no host can be started here; `undefined`: they can. */
export function hostObstacle(): string | undefined {
  if (process.getuid?.() !== 0) return "servers of the emulated cloud need root (mount and process namespaces)";
  try {
    const script =
      "mount -t tmpfs none /mnt && mkdir /mnt/u /mnt/w /mnt/r && mount -t overlay o -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/r";
    execFileSync("unshare", ["--mount", "sh", "-c", script], { stdio: "pipe", timeout: 10_000 });
    return undefined;
  } catch {
    return "servers of the emulated cloud need mount namespaces and overlayfs, which this machine does not allow";
  }
}

/** What a server of the emulated cloud runs on. */
export interface Machine {
  /** What it said while it booted and ran. */
  readonly log: string;
  /** Power off, at once, and forget the disk. */
  stop(): Promise<void>;
}

/** A running host. */
export class Host implements Machine {
  readonly directory = mkdtempSync(join(tmpdir(), "fleet-host-"));
  readonly #process: ChildProcess;

  constructor(options: HostOptions) {
    const { directory } = this;
    mkdirSync(join(directory, "root"));
    writeFileSync(join(directory, "host.json"), JSON.stringify(options));
    writeFileSync(join(directory, "user-data"), options.userData);
    this.#plan(options);
    this.#copyShells();
    const script = join(directory, "start");
    writeFileSync(script, startScript(directory), { mode: 0o700 });
    // Dies with this process, whatever ends it, and takes all that runs inside along.
    const args = ["--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", script];
    this.#process = spawn("setpriv", args, { stdio: "ignore", env: { PATH: process.env["PATH"] } });
  }

  /** What the host's boot script and services said. */
  get log(): string {
    return existsSync(join(this.directory, "log")) ? readFileSync(join(this.directory, "log"), "utf8") : "";
  }

  /** Process id, as this machine sees it, of what runs inside. */
  innerPid(): number {
    const pid = String(this.#process.pid);
    return Number(readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ")[0]);
  }

  async stop(): Promise<void> {
    await kill(this.#process);
    rmSync(this.directory, { recursive: true, force: true });
  }

  /** They may lie below /tmp on this machine (as the cache does, for a home there), and that is hidden from hosts. */
  #copyShells(): void {
    for (const system of systems) {
      const shell = shellFor(system);
      if (shell === undefined) continue;
      const copy = join(this.directory, "disk", sandboxShell(system));
      mkdirSync(dirname(copy), { recursive: true });
      copyFileSync(shell, copy);
      chmodSync(copy, 0o755);
    }
  }

  /** Cloud-init's part, worked out here: files to be copied and commands to be run. */
  #plan({ userData: text, disk, snapshot, fault, address, hostName, arm }: HostOptions): void {
    const put = (path: string, content: string, mode = 0o644): void => {
      const target = join(this.directory, "disk", path);
      mkdirSync(dirname(target), { recursive: true });
      writeFileSync(target, content);
      chmodSync(target, mode);
    };
    if (disk !== undefined) {
      disk(put);
      return;
    }
    const config = userData.parse(parse(text));
    if (snapshot !== undefined) execFileSync("cp", ["-a", `${snapshot}/.`, join(this.directory, "disk")]);
    for (const { path, permissions, content } of config.write_files)
      put(path, content, Number.parseInt(permissions, 8));
    put("/etc/ssh/ssh_host_ed25519_key", config.ssh_keys.ed25519_private, 0o600);
    put("/etc/ssh/ssh_host_ed25519_key.pub", config.ssh_keys.ed25519_public);
    if (fault === "another host key") {
      rmSync(join(this.directory, "disk/etc/ssh/ssh_host_ed25519_key"));
      const key = join(this.directory, "disk/etc/ssh/ssh_host_ed25519_key");
      rmSync(`${key}.pub`);
      execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", key]);
    }
    const root = config.users.find(({ name }) => name === "root")?.ssh_authorized_keys ?? [];
    put("/root/.ssh/authorized_keys", `${root.join("\n")}\n`, 0o600);
    put("/etc/hostname", `${hostName}\n`);
    put("/etc/emulated-address", isIPv6(address) ? `[${address}]` : address);
    put("/etc/emulated-system", arm === true ? "aarch64-linux" : "");
    // The kernel is this machine's own: it would name its architecture to who asks outside of a build.
    if (arm === true)
      put("/usr/local/sbin/uname", `#!/bin/sh\n[ "$*" = -m ] && echo aarch64 || exec /usr/bin/uname "$@"\n`, 0o755);
    if (snapshot === undefined) put("/etc/os-release", 'ID=debian\nVERSION_ID="12"\nNAME="Debian GNU/Linux"\n');
    put(
      "/etc/ssh/sshd_config",
      `HostKey /etc/ssh/ssh_host_ed25519_key\nPermitRootLogin prohibit-password\nPasswordAuthentication no\nPidFile none\n`,
    );
    put("/usr/local/sbin/reboot", "#!/bin/sh\necho >/run/host/reboot\n", 0o755);
    // No package may be installed: what the emulated Debian lacks is missing on this machine.
    put("/usr/local/sbin/apt-get", "#!/bin/sh\nexit 1\n", 0o755);
    for (const [path, program] of Object.entries(diskPrograms)) put(path, program, 0o755);
    const quoted = config.runcmd.map((words) => words.map((word) => shellWord(word)).join(" "));
    put("/usr/local/sbin/cloud-init-runcmd", `#!/bin/sh\n${quoted.join("\n")}\n`, 0o755);
    if (fault === "nothing waits") put("/usr/local/sbin/sleep", "#!/bin/sh\n", 0o755);
    if (fault === "never opens SSH") put("/etc/no-sshd", "");
  }
}

/** Ends the process, if it hasn't ended, and waits for that. */
export async function kill(process: ChildProcess): Promise<void> {
  if (process.exitCode !== null || process.signalCode !== null) return;
  const ended = new Promise((done) => process.once("exit", done));
  process.kill("SIGKILL");
  await ended;
}

/** Files of a host's disk that a snapshot of it holds. */
export const diskFolders = [
  "etc/nixos",
  "etc/nixos-boot",
  "etc/nix-start",
  "usr/local/sbin/nixos-rebuild",
  "usr/local/sbin/systemctl",
  "etc/NIXOS",
  "etc/os-release",
  "etc/nix-ssh",
  "etc/sshd_nixos",
];

/** Static busybox for a system; `undefined` where its programs can't run here. */
function shellFor(system: System): string | undefined {
  try {
    return findLocalTools(system).shell;
  } catch {
    return undefined;
  }
}

/** Programs of this machine that a host needs and would hide by its empty folders. */
function startScript(directory: string): string {
  const nixIsInStore = realpathSync(execFileSync("which", ["nix-daemon"], { encoding: "utf8" }).trim()).startsWith(
    "/nix/",
  );
  return `set -eu
exec >>${directory}/log 2>&1 </dev/null
mount --make-rprivate /
mount -t tmpfs tmpfs ${directory}/root
cd ${directory}/root
mkdir upper work new
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work new
cd new
mount --rbind /dev dev
mount --rbind /sys sys
mount -t proc proc proc
mount -t tmpfs -o mode=755 tmpfs run
mkdir run/host run/sshd
mount --bind ${directory} run/host
mount -t tmpfs tmpfs tmp
mount -t tmpfs tmpfs var/log
${nixIsInStore ? "" : "mkdir -p nix && mount -t tmpfs -o mode=755 tmpfs nix"}
# What this machine does at logins (version managers with locks, prompts) is none of the hosts' business.
rm -rf root/.ssh root/.bashrc root/.bash_profile root/.profile etc/profile.d etc/os-release etc/ssh etc/nixos etc/nix
mkdir -p old
pivot_root . old
umount -l /old
cp -a /run/host/disk/. /
hostname=$(cat /etc/hostname)
export PATH=/usr/local/sbin:$PATH HOME=/root USER=root
mount -t proc proc /proc
mkfifo /run/host/reboot
boots=0
while :; do
  boots=$((boots + 1))
  echo "boot $boots of $hostname"
  if [ -e /etc/no-sshd ]; then :
  elif [ -e /etc/NIXOS ]; then sh /etc/nixos-boot
  else
    /usr/sbin/sshd -D -e -f /etc/ssh/sshd_config -o ListenAddress="$(cat /etc/emulated-address)":22 &
    [ $boots -gt 1 ] || sh /usr/local/sbin/cloud-init-runcmd &
  fi
  read -r _ </run/host/reboot || :
  kill -9 -1 || :
  wait || :
done
`;
}
