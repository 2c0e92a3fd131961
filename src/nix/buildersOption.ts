/** The value of `--builders`: a fleet on one command line, for a try without any file but the key. */
import { isIPv6 } from "node:net";
import { checkBuildMachines, type BuildMachine } from "./buildMachine.ts";
import { NotExpressible } from "./invalidValue.ts";
import { renderBuildersLine, type MachinesOptions } from "./machinesFile.ts";

export interface BuildersOptionOptions extends MachinesOptions {
  /** Version of the client's Nix, for instance `2.34.0`. Default: unknown, so only what all versions read is written. */
  readonly nixVersion?: string;
}

/**
 * The builders with their addresses in place of their aliases, since no ssh_config goes with them.
 *
 * The host key is pinned all the same: Nix compares column 8 with the host of the URI, and ssh, finding no key for the host with its
 * port, looks for the host without.
 *
 * @throws NotExpressible for a port other than 22 unless Nix is 2.31 or newer
 * @throws InvalidValue if a builder can't be used
 */
export function renderBuildersOption(machines: readonly BuildMachine[], options: BuildersOptionOptions = {}): string {
  return checkBuildMachines(machines)
    .map((machine) => {
      const { alias, hostName, port, protocol, sshUser } = machine;
      if (port !== 22 && !readsPorts(options.nixVersion)) {
        throw new NotExpressible(
          `${alias} listens on port ${port}, which a builders line can say from Nix 2.31 on only: ` +
            "say so if the client has it (--nix-version 2.31), " +
            "or use the forms machines and sshConfig together, where the port stands in ssh_config.",
        );
      }
      const host = isIPv6(hostName) ? `[${hostName}]` : hostName;
      const uri = `${protocol}://${sshUser}@${host}${port === 22 ? "" : `:${port}`}`;
      return [uri, ...renderBuildersLine(machine, options).split(" ").slice(1)].join(" ");
    })
    .join(" ; ");
}

function readsPorts(nixVersion = "0.0"): boolean {
  const [major = 0, minor = 0] = nixVersion.split(".").map((part) => Number.parseInt(part, 10));
  return major > 2 || (major === 2 && minor >= 31);
}
