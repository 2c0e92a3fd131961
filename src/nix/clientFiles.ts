/** The files of a client directory: everything that Nix and ssh need on any Linux or macOS, but the private key. */
import { parseKnownHosts, renderKnownHosts } from "../ssh/knownHosts.ts";
import { parseSshConfig, renderSshConfig } from "../ssh/sshConfig.ts";
import { checkBuildMachine, checkPath, type BuildMachine } from "./buildMachine.ts";
import { applyProfile, type ProfileOptions } from "./profiles.ts";
import { InvalidValue } from "./invalidValue.ts";
import { parseMachines, renderMachines } from "./machinesFile.ts";
import { renderNixConf, type NixSettings } from "./nixConf.ts";

/** Names of the files, as they lie in the directory. */
export type ClientFileName = "machines" | "nix.conf" | "ssh_config" | "known_hosts";

/** Name of the client's private key in the directory. */
export const clientKeyName = "id_ed25519";

/** Name of the key in the directory with which a client at `signed` signs what it builds. */
export const signingKeyName = "signing-key";

/** The settings with which a client signs, beside whatever keys the person has; the key lies in `directory`. */
export function signingSettings(directory: string): NixSettings {
  return { "extra-secret-key-files": `${checkPath(directory, "directory")}/${signingKeyName}` };
}

/** Directory of the plain files unless told otherwise: readable by root, whom the daemon's builds connect as. */
export const defaultDirectory = "/etc/nix/fleet";

/** Where a client's root has its private key unless told otherwise. `nixos/client.nix` has the same default. */
export const defaultSshKey = `${defaultDirectory}/${clientKeyName}`;

export interface ClientFilesOptions extends ProfileOptions {
  /** Absolute path of the directory in which the files will lie: they name each other by it. */
  readonly directory: string;
  /** Further settings of `nix.conf`. */
  readonly settings?: NixSettings;
  /** Whether the client signs what it builds, with `signingKeyName` in the directory. Default: false. */
  readonly signs?: boolean;
  /** Whether builds share connections, with the sockets in the directory. Default: true, unless its path is too long. */
  readonly multiplexing?: boolean;
  /** As in `SshConfigOptions`. Default: 10. */
  readonly maxSessions?: number;
}

/**
 * The text of each file. Nix uses them with `NIX_CONF_DIR=DIR` and `NIX_SSHOPTS="-F DIR/ssh_config"`.
 *
 * The directory has to belong to whoever builds and be writable by nobody else.
 *
 * @throws InvalidValue if a builder or the directory can't be used
 */
export function clientFiles(
  machines: readonly BuildMachine[],
  options: ClientFilesOptions,
): Record<ClientFileName, string> {
  const directory = checkPath(options.directory, "directory");
  const sshKey = `${directory}/${clientKeyName}`;
  const { builders, settings } = applyProfile(machines, options);
  return {
    machines: renderMachines(builders, { sshKey }),
    "nix.conf": renderNixConf({
      directory,
      settings: { ...settings, ...(options.signs === true && signingSettings(directory)), ...options.settings },
    }),
    ssh_config: renderSshConfig(machines, {
      identityFile: sshKey,
      knownHostsFile: `${directory}/known_hosts`,
      multiplexing: (options.multiplexing ?? true) ? { directory } : "off",
      ...(options.maxSessions !== undefined && { maxSessions: options.maxSessions }),
    }),
    known_hosts: renderKnownHosts(machines),
  };
}

/**
 * The builders that the files of a client directory speak of.
 *
 * @throws InvalidValue if a file isn't of the form written here, or if two of them contradict each other
 */
export function parseClientFiles(
  files: Readonly<Record<Exclude<ClientFileName, "nix.conf">, string>>,
  { directory }: Pick<ClientFilesOptions, "directory">,
): BuildMachine[] {
  const sshKey = `${directory}/${clientKeyName}`;
  const hosts = new Map(parseSshConfig(files.ssh_config, { identityFile: sshKey }).map((host) => [host.alias, host]));
  const keys = new Map(parseKnownHosts(files.known_hosts).map((host) => [host.alias, host.publicHostKey]));
  return parseMachines(files.machines, { sshKey }).map((entry) => {
    const host = hosts.get(entry.alias);
    if (host === undefined) {
      throw new InvalidValue("ssh_config", entry.alias, "a Host block for every builder in machines");
    }
    if (keys.get(entry.alias) !== entry.publicHostKey) {
      throw new InvalidValue("known_hosts", entry.alias, "the same host key as in machines");
    }
    return checkBuildMachine({ ...entry, hostName: host.hostName, port: host.port });
  });
}
