/** The configuration files of one local builder, as text. */
import { defaultsFor, type Size } from "../bootstrap/defaults.ts";
import { asSingleUser, containerEnvironment, enterContainer, socketOf, type Container } from "./container.ts";
import { accountFiles, containerIds, containerUsers } from "./ids.ts";
import { shellWord } from "../process.ts";
import type { LocalMachine } from "./spec.ts";

/** Name of the copy of `LocalTools.shell` in the builder's folder, and of its copy in the container. */
export const shellName = "busybox";

/** What is true of the account and the machine that run it. */
export interface LocalAccount {
  /** User that clients log in as: whoever runs the program. Their sessions leave that account for the container at once. */
  readonly user: string;
  /** True where PAM must vouch for the account, because its password is locked. */
  readonly usePam: boolean;
  /** True where sshd knows penalties for failed logins (OpenSSH 9.8 and later). */
  readonly penalties: boolean;
  /** True where Nix would refuse to build below the builder's folder, and can be told of another one. */
  readonly namesBuildDirectory: boolean;
  /** What its builders share. */
  readonly size: Size;
}

/** File name below the builder's folder → text and mode. What is below `etc` and `conf` is what the container sees. */
export function localMachineFiles(
  machine: LocalMachine,
  container: Container,
  account: LocalAccount,
): Readonly<Record<string, { readonly text: string; readonly mode: number }>> {
  const withBuildUsers = container.ids !== undefined;
  const { passwd, group } = accountFiles(withBuildUsers);
  return {
    ssh_host_ed25519_key: { text: `${machine.hostPrivateKey.trimEnd()}\n`, mode: 0o600 },
    authorized_keys: { text: authorizedKeys(machine), mode: 0o600 },
    "nix-ssh": { text: forcedCommand(container), mode: 0o700 },
    sshd_config: { text: sshdConfig(machine, account), mode: 0o600 },
    "etc/passwd": { text: passwd, mode: 0o644 },
    "etc/group": { text: group, mode: 0o644 },
    "etc/hosts": { text: "127.0.0.1 localhost\n::1 localhost\n", mode: 0o644 },
    "etc/nsswitch.conf": { text: "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n", mode: 0o644 },
    "conf/signing-key": { text: `${machine.signingKey.trim()}\n`, mode: 0o400 },
    "conf/nix.conf": { text: nixConf(machine, account, withBuildUsers), mode: 0o644 },
  };
}

function authorizedKeys({ directory, clients, adminPublicKey }: LocalMachine): string {
  return [
    ...clients.map(({ publicKey, trust }) => {
      const user = trust === "full" ? "trusted" : "untrusted";
      return `restrict,command="${directory}/nix-ssh ${user}" ${publicKey.trim()}`;
    }),
    `restrict ${adminPublicKey.trim()}`,
    "",
  ].join("\n");
}

/**
 * Takes a client's session into the container, as the user of the client's level, and runs there one of the commands that Nix sends for
 * `ssh-ng://` and `ssh://`. What the session reaches is what that user of the container reaches.
 */
function forcedCommand(container: Container): string {
  const { directory, tools } = container;
  const { choose, stdio, serve } = container.ids === undefined ? sessionsOfOne(container) : sessionsOfLevels(directory);
  const enter = enterContainer(container, { pid: "$pid", parent: "$parent", user: "$id" }).map((word) =>
    word.startsWith("/") ? shellWord(word) : word,
  );
  const environment = containerEnvironment(directory, tools).map(shellWord);
  return `#!/bin/sh
refuse() {
  echo "nix-builder-fleet: $1; refused" >&2
  exit 1
}
level=$1
read -r pid started <'${directory}/container.pid' || refuse "this builder does not run"
read -r stat 2>/dev/null </proc/$pid/stat || refuse "this builder does not run"
set -- \${stat##*) }
# With its start time the pid names the process for good: no other one is entered.
[ "\${20}" = "$started" ] || refuse "this builder does not run"
parent=$2
${choose}
enter() {
  # Outside already: what else sshd has told this session is not the container's.
  exec env -i ${environment.join(" ")} "NIX_REMOTE=$remote" "XDG_CACHE_HOME=/cache/$level" \
    ${enter.join(" ")} $become "$@"
}
case "\${SSH_ORIGINAL_COMMAND:-}" in
  "nix-daemon --stdio") enter ${shellWord(tools.nixDaemon)} ${stdio} ;;
  "nix-store --serve --write")${serve}
    enter ${shellWord(tools.nixStore)} --serve --write
    ;;
  *) refuse "this key may only speak the Nix store protocols" ;;
esac
`;
}

/** The parts of the forced command that differ between the two kinds of container, as shell. */
interface Sessions {
  /** By `$level`: sets `remote`, the store that Nix is told, `become`, words before the command, `id`, who the session is, and what the other parts read. */
  readonly choose: string;
  /** Words of nix-daemon. */
  readonly stdio: string;
  /** Commands before `nix-store --serve`. */
  readonly serve: string;
}

/** Each level has a user of its own, and the daemon tells them apart. */
function sessionsOfLevels(directory: string): Sessions {
  return {
    choose: `case $level in trusted) id=${containerIds.trusted} ;; *) id=${containerIds.untrusted} ;; esac
remote='${daemonStore(directory)}' become=`,
    stdio: "--stdio",
    serve: "",
  };
}

/** The container of an ordinary user has that user alone, whom its daemon trusts; a newer Nix can be told not to, over `ssh-ng://`. */
function sessionsOfOne({ directory, tools }: Container): Sessions {
  return {
    choose: `case $level in
  trusted) remote='${daemonStore(directory)}' become= untrusted= ;;
  *)
    remote='local?root=${directory}/root' become='${asSingleUser(tools).join(" ")}'
    untrusted='--extra-experimental-features daemon-trust-override --force-untrusted'
    ;;
esac`,
    stdio: "--stdio $untrusted",
    serve: `
    [ "$level" = trusted ] || refuse "ssh:// is for fully trusted clients here, take ssh-ng://"`,
  };
}

function daemonStore(directory: string): string {
  return `unix://${socketOf(directory)}?root=${directory}/root`;
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
# Whoever connects and says nothing is gone soon, and others aren't turned away meanwhile: all come from the same address.
LoginGraceTime 10
MaxStartups 200:30:400
${account.penalties ? "PerSourcePenalties no\n" : ""}MaxSessions 100
ClientAliveInterval 30
ClientAliveCountMax 4
LogLevel INFO
`;
}

function nixConf(machine: LocalMachine, account: LocalAccount, withBuildUsers: boolean): string {
  const defaults = defaultsFor(account.size);
  const maxJobs = machine.maxJobs ?? defaults.maxJobs;
  return [
    "sandbox = true",
    "sandbox-fallback = false",
    `sandbox-paths = /bin/sh=/${shellName}`,
    `build-users-group = ${withBuildUsers ? containerUsers.buildGroup : ""}`,
    `allowed-users = root ${containerUsers.untrusted} ${containerUsers.trusted}`,
    `trusted-users = root ${containerUsers.trusted}`,
    `extra-trusted-public-keys = ${machine.trustedPublicKeys.join(" ")}`,
    ...(account.namesBuildDirectory ? ["build-dir = /builds"] : []),
    `secret-key-files = ${machine.directory}/conf/signing-key`,
    `max-jobs = ${maxJobs}`,
    `cores = ${defaults.cores}`,
    `timeout = ${machine.timeout}`,
    `max-silent-time = ${machine.maxSilentTime}`,
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
