/** Every form of client configuration, by name: what it is, what its file is called, how it is rendered. */
import { refuseUnreachable, renderGithubWorkflow } from "../ci/githubWorkflow.ts";
import { checkBuildMachines, type BuildMachine } from "./buildMachine.ts";
import { renderBuildersOption } from "./buildersOption.ts";
import { cacheSettings, type Cache } from "./caches.ts";
import { clientFiles, clientKeyName, defaultDirectory, signingSettings, type ClientFileName } from "./clientFiles.ts";
import { renderDarwinModule } from "./darwinModule.ts";
import { renderHomeManagerModule } from "./homeManagerModule.ts";
import { InvalidValue } from "./invalidValue.ts";
import { renderNixosModule, type SystemModuleOptions } from "./nixosModule.ts";
import type { Profile, ProfileOptions } from "./profiles.ts";
import type { Trust } from "./trust.ts";

export { defaultDirectory };

/** What the forms can be told; each takes what it has words for. */
export interface FormOptions extends ProfileOptions {
  /** Absolute path, on the client, of the directory in which the plain files lie. Default: `/etc/nix/fleet`. */
  readonly directory?: string;
  /** Path, on the client, of the private key. Default: each form's own, or `id_ed25519` in `directory`. */
  readonly sshKey?: string;
  /** Binary caches to add. */
  readonly caches?: readonly Cache[];
  /** As in `ClientFilesOptions`. */
  readonly signs?: boolean;
  /** As in `ClientFilesOptions`. */
  readonly multiplexing?: boolean;
  /** As in `SshConfigOptions`. */
  readonly maxSessions?: number;
  /** Version of the client's Nix, for forms that older ones can't read. Default: any. */
  readonly nixVersion?: string;
}

/** What a stack says of its clients, and what one of them may say otherwise. */
export interface ClientSettings {
  /** As in `FormOptions`, like the rest. */
  readonly directory: string;
  readonly localSystems: readonly string[];
  readonly caches: readonly Cache[];
  readonly profile?: Profile | undefined;
  readonly trust?: Trust | undefined;
  readonly maxSessions?: number | undefined;
  readonly nixVersion?: string | undefined;
}

/**
 * The options with which the stack's outputs and the CLI render every form.
 *
 * No `sshKey` is among them: each form has its own place for the key, and home-manager's isn't root's.
 */
export function formOptions(settings: ClientSettings): FormOptions {
  const { directory, localSystems, caches, profile, trust, maxSessions, nixVersion } = settings;
  return {
    directory,
    localSystems,
    caches,
    ...(profile !== undefined && { profile }),
    ...(trust === "signed" && { signs: true }),
    ...(maxSessions !== undefined && { maxSessions }),
    ...(nixVersion !== undefined && { nixVersion }),
  };
}

/** One way to write a fleet down. */
export interface Form {
  /** One line for people. */
  readonly description: string;
  /** The usual name of the file. */
  readonly fileName: string;
  /** True where the file is part of a larger configuration, and not one of those in the client's `directory`. */
  readonly elsewhere?: true;
  /**
   * The text, with a line end.
   *
   * @throws InvalidValue if a builder or an option can't be used
   * @throws NotExpressible if this form has no words for something, naming one that has
   */
  render(machines: readonly BuildMachine[], options?: FormOptions): string;
}

const plainFile =
  (name: ClientFileName): Form["render"] =>
  (machines, { directory = defaultDirectory, sshKey, caches = [], ...options } = {}) =>
    clientFiles(sshKey === undefined ? machines : withKey(machines, sshKey), {
      ...options,
      directory,
      settings: cacheSettings(caches),
    })[name];

/** All forms, in the order in which they are listed. */
export const forms = {
  nixosModule: {
    description: "a NixOS module to import as it is",
    fileName: "fleet.nix",
    elsewhere: true,
    render: (machines, options = {}) => renderNixosModule(machines, systemModuleOptions(options)),
  },
  darwinModule: {
    description: "a nix-darwin module to import as it is",
    fileName: "fleet.nix",
    elsewhere: true,
    render: (machines, options = {}) => renderDarwinModule(machines, systemModuleOptions(options)),
  },
  homeManagerModule: {
    description: "a home-manager module: the user's own ssh, for remote stores; it can't configure the Nix daemon",
    fileName: "fleet.nix",
    elsewhere: true,
    render: (machines, options = {}) => renderHomeManagerModule(machines, options),
  },
  machines: {
    description: "Nix's list of builders, /etc/nix/machines; needs sshConfig and knownHosts beside it",
    fileName: "machines",
    render: plainFile("machines"),
  },
  nixConf: {
    description: "the lines of nix.conf that make Nix use the machines file",
    fileName: "nix.conf",
    render: plainFile("nix.conf"),
  },
  sshConfig: {
    description: "the ssh_config that gives the machines file's names their addresses, keys and pins",
    fileName: "ssh_config",
    render: plainFile("ssh_config"),
  },
  knownHosts: {
    description: "the builders' host keys, for ssh's UserKnownHostsFile",
    fileName: "known_hosts",
    render: plainFile("known_hosts"),
  },
  githubWorkflow: {
    description: "a reusable GitHub Actions workflow that builds a flake's packages and checks on the fleet",
    fileName: "fleet.yml",
    elsewhere: true,
    render: (machines, { caches = [], maxSessions } = {}) =>
      renderGithubWorkflow(refuseUnreachable(machines), {
        settings: cacheSettings(caches),
        ...(maxSessions !== undefined && { maxSessions }),
      }),
  },
  buildersOption: {
    description: "one command-line option, for a try without any configuration",
    fileName: "builders",
    render: (machines, { directory = defaultDirectory, ...options } = {}) =>
      `--builders '${renderBuildersOption(machines, { sshKey: `${directory}/${clientKeyName}`, ...options })}'\n`,
  },
  fleetJson: {
    description: "the builders as JSON, for the option nix.builderFleet.file of the flake in nixos/",
    fileName: "fleet.json",
    elsewhere: true,
    render: (machines) => `${JSON.stringify(checkBuildMachines(machines), null, 2)}\n`,
  },
} as const satisfies Record<string, Form>;

/** The name of a form. */
export type FormName = keyof typeof forms;

/** The names of all forms, in the order in which they are listed. */
export const formNames = Object.keys(forms) as readonly FormName[];

/**
 * Finds a form by the name that a person gave.
 *
 * @throws InvalidValue listing the forms, for an unknown name
 */
export function findForm(name: string): Form {
  const found = formNames.find((known) => known === name);
  if (found === undefined) throw new InvalidValue("form", name, `one of ${formNames.join(", ")}`);
  return forms[found];
}

/** Root's key lies beside the plain files, wherever the module lies. */
function systemModuleOptions({
  caches = [],
  directory = defaultDirectory,
  signs = false,
  ...options
}: FormOptions = {}): SystemModuleOptions {
  const settings = { ...(signs && signingSettings(directory)), ...cacheSettings(caches) };
  return { sshKey: `${directory}/${clientKeyName}`, ...options, settings };
}

/** The key's path belongs to each builder where a directory would otherwise give it. */
function withKey(machines: readonly BuildMachine[], sshKey: string): BuildMachine[] {
  return machines.map((machine) => ({ sshKey, ...machine }));
}
