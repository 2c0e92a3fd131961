/** `ssh_config`: how a client reaches each builder, pinned to its host key, fast over distance, and never waiting for ever. */
import { createHash } from "node:crypto";
import { checkBuildMachines, checkPath, isLoopback, type BuildMachine } from "../nix/buildMachine.ts";
import { InvalidValue } from "../nix/invalidValue.ts";

/** What a `Host` block says of a builder. What it can build stands in `machines`, its key in `known_hosts`. */
export type SshHost = Pick<BuildMachine, "alias" | "hostName" | "port" | "sshUser" | "sshKey">;

export interface SshConfigOptions {
  /** Path, on the client, of the private key for builders that name none of their own. */
  readonly identityFile: string;
  /**
   * Path of the only `known_hosts` file that counts.
   *
   * Default: none is named, and ssh reads the system's `/etc/ssh/ssh_known_hosts` alone.
   */
  readonly knownHostsFile?: string;
  /** Whether and where connections are shared; default: `off`. */
  readonly multiplexing?: Multiplexing;
  /**
   * Sessions that the builders' sshd allows on one connection (its `MaxSessions`). Default: 10, sshd's own.
   *
   * Only builders with fewer maxJobs share connections. Beyond the limit ssh falls back to a connection of its own, which Nix
   * since 2.15 doesn't expect: "protocol mismatch, got 'started'" (nix#14132).
   */
  readonly maxSessions?: number;
}

/**
 * Sharing one connection between builds: Nix opens one for each derivation (nix#8499), so every round trip counts.
 *
 * Whoever can put a socket at the path of `ControlPath` gets the whole session, and ssh doesn't ask whose it is. So it never lies in
 * a directory like /tmp. A directory that doesn't exist, or a path beyond what a Unix socket takes, would end ssh.
 *
 * - `off`: every build connects by itself.
 * - `{ directory }`: in a directory that only the person who connects can write to.
 * - `home`: in `~/.ssh` of whoever connects (root for the daemon's builds), where that directory and their home are theirs. It is made
 *   where it is missing, as root's is on a fresh NixOS.
 */
export type Multiplexing = "off" | "home" | { readonly directory: string };

/** How long an idle shared connection stays open, in seconds. Longer than Nix needs from one derivation to the next. */
const controlPersist = 60;

/**
 * One `Host` block for each builder.
 *
 * @throws InvalidValue if a builder or a path can't be used
 */
export function renderSshConfig(machines: readonly BuildMachine[], options: SshConfigOptions): string {
  const identityFile = checkSshPath(options.identityFile, "identityFile");
  return checkBuildMachines(machines)
    .map((machine) => renderHost(machine, { ...options, identityFile }))
    .join("\n");
}

/**
 * Whether sockets of shared connections may lie in `directory`: macOS takes 103 bytes for the path of a socket, Linux 107, and ssh
 * binds a temporary name of 17 more before it renames it.
 */
export function canMultiplexIn(directory: string): boolean {
  const longestUid = "4294967295";
  return Buffer.byteLength(`${directory}/${socketName("0".repeat(8)).replace("%i", longestUid)}`) + 17 <= 103;
}

