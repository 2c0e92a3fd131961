/** The one model of a builder: everything a client must know, and nothing else. All client forms are rendered from it. */
import { isIPv4, isIPv6, SocketAddress } from "node:net";
import { toHostKey, toPublicHostKey } from "../ssh/hostKey.ts";
import { InvalidValue } from "./invalidValue.ts";
import { trustLevels, type Trust } from "./trust.ts";

/** Nix's two ways of talking to a store over SSH: `ssh-ng` runs `nix-daemon --stdio`, `ssh` runs `nix-store --serve`. */
export const protocols = ["ssh-ng", "ssh"] as const;
export type Protocol = (typeof protocols)[number];

/** Largest `maxJobs` and `speedFactor` that every Nix reads. */
export const largestNumber = 2 ** 31 - 1;

/** Characters of a system or feature. nixos/client.nix has the same limits: Nix's matching of longer texts exhausts its stack. */
const longestWord = 100;

/** What Unicode counts among letters or marks and nobody sees. */
const invisible = /\p{Default_Ignorable_Code_Point}/u;
/** User to log in as, by the client's level. */
export type SshUsers = Readonly<Record<Trust, string>>;

/**
 * One entry of `nix.buildMachines`, with the field names of nixpkgs, plus `alias` and `port`.
 *
 * nixos/client.nix holds such entries to the same rules as `checkBuildMachines`, and a test holds it to that.
 *
 * Source of the names: `nixos/modules/config/nix-remote-build.nix` in nixpkgs.
 */
export interface BuildMachine {
  /** What clients call this builder: the `Host` in ssh_config, the `HostKeyAlias`, the host part of the store URI. */
  readonly alias: string;
  /** Address to connect to: a DNS name, an IPv4 address, or an IPv6 address without brackets. */
  readonly hostName: string;
  /** TCP port of sshd. */
  readonly port: number;
  /** Store protocol. */
  readonly protocol: Protocol;
  /** Nix systems it builds for; never empty, because an omitted column means the client's own system. */
  readonly systems: readonly string[];
  /** User to log in as. */
  readonly sshUser: string;
  /** What it takes from this client; `undefined`: a host that isn't the fleet's, which decides that for itself. */
  readonly trust?: Trust;
  /** Where clients of other levels log in as other users; see `atTrust`. */
  readonly sshUsers?: SshUsers;
  /** Path, on the client, of the private key; `undefined`: the key that the client directory holds. */
  readonly sshKey?: string;
  /** Derivations it builds at the same time, for one client. At least 1. */
  readonly maxJobs: number;
  /** Weight in the choice of a builder. A whole number of at least 1: Nix up to 2.18 parses no other. */
  readonly speedFactor: number;
  /** Features that derivations may require of it, for instance `big-parallel`. */
  readonly supportedFeatures: readonly string[];
  /** Features that a derivation must require to be built there. Also rendered into the supported ones. */
  readonly mandatoryFeatures: readonly string[];
  /** Base64 of the OpenSSH public host key line (`ssh-ed25519 AAAA…`). */
  readonly publicHostKey: string;
}

/** The builder as a client of another level has it. */
export function atTrust(machine: BuildMachine, trust: Trust): BuildMachine {
  if (machine.trust === undefined) return machine;
  return { ...machine, trust, sshUser: machine.sshUsers?.[trust] ?? machine.sshUser };
}

/**
 * Checks one builder and brings it into its one canonical form: the address as ssh looks it up, no feature twice, mandatory
 * features not again among the supported ones, the host key without comment, the user of this client alone.
 *
 * Its strings go unquoted into the `machines` file (split on white space, `;`, `#`), ssh_config, Nix, YAML and shell text, so each
 * is held to what is harmless in all of them.
 *
 * @param where what stands before the field name in an error; default: the alias
 * @throws InvalidValue for the first field that can't be used
 */
export function checkBuildMachine(machine: BuildMachine, where: string = machine.alias): BuildMachine {
  const at = (field: string) => `${where}.${field}`;
  const { sshKey } = machine;
  const mandatoryFeatures = unique(machine.mandatoryFeatures);
  const supportedFeatures = unique(machine.supportedFeatures).filter((feature) => !mandatoryFeatures.includes(feature));
  if (machine.systems.length === 0) throw new InvalidValue(at("systems"), [], "at least one Nix system");
  return {
    alias: checkAlias(machine.alias, at("alias")),
    hostName: checkHostName(machine.hostName, at("hostName")),
    port: checkWhole(machine.port, at("port"), 1, 65535),
    protocol: checkProtocol(machine.protocol, at("protocol")),
    systems: unique(machine.systems).map((system) => checkSystem(system, at("systems"))),
    sshUser: checkSshUser(machine.sshUser, at("sshUser")),
    ...(machine.trust === undefined ? {} : { trust: checkTrust(machine.trust, at("trust")) }),
    ...(sshKey === undefined ? {} : { sshKey: checkPath(sshKey, at("sshKey")) }),
    maxJobs: checkWhole(machine.maxJobs, at("maxJobs"), 1, largestNumber),
    speedFactor: checkWhole(machine.speedFactor, at("speedFactor"), 1, largestNumber),
    supportedFeatures: supportedFeatures.map((feature) => checkFeature(feature, at("supportedFeatures"))),
    mandatoryFeatures: mandatoryFeatures.map((feature) => checkFeature(feature, at("mandatoryFeatures"))),
    publicHostKey: toPublicHostKey(toHostKey(machine.publicHostKey, at("publicHostKey"))),
  };
}

