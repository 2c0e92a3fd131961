/** How the fleet's administrator logs in to a builder, beside the client's own files. */
import type { BuildMachine } from "../nix/buildMachine.ts";

/** A login of the administrator's. */
export interface AdministratorLogin {
  readonly machine: Pick<BuildMachine, "alias" | "hostName" | "port">;
  readonly user: string;
  /** File with the private key, mode 0600. */
  readonly keyFile: string;
  /** Folder with the client's files, whose `known_hosts` pins the host key. */
  readonly clientDirectory: string;
}

/** Arguments of `ssh` for one command on the builder. */
export function administratorWords({ machine, user, keyFile, clientDirectory }: AdministratorLogin, command: string) {
  return [
    ...["-F", "/dev/null", "-i", keyFile, "-p", String(machine.port), "-l", user],
    ...[
      "BatchMode=yes",
      "ConnectTimeout=10",
      "IdentitiesOnly=yes",
      "StrictHostKeyChecking=yes",
      `HostKeyAlias=${machine.alias}`,
      `UserKnownHostsFile=${clientDirectory}/known_hosts`,
      "GlobalKnownHostsFile=/dev/null",
    ].flatMap((option) => ["-o", option]),
    ...[machine.hostName, command],
  ];
}