function renderHost(machine: BuildMachine, options: SshConfigOptions): string {
  const { knownHostsFile, maxSessions = 10 } = options;
  const multiplexing = machine.maxJobs < maxSessions ? (options.multiplexing ?? "off") : "off";
  return block(`Host ${machine.alias}`, [
    ["HostName", machine.hostName],
    ["Port", machine.port],
    ["User", machine.sshUser],
    ["IdentityFile", machine.sshKey ?? options.identityFile],
    ["IdentitiesOnly", "yes"],
    ["PreferredAuthentications", "publickey"],
    // Nix asks neither for BatchMode nor for strict checking, and a prompt in a daemon would wait for ever.
    ["BatchMode", "yes"],
    // Nobody records what doesn't leave this machine; a key exchange that withstands quantum computers takes 50 ms here, each time.
    ...(isLoopback(machine.hostName) ? [["KexAlgorithms", "curve25519-sha256"] as const] : []),
    ["StrictHostKeyChecking", "yes"],
    ["HostKeyAlias", machine.alias],
    ...(knownHostsFile === undefined
      ? [["UserKnownHostsFile", "/dev/null"] as const]
      : [
          ["UserKnownHostsFile", checkSshPath(knownHostsFile, "knownHostsFile")] as const,
          ["GlobalKnownHostsFile", "/dev/null"] as const,
        ]),
    // Both would let a builder have a say in which keys and addresses are trusted next time.
    ["UpdateHostKeys", "no"],
    ["CheckHostIP", "no"],
    ["ForwardAgent", "no"],
    // Nix has no timeout of its own: a half-open connection would hang for ever (nix#15620).
    ["ConnectTimeout", 10],
    ["ServerAliveInterval", 15],
    ["ServerAliveCountMax", 4],
    ...(typeof multiplexing === "object" && canMultiplexIn(multiplexing.directory)
      ? controlLines(`${checkPath(multiplexing.directory, "multiplexing.directory")}/${socketName(socketId(machine))}`)
      : []),
  ]).concat(
    multiplexing === "home"
      ? block(
          `Match originalhost ${machine.alias} exec "test -O '%d' && mkdir -p -m 700 '%d/.ssh' && test -O '%d/.ssh'"`,
          controlLines(`~/.ssh/${socketName(socketId(machine))}`),
        )
      : "",
  );
}

/** Unlike Nix, ssh knows `~`. */
function checkSshPath(path: string, field: string): string {
  return path.startsWith("~/") ? `~${checkPath(path.slice(1), field)}` : checkPath(path, field);
}

type Line = readonly [keyword: string, value: string | number];

function block(head: string, lines: readonly Line[]): string {
  return [head, ...lines.map(([keyword, value]) => `  ${keyword} ${value}`), ""].join("\n");
}

function controlLines(controlPath: string): Line[] {
  return [
    ["ControlMaster", "auto"],
    ["ControlPath", controlPath],
    ["ControlPersist", controlPersist],
  ];
}

/** `%i` is the local user's number: root and the owner of a directory don't share connections. */
function socketName(id: string): string {
  return `nix-%i-${id}`;
}

/** Short because of the limit, and another one for another address, user or host key: those must not meet an old connection. */
function socketId({ alias, hostName, port, sshUser, publicHostKey }: BuildMachine): string {
  const what = JSON.stringify([alias, hostName, port, sshUser, publicHostKey]);
  return createHash("sha256").update(what).digest("hex").slice(0, 8);
}

/**
 * Reads the `Host` blocks of an ssh_config as this project writes it.
 *
 * @param options the same `identityFile` as for `renderSshConfig`: an equal one is the default, not the builder's own
 * @throws InvalidValue naming the block that lacks something
 */
export function parseSshConfig(text: string, options: Pick<SshConfigOptions, "identityFile">): SshHost[] {
  const blocks = text.split(/^(?=Host |Match )/m).filter((part) => part.startsWith("Host "));
  return blocks.map((part) => {
    const values = new Map(part.split("\n").map((line) => splitOnce(line.trim())));
    const read = (keyword: string) => {
      const value = values.get(keyword);
      if (value === undefined)
        throw new InvalidValue(`ssh_config ${keyword}`, undefined, "a value in every Host block");
      return value;
    };
    const sshKey = read("IdentityFile");
    return {
      alias: read("Host"),
      hostName: read("HostName"),
      port: Number(read("Port")),
      sshUser: read("User"),
      ...(sshKey === options.identityFile ? {} : { sshKey }),
    };
  });
}

function splitOnce(line: string): [string, string] {
  const space = line.indexOf(" ");
  return space < 0 ? [line, ""] : [line.slice(0, space), line.slice(space + 1)];
}
