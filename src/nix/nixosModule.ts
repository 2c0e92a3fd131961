/** The NixOS module that makes a machine a client of the fleet. */
import { knownHostNames } from "../ssh/knownHosts.ts";
import { toHostKey } from "../ssh/hostKey.ts";
import { renderSshConfig } from "../ssh/sshConfig.ts";
import { checkBuildMachines, checkPath, type BuildMachine } from "./buildMachine.ts";
import { NixExpression, NixString, renderNix, type NixValue } from "./nixExpression.ts";

/** Where the modules expect the client's private key unless told otherwise. */
export const defaultSshKey = "/etc/nix/nix-builder-fleet_ed25519";

export interface NixosModuleOptions {
  /** Path, on the client, of the private key. Default: `defaultSshKey`. */
  readonly sshKey?: string;
}

/**
 * A module to import as it is: `imports = [ ./fleet.nix ];`.
 *
 * Option names: nixpkgs, `nixos/modules/config/nix-remote-build.nix` and `nixos/modules/programs/ssh.nix`.
 *
 * @throws InvalidValue if a builder or the path can't be used
 */
export function renderNixosModule(machines: readonly BuildMachine[], options: NixosModuleOptions = {}): string {
  const checked = checkBuildMachines(machines);
  const sshKey = checkPath(options.sshKey ?? defaultSshKey, "sshKey");
  return `# This machine as a client of a fleet of Nix builders. Written by nix-builder-fleet: change the stack, not this file.
{ lib, ... }:
let
  # The client's private key on this machine, readable by root only. A string, so that the key never enters the Nix store.
  sshKey = ${renderNix(sshKey)};
in
{
  nix.distributedBuilds = true;
  nix.settings.builders-use-substitutes = true;
  nix.buildMachines = ${renderNix(checked.map(buildMachineValue), "  ")};

  programs.ssh.knownHosts = ${renderNix(Object.fromEntries(checked.map(knownHostValue)), "  ")};

  # First, because ssh takes the first value that it finds. The last line ends the last block for what others add.
  programs.ssh.extraConfig = lib.mkBefore ${renderNix(sshConfigValue(checked), "  ")};
}
`;
}

const sshKeyVariable = new NixExpression("sshKey");

/** One entry of `nix.buildMachines`. `hostName` is the alias: address and port stand in ssh_config. */
export function buildMachineValue(machine: BuildMachine): NixValue {
  return {
    hostName: machine.alias,
    protocol: machine.protocol,
    systems: machine.systems,
    sshUser: machine.sshUser,
    sshKey: machine.sshKey ?? sshKeyVariable,
    maxJobs: machine.maxJobs,
    speedFactor: machine.speedFactor,
    supportedFeatures: machine.supportedFeatures,
    mandatoryFeatures: machine.mandatoryFeatures,
    publicHostKey: machine.publicHostKey,
  };
}

/** One entry of `programs.ssh.knownHosts`. */
export function knownHostValue(machine: BuildMachine): [name: string, value: NixValue] {
  return [machine.alias, { hostNames: knownHostNames(machine), publicKey: toHostKey(machine.publicHostKey) }];
}

/** The ssh_config of the fleet, with the path of the key left to the module's variable. */
export function sshConfigValue(machines: readonly BuildMachine[]): NixString {
  // No path that a person gives can hold this: a directory name has no slash.
  const placeholder = "/.../sshKey/...";
  const config = `${renderSshConfig(machines, { identityFile: placeholder, multiplexing: "home" })}\nHost *\n`;
  return new NixString(config.split(placeholder).flatMap((part, i) => (i === 0 ? [part] : [sshKeyVariable, part])));
}
