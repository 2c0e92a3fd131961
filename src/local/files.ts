/** The configuration files of one local builder, as text. */
import { defaultsFor, type Size } from "../bootstrap/defaults.ts";
import type { LocalMachine } from "./spec.ts";

/** Name of the copy of `LocalTools.shell` in the builder's folder: Nix splits its settings at blanks, which the original's path may have. */
export const shellName = "busybox";

/** Absolute paths of the programs that a local builder runs. */
export interface LocalTools {
  readonly sshd: string;
  readonly nixDaemon: string;
  readonly nixStore: string;
  /** Static busybox for the builder's system: `/bin/sh` in the sandbox. */
  readonly shell: string;
}

/** What is true of the account and the machine that run it. */
export interface LocalAccount {
  /** User that clients log in as: whoever runs the program. */
  readonly user: string;
  /** True where PAM must vouch for the account, because its password is locked. */
  readonly usePam: boolean;
  /** Group of the Nix build users; empty: builds run as `user`, in the sandbox. */
  readonly buildUsersGroup: string;
  /** What its builders share. */
  readonly size: Size;
}

/** File name below the builder's folder → text and mode. */
export function localMachineFiles(
  machine: LocalMachine,
  tools: LocalTools,
  account: LocalAccount,
): Readonly<Record<string, { readonly text: string; readonly mode: number }>> {
  return {
    ssh_host_ed25519_key: { text: `${machine.hostPrivateKey.trimEnd()}\n`, mode: 0o600 },
    authorized_keys: { text: authorizedKeys(machine), mode: 0o600 },
    "nix-ssh": { text: forcedCommand(machine, tools), mode: 0o700 },
    sshd_config: { text: sshdConfig(machine, account), mode: 0o600 },
    "nix.conf": { text: nixConf(machine, account), mode: 0o600 },
  };
}

function authorizedKeys({ directory, clients, adminPublicKey }: LocalMachine): string {
  return [
    ...clients.map(({ publicKey }) => `restrict,command="${directory}/nix-ssh" ${publicKey.trim()}`),
    `restrict ${adminPublicKey.trim()}`,
    "",
  ].join("\n");
}

/** Accepts exactly the commands that Nix sends for `ssh-ng://` and `ssh://`; the store is not the client's choice. */
function forcedCommand({ directory }: LocalMachine, tools: LocalTools): string {
  const store = `--store 'local?root=${directory}/root'`;
  return `#!/bin/sh
export NIX_CONF_DIR='${directory}' NIX_STATE_DIR='${directory}/state' NIX_LOG_DIR='${directory}/log'
export NIX_USER_CONF_FILES='' HOME='${directory}' NIX_REMOTE=''
case "\${SSH_ORIGINAL_COMMAND:-}" in
  "nix-daemon --stdio") exec '${tools.nixDaemon}' --stdio ${store} ;;
  "nix-store --serve --write") exec '${tools.nixStore}' --serve --write ${store} ;;
  *)
    echo "nix-builder-fleet: this key may only speak the Nix store protocols; refused" >&2
    exit 1
    ;;
esac
`;
}

/** All but where it listens: that is said when it is started. */
function sshdConfig({ directory }: LocalMachine, account: LocalAccount): string {
  return `HostKey ${directory}/ssh_host_ed25519_key
PidFile ${directory}/sshd.pid
AuthorizedKeysFile ${directory}/authorized_keys
AllowUsers ${account.user}
AuthenticationMethods publickey
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
# The checkout may lie below a folder that others can write to (/tmp): the builder's own folder is 0700.
StrictModes no
UsePAM ${account.usePam ? "yes" : "no"}
PrintMotd no
PrintLastLog no
DisableForwarding yes
PermitUserEnvironment no
# Keeps bash from reading ~/.bashrc before the forced command: what that prints would break the protocol, and what it does takes time.
SetEnv SHLVL=1
MaxStartups 100:30:200
MaxSessions 100
ClientAliveInterval 30
ClientAliveCountMax 4
LogLevel INFO
`;
}

function nixConf(machine: LocalMachine, account: LocalAccount): string {
  const defaults = defaultsFor(account.size);
  const maxJobs = machine.maxJobs ?? defaults.maxJobs;
  return [
    "sandbox = true",
    "sandbox-fallback = false",
    `sandbox-paths = /bin/sh=${machine.directory}/${shellName}`,
    `build-users-group = ${account.buildUsersGroup}`,
    `max-jobs = ${maxJobs}`,
    `cores = ${defaults.cores}`,
    `min-free = ${defaults.minFreeMiB * 2 ** 20}`,
    `max-free = ${defaults.maxFreeMiB * 2 ** 20}`,
    // An emulated builder is for its own system alone; nothing of this machine's comes with it.
    `system = ${machine.system}`,
    "extra-platforms =",
    // Without a way out, Nix would retry its cache for 5 s at every connection; what it can't fetch the client sends.
    "download-attempts = 1",
    "connect-timeout = 5",
    `system-features = ${machine.features.join(" ")}`,
    "",
  ].join("\n");
}
