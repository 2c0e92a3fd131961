/** `known_hosts`: the one host key that each builder may show. */
import { checkBuildMachines, type BuildMachine } from "../nix/buildMachine.ts";
import { InvalidValue } from "../nix/invalidValue.ts";
import { checkHostKey, toHostKey, toPublicHostKey } from "./hostKey.ts";

/** What a line of `known_hosts` says of a builder. */
export type KnownHost = Pick<BuildMachine, "alias" | "hostName" | "port" | "publicHostKey">;

/**
 * A line for each builder, under its alias and under its address.
 *
 * @throws InvalidValue if a builder can't be used
 */
export function renderKnownHosts(machines: readonly BuildMachine[]): string {
  return checkBuildMachines(machines)
    .map((machine) => `${knownHostNames(machine).join(",")} ${toHostKey(machine.publicHostKey)}\n`)
    .join("");
}

/** The names under which ssh looks a builder's key up: the alias (`HostKeyAlias`), and the address as a person would type it. */
export function knownHostNames(machine: Pick<BuildMachine, "alias" | "hostName" | "port">): string[] {
  const { alias, hostName, port } = machine;
  const address = port === 22 ? hostName : `[${hostName}]:${port}`;
  return address === alias ? [alias] : [alias, address];
}

/**
 * Reads `known_hosts` as this project writes it.
 *
 * @throws InvalidValue naming the line that isn't of that form
 */
export function parseKnownHosts(text: string): KnownHost[] {
  return text
    .split("\n")
    .filter((line) => line.trim() !== "" && !line.startsWith("#"))
    .map(parseLine);
}

function parseLine(line: string): KnownHost {
  const space = line.indexOf(" ");
  const [alias = "", address = alias, ...rest] = line.slice(0, Math.max(space, 0)).split(",");
  if (alias === "" || rest.length > 0) throw new InvalidValue("known_hosts", line, "ALIAS,ADDRESS and a public key");
  const [, bracketed, port] = /^\[(.*)\]:(\d+)$/.exec(address) ?? [];
  return {
    alias,
    hostName: bracketed ?? address,
    port: Number(port ?? 22),
    publicHostKey: toPublicHostKey(checkHostKey(line.slice(space + 1), `known_hosts ${alias}`)),
  };
}
