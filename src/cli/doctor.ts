/** `npx fleet doctor`: what is wrong with the builders and with this machine, why it matters, and the exact fix. */
import { examineBuilder } from "../doctor/builder.ts";
import { nixVersion } from "../client/settings.ts";
import { examineClient } from "../doctor/client.ts";
import { exitCode, renderFindings } from "../doctor/finding.ts";
import { renderMachines } from "../nix/machinesFile.ts";
import { chooseBuilders, writeOwnClient, type UsableFleet } from "./stack.ts";
import { say, sayJson } from "../terminal.ts";
import { ownValue } from "../record.ts";

/**
 * Examines this machine and the builders of these names, or all.
 *
 * @returns The exit code: 0 nothing wrong, 1 warnings, 2 errors.
 * @throws CliError for a name that the fleet doesn't have.
 */
export async function doctor(fleet: UsableFleet, names: readonly string[], { json }: { json?: true }): Promise<number> {
  const chosen = chooseBuilders(fleet, names);
  const clientDirectory = writeOwnClient(fleet);
  const clientNix = await nixVersion();
  const builders = chosen.map(async ([name, { alias }]) => {
    const machine = fleet.builders.find((candidate) => candidate.alias === alias);
    if (machine === undefined) return [];
    const entry = ownValue(fleet.administration, name);
    const administration = entry && { ...entry, privateKey: fleet.adminPrivateKey };
    return examineBuilder({
      name,
      machine,
      clientDirectory,
      administration,
      clientNix,
      builderNix: ownValue(fleet.measurement, name)?.nixVersion,
    });
  });
  const emitted = renderMachines(fleet.builders);
  const { stack, builders: machines } = fleet;
  const findings = (await Promise.all([examineClient({ machines, emitted, stack }), ...builders])).flat();
  if (json === true) sayJson(findings);
  else say(renderFindings(findings));
  return exitCode(findings);
}
