/** The NixOS module that makes a machine a client of the fleet. */
import { toHostKey } from "../ssh/hostKey.ts";
import { renderSshConfig } from "../ssh/sshConfig.ts";
import { checkBuildMachines, checkPath, type BuildMachine } from "./buildMachine.ts";
import { defaultSshKey } from "./clientFiles.ts";
import type { NixSettings } from "./nixConf.ts";
import { NixExpression, NixString, renderNix, type NixValue } from "./nixExpression.ts";
import { applyProfile, type ProfileOptions } from "./profiles.ts";

export interface SystemModuleOptions extends ProfileOptions {
  /** Path, on the client, of the private key. Default: `defaultSshKey`. */
  readonly sshKey?: string;
  /** Further Nix settings. */
  readonly settings?: NixSettings;
  /** As in `SshConfigOptions`. Default: 10. */
  readonly maxSessions?: number;
}

/**
 * A module to import as it is: `imports = [ ./fleet.nix ];`.
 *
 * Option names: nixpkgs, `nixos/modules/config/nix-remote-build.nix` and `nixos/modules/programs/ssh.nix`.
 *
 * @throws InvalidValue if a builder or an option can't be used
 */
export function renderNixosModule(machines: readonly BuildMachine[], options: SystemModuleOptions = {}): string {
  return renderSystemModule(
    [
      "This machine as a client of a fleet of Nix builders. Written by nix-builder-fleet: change the stack, not this file.",
    ],
    machines,
    options,
  );
}

/** The text that NixOS and nix-darwin share, under a comment of its own. */
export function renderSystemModule(
  comment: readonly string[],
  machines: readonly BuildMachine[],
  options: SystemModuleOptions,
): string {
  const checked = checkBuildMachines(machines);
  const { builders, settings } = applyProfile(checked, options);
  const nixSettings = { "builders-use-substitutes": true, ...settings, ...options.settings };
  // Nothing is switched off that the person may have switched on: without builders of the fleet their own stay.
  const distributed = builders.length > 0 ? `  nix.distributedBuilds = ${yielding(true).text};\n` : "";
  return `${comment.map((line) => `# ${line}\n`).join("")}{ config, lib, ... }:
let
  # The client's private key on this machine, readable by root only. A string, so that the key never enters the Nix store.
  sshKey = ${renderNix(checkPath(options.sshKey ?? defaultSshKey, "sshKey"))};
in
{
${distributed}  nix.settings = ${renderNix(Object.fromEntries(Object.entries(nixSettings).map(settingValue)), "  ")};
  nix.buildMachines = ${renderNix(builders.map(buildMachineValue), "  ")};

  programs.ssh.knownHosts = ${renderNix(Object.fromEntries(checked.map(knownHostValue)), "  ")};

  # First, because ssh takes the first value that it finds. The last line ends the last block for what others add.
  programs.ssh.extraConfig = lib.mkBefore ${renderNix(sshConfigValue(checked, options), "  ")};

  # An older nix-darwin doesn't have the option.
  warnings = lib.optional (!(config.nix.enable or true)) ${renderNix(unmanagedNix, "  ")};
}
`;
}

const sshKeyVariable = new NixExpression("sshKey");

/** What a machine says whose NixOS or nix-darwin doesn't write `nix.conf`: without it, nothing would tell why Nix builds there. */
const unmanagedNix =
  "nix-builder-fleet: nix.enable is false, so that nothing here tells Nix of the fleet; use the plain files, as docs/clients.md says for any Linux or macOS.";

/**
 * One entry of `nix.settings`, so that a person's own definition of it neither ends the evaluation nor is lost: lists are joined, and of
 * anything else theirs counts.
 */
function settingValue([name, value]: [name: string, value: string | number | boolean]): [
  name: string,
  value: NixValue,
] {
  if (name.startsWith("extra-") && typeof value === "string") return [name, value.split(" ")];
  return [name, yielding(value)];
}

/**
 * A value that gives way. 900 is weaker than any plain definition and stronger than `mkDefault`, which the hardware configurations that
 * older NixOS generated have for `max-jobs`.
 */
function yielding(value: string | number | boolean): NixExpression {
  return new NixExpression(`lib.mkOverride 900 ${renderNix(value)}`);
}

/** One entry of `nix.buildMachines`. `hostName` is the alias: address and port stand in ssh_config. */
function buildMachineValue(machine: BuildMachine): NixValue {
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

/**
 * One entry of `programs.ssh.knownHosts`, which counts for all programs and users of the machine: by the alias alone, under which ssh looks
 * it up (`HostKeyAlias`). The address may be somebody else's to them.
 */
function knownHostValue(machine: BuildMachine): [name: string, value: NixValue] {
  return [machine.alias, { hostNames: [machine.alias], publicKey: toHostKey(machine.publicHostKey) }];
}

/** The ssh_config of the fleet, with the path of the key left to the module's variable. */
function sshConfigValue(machines: readonly BuildMachine[], { maxSessions }: SystemModuleOptions): NixString {
  // A path that nobody has, to be found again.
  const placeholder = "/.../sshKey/...";
  const config = renderSshConfig(machines, {
    identityFile: placeholder,
    multiplexing: "home",
    ...(maxSessions !== undefined && { maxSessions }),
  });
  const parts = `${config}\nHost *\n`.split(placeholder);
  return new NixString(parts.flatMap((part, i) => (i === 0 ? [part] : [sshKeyVariable, part])));
}
