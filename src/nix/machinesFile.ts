/** The `machines` file: the builders of a client as eight columns a line, split on white space and without quoting. */
import { checkBuildMachine, checkBuildMachines, checkPath, type BuildMachine, type Protocol } from "./buildMachine.ts";
import { InvalidValue } from "./invalidValue.ts";

/** What a line of a `machines` file says of a builder. Address and port stand in ssh_config, under the alias. */
export type MachinesEntry = Omit<BuildMachine, "hostName" | "port">;

export interface MachinesOptions {
  /** Path, on the client, of the private key for builders that name none of their own. Default: none, ssh decides. */
  readonly sshKey?: string;
}

/**
 * The `machines` file. Its URIs hold the aliases, so ssh must read the ssh_config that goes with it.
 *
 * @throws InvalidValue if a builder can't be used
 */
export function renderMachines(machines: readonly BuildMachine[], options: MachinesOptions = {}): string {
  return checkBuildMachines(machines)
    .map((machine) => `${renderBuildersLine(machine, options)}\n`)
    .join("");
}

/**
 * One line of the `machines` file, without line end: also what `--builders` takes.
 *
 * Systems are always written, because an omitted column means the client's own system. Mandatory features stand in the
 * supported column too, as NixOS renders them: Nix matches a derivation's features against that column alone.
 * Column 8 is compared against the host of the URI, thus against the alias, which ssh_config sets as `HostKeyAlias`.
 *
 * @throws InvalidValue if the builder can't be used
 */
export function renderBuildersLine(machine: BuildMachine, options: MachinesOptions = {}): string {
  const m = checkBuildMachine(machine);
  const sshKey = m.sshKey ?? options.sshKey;
  return [
    storeUri(m),
    m.systems.join(","),
    sshKey === undefined ? "-" : checkPath(sshKey, "sshKey"),
    m.maxJobs,
    m.speedFactor,
    renderFeatures([...m.supportedFeatures, ...m.mandatoryFeatures]),
    renderFeatures(m.mandatoryFeatures),
    m.publicHostKey,
  ].join(" ");
}

/** The URI of a builder's store, through its alias: `ssh-ng://nix-builder@x86`. */
export function storeUri(machine: Pick<BuildMachine, "alias" | "protocol" | "sshUser">): string {
  return `${machine.protocol}://${machine.sshUser}@${machine.alias}`;
}

/**
 * Reads a `machines` file as this project writes it, comments and empty lines aside.
 *
 * @param options the same as for `renderMachines`: a key equal to `sshKey` is the default, not the builder's own
 * @throws InvalidValue naming the line that isn't of that form
 */
export function parseMachines(text: string, options: MachinesOptions = {}): MachinesEntry[] {
  return text
    .split(/[\n;]/)
    .map((line) => line.replace(/#.*/, "").trim())
    .filter((line) => line !== "")
    .map((line) => parseLine(line, options));
}

function parseLine(line: string, options: MachinesOptions): MachinesEntry {
  const [uri = "", systems = "", sshKey = "", maxJobs, speedFactor, supported = "", mandatory = "", pin, ...rest] =
    line.split(/\s+/);
  const parts = /^(ssh|ssh-ng):\/\/([^@/]+)@([^@/:]+)$/.exec(uri);
  const [, protocol, sshUser, alias] = parts ?? [];
  if (protocol === undefined || sshUser === undefined || alias === undefined || pin === undefined || rest.length > 0) {
    throw new InvalidValue("machines", line, "eight columns that start with ssh-ng://USER@ALIAS");
  }
  const entry: MachinesEntry & { hostName?: string; port?: number } = checkBuildMachine({
    alias,
    hostName: alias,
    port: 22,
    protocol: protocol satisfies string as Protocol,
    systems: systems.split(","),
    sshUser,
    ...(sshKey === "-" || sshKey === options.sshKey ? {} : { sshKey }),
    maxJobs: Number(maxJobs),
    speedFactor: Number(speedFactor),
    supportedFeatures: parseFeatures(supported),
    mandatoryFeatures: parseFeatures(mandatory),
    publicHostKey: pin,
  });
  delete entry.hostName;
  delete entry.port;
  return entry;
}

function renderFeatures(features: readonly string[]): string {
  return features.length === 0 ? "-" : features.join(",");
}

function parseFeatures(column: string): string[] {
  return column === "-" ? [] : column.split(",");
}