/**
 * Checks the builders of one client together: each as `checkBuildMachine`, and no name standing for two of them.
 *
 * A name that meant two builders would let either one's host key pass for the other's.
 *
 * @throws InvalidValue
 */
export function checkBuildMachines(machines: readonly BuildMachine[]): BuildMachine[] {
  const checked = machines.map((machine) => checkBuildMachine(machine));
  const aliases = new Set<string>();
  for (const { alias } of checked) {
    if (aliases.has(alias)) throw new InvalidValue("alias", alias, "a name that no other builder has");
    aliases.add(alias);
  }
  for (const { alias, hostName } of checked) {
    if (hostName !== alias && aliases.has(hostName)) {
      throw new InvalidValue(`${alias}.hostName`, hostName, "an address that isn't the alias of another builder");
    }
  }
  return checked;
}

/** A builder's alias: a host name to ssh, a resource name to Pulumi, an attribute name to Nix. */
export function checkAlias(alias: string, field = "alias"): string {
  // Nix runs a builder called `localhost` without ssh.
  if (matches(/^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$/, alias) && alias !== "localhost") return alias;
  throw new InvalidValue(
    field,
    alias,
    "up to 63 lower-case letters, digits and hyphens, with a letter first, no hyphen last, and not localhost",
  );
}

/**
 * An address in the one form in which ssh looks it up: a DNS name in lower case, an IPv4 address, or an IPv6 address, shortened,
 * without brackets and zone.
 */
export function checkHostName(hostName: string, field = "hostName"): string {
  if (isIPv6(hostName) && !hostName.includes("%"))
    return new SocketAddress({ address: hostName, family: "ipv6" }).address;
  const labels = hostName.toLowerCase().split(".");
  const isDnsName =
    hostName.length <= 253 &&
    labels.every((label) => /^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$/.test(label)) &&
    !/^[0-9]+$/.test(labels.at(-1) ?? "");
  if (isIPv4(hostName) || isDnsName) return labels.join(".");
  throw new InvalidValue(field, hostName, "a DNS name, an IPv4 address, or an IPv6 address without brackets and zone");
}

/** Whether what is sent there stays on this machine. */
export function isLoopback(hostName: string): boolean {
  return /^127\.|^::1$|^::ffff:127\.|(^|\.)localhost$/.test(checkHostName(hostName));
}

/** A user name on the builder. */
export function checkSshUser(sshUser: string, field = "sshUser"): string {
  if (matches(/^[A-Za-z_][A-Za-z0-9_.-]{0,31}$/, sshUser)) return sshUser;
  throw new InvalidValue(
    field,
    sshUser,
    "a user name of at most 32 letters, digits and _ . - that starts with a letter or _",
  );
}

/** A Nix system, also one that this project has no builders for, for instance `aarch64-darwin`. */
export function checkSystem(system: string, field = "systems"): string {
  if (matches(/^[A-Za-z0-9_]+(-[A-Za-z0-9_]+)+$/, system) && system.length <= longestWord) return system;
  throw new InvalidValue(field, system, "a Nix system such as x86_64-linux: letters, digits and _, joined by hyphens");
}

/** A system feature. `-` alone is none: in a `machines` file it means an empty list. */
export function checkFeature(feature: string, field = "supportedFeatures"): string {
  if (matches(/^[A-Za-z0-9][A-Za-z0-9._+:-]*$/, feature) && feature.length <= longestWord) return feature;
  throw new InvalidValue(
    field,
    feature,
    `a word of letters, digits and . _ + : - that starts with a letter or digit, of at most ${longestWord} characters`,
  );
}

/**
 * An absolute path on a client. Neither `nix.conf` nor `machines` has quotes, and ssh_config expands `%` and `${…}` in paths, so
 * only plain characters are left. Letters of any alphabet are plain.
 */
export function checkPath(path: string, field = "path"): string {
  if (matches(/^\/[\p{L}\p{M}\p{N}/._+@:=,-]*$/u, path) && !invisible.test(path) && Buffer.byteLength(path) <= 1024)
    return path;
  throw new InvalidValue(
    field,
    path,
    "an absolute path of letters, digits and / . _ + @ : = , - (the files that Nix reads have no way to quote a space)",
  );
}

/** Types don't hold for JSON from outside, and a pattern takes `null` for the word. */
function matches(pattern: RegExp, value: unknown): boolean {
  return typeof value === "string" && pattern.test(value);
}

function checkWhole(value: number, field: string, least: number, most: number): number {
  if (Number.isInteger(value) && value >= least && value <= most) return value;
  throw new InvalidValue(field, value, `a whole number from ${least} to ${most}`);
}

/** Types don't hold for JSON from outside. */
function checkTrust(trust: string, field: string): Trust {
  const known = trustLevels.find((one) => one === trust);
  if (known !== undefined) return known;
  throw new InvalidValue(field, trust, `one of ${trustLevels.join(", ")}`);
}

/** Types don't hold for JSON from outside. */
function checkProtocol(protocol: string, field: string): Protocol {
  const known = protocols.find((one) => one === protocol);
  if (known !== undefined) return known;
  throw new InvalidValue(field, protocol, "ssh-ng or ssh");
}

function unique(values: readonly string[]): string[] {
  return [...new Set(values)];
}
