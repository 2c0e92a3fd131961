/** What to do with a client's folder once it is written: how Nix comes to use it, on this machine or on the one that it is for. */
import { accessSync, constants, existsSync } from "node:fs";
import { clientKeyName, signingKeyName } from "../nix/clientFiles.ts";
import type { ClientResult } from "./client.ts";

/** How Nix builds on this machine. */
export interface NixHere {
  /** Whether builds go through a daemon, which sees no variables of whoever asks it. */
  readonly daemon: boolean;
  /** Whether this is root. */
  readonly root: boolean;
  /** What makes a command root's, with the blank after it: `sudo `, or nothing in a shell of root's own. */
  readonly sudo: "sudo " | "";
  readonly platform: NodeJS.Platform;
}

/** Looks at this machine. */
export function nixHere(env: NodeJS.ProcessEnv = process.env): NixHere {
  const root = process.getuid?.() === 0;
  return {
    daemon: buildsByDaemon(env, root),
    root,
    sudo: root && env["SUDO_USER"] === undefined ? "" : "sudo ",
    platform: process.platform,
  };
}

/** Nix's own choice; but where there is a daemon, root sets it up for those who build by it. */
function buildsByDaemon(env: NodeJS.ProcessEnv, root: boolean): boolean {
  const remote = env["NIX_REMOTE"] ?? "";
  if (remote !== "" && remote !== "auto") return !remote.startsWith("local") && !remote.startsWith("/");
  const state = env["NIX_STATE_DIR"] ?? "/nix/var/nix";
  return existsSync(env["NIX_DAEMON_SOCKET_PATH"] ?? `${state}/daemon-socket/socket`) && (root || !isWritable(state));
}

/** Whether this user may write there, by the system's own judgement. */
export function isWritable(path: string): boolean {
  try {
    accessSync(path, constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

/**
 * The next steps, for people.
 *
 * @param again The command that writes the same files for root's folder, for whoever isn't root.
 */
export function explainUse(
  { directory, installedAt, files, needsOwnKey, stores }: Exclude<ClientResult, { text: string }>,
  again: string,
  here: NixHere,
): string {
  const key = `${installedAt}/${clientKeyName}`;
  const elsewhere = installedAt !== directory;
  const place = `The files work in ${installedAt} of the client only, as they name each other by it; --installed-at names another folder.`;
  const secret = [clientKeyName, signingKeyName].filter((name) => files.includes(name));
  const copy = `Copy them there as root${secret.length === 0 ? "" : `, ${secret.join(" and ")} with mode 0600`}.`;
  return [
    "",
    ...(elsewhere ? [`${place}\n${copy}`] : []),
    ...(needsOwnKey ? [`Put this client's own private key into ${key} (mode 0600).`] : []),
    ...(elsewhere ? elsewhereSteps(installedAt) : stepsHere(installedAt, again, here)),
    ...(here.root && here.daemon && !elsewhere
      ? [`Root alone may read ${key}: the daemon's builds can use it, your own ssh can't.`]
      : []),
    `As stores the builders are ${stores.join(", ")}`,
  ].join("\n");
}

function elsewhereSteps(directory: string): string[] {
  return [
    "Where Nix builds by a daemon, tell root's ssh and Nix of them, once:",
    ...daemonSteps(directory, "sudo ", "linux"),
  ];
}

function stepsHere(directory: string, again: string, { daemon, root, sudo, platform }: NixHere): string[] {
  if (!daemon) {
    return [
      "Nix uses them with these two variables set, for one command or in a shell:",
      `  NIX_CONF_DIR=${directory} NIX_SSHOPTS='-F ${directory}/ssh_config' nix-build --max-jobs 0 …`,
    ];
  }
  if (root)
    return [
      "The Nix daemon builds as root. Tell root's ssh and Nix of them, once:",
      ...daemonSteps(directory, sudo, platform),
    ];
  return [
    "Nix builds by its daemon here, as root, which needs files of its own. This writes them and says what to do with them:",
    `  ${again}`,
  ];
}

/** As docs/clients.md has them, which says more. */
function daemonSteps(directory: string, sudo: string, platform: NodeJS.Platform): string[] {
  const mac = platform === "darwin";
  return [
    `  ${sudo}sh -c '${includeCommand(directory)}'`,
    `  ${sudo}sh -c 'echo "include ${directory}/nix.conf" >> /etc/nix/nix.conf'`,
    `  ${sudo}${mac ? "launchctl kickstart -k system/org.nixos.nix-daemon" : "systemctl restart nix-daemon"}`,
    `${mac ? "nix-darwin and Determinate Nix" : "NixOS, macOS and Determinate Nix"} have ways of their own: docs/clients.md.`,
  ];
}

/** Puts the `Include` first, because ssh takes the first value that it finds. Root need not have a configuration yet. */
function includeCommand(directory: string): string {
  return (
    "umask 077; cd ~root && mkdir -p .ssh && touch .ssh/config && " +
    `{ echo "Include ${directory}/ssh_config"; cat .ssh/config; } > .ssh/config.new && mv .ssh/config.new .ssh/config`
  );
}
