/** The home-manager module for a user of the fleet: what can be done without being root. */
import { renderKnownHosts } from "../ssh/knownHosts.ts";
import { renderSshConfig } from "../ssh/sshConfig.ts";
import type { BuildMachine } from "./buildMachine.ts";
import { renderMachines } from "./machinesFile.ts";
import { renderNix } from "./nixExpression.ts";
import { applyProfile, type ProfileOptions } from "./profiles.ts";

/** Where the home-manager module expects the user's private key unless told otherwise. */
export const defaultUserSshKey = "~/.ssh/nix-builder-fleet_ed25519";

export interface HomeManagerModuleOptions extends ProfileOptions {
  /** Path of the private key, absolute or from `~/`. Default: `defaultUserSshKey`. */
  readonly sshKey?: string;
  /** As in `SshConfigOptions`. Default: 10. */
  readonly maxSessions?: number;
}

const folder = ".ssh/nix-builder-fleet";

/**
 * A module to import as it is. It gives the user's own ssh all that it needs, which serves remote stores; builds by the daemon
 * use root's ssh, and the module's comment says so.
 *
 * Option names: home-manager, `modules/programs/ssh.nix` (`includes`) and `modules/files.nix`.
 *
 * @throws InvalidValue if a builder or an option can't be used
 */
export function renderHomeManagerModule(
  machines: readonly BuildMachine[],
  options: HomeManagerModuleOptions = {},
): string {
  const sshConfig = renderSshConfig(machines, {
    identityFile: options.sshKey ?? defaultUserSshKey,
    knownHostsFile: `~/${folder}/known_hosts`,
    multiplexing: "home",
    ...(options.maxSessions !== undefined && { maxSessions: options.maxSessions }),
  });
  const { builders } = applyProfile(machines, options);
  return `# This user as a client of a fleet of Nix builders. Written by nix-builder-fleet: change the stack, not this file.
# It can't make the Nix daemon use the fleet: the daemon connects as root, with root's ssh configuration, and a user who isn't in
# trusted-users can't give it builders. The NixOS or nix-darwin module does that. What works with this module alone:
#   nix build --store ssh-ng://USER@ALIAS --eval-store auto …         builds entirely on a builder
#   nix build --builders @$HOME/${folder}/machines …    where Nix runs without a daemon
# Your ~/.ssh/config stays yours. Where home-manager writes it (programs.ssh.enable), this module is in it; elsewhere let it begin with
#   Include nix-builder-fleet/config
{ lib, ... }:
{
  # From ~/.ssh, and before the user's own blocks: ssh takes the first value that it finds.
  programs.ssh.includes = lib.mkBefore [ "nix-builder-fleet/config" ];

  home.file.${renderNix(`${folder}/config`)}.text = ${renderNix(sshConfig, "  ")};
  home.file.${renderNix(`${folder}/known_hosts`)}.text = ${renderNix(renderKnownHosts(machines), "  ")};
  home.file.${renderNix(`${folder}/machines`)}.text = ${renderNix(renderMachines(builders), "  ")};
}
`;
}
