/** What a client leaves to the fleet and what it builds itself. */
import type { BuildMachine } from "./buildMachine.ts";
import { InvalidValue } from "./invalidValue.ts";
import type { NixSettings } from "./nixConf.ts";

/**
 * - `remote-only`: the client builds nothing; without the fleet a build fails instead of running here.
 * - `balanced`: Nix gives the fleet as much as it takes, and builds the rest here.
 * - `local-first`: what this machine's own system can build is built here; the fleet gets the other systems only.
 * - `offline`: the fleet is switched off, and everything else stays as it is.
 *
 * Nix asks its builders before it looks at itself, whatever their speed: `local-first` can therefore not mean "when this machine
 * is busy", and the builders of its own systems are left out.
 */
export const profileNames = ["remote-only", "balanced", "local-first", "offline"] as const;

/** A client's profile. */
export type Profile = (typeof profileNames)[number];

export interface ProfileOptions {
  /** Default: none, the client's own `max-jobs` stays as it is. */
  readonly profile?: Profile;
  /** Systems that the client builds for itself; `local-first` needs them. */
  readonly localSystems?: readonly string[];
}

/**
 * The builders that a client lists under its profile, and its settings.
 *
 * @throws InvalidValue for an unknown profile, or `local-first` without `localSystems`
 */
export function applyProfile(
  machines: readonly BuildMachine[],
  { profile, localSystems = [] }: ProfileOptions,
): { builders: BuildMachine[]; settings: NixSettings } {
  switch (profile) {
    case undefined:
      return { builders: [...machines], settings: {} };
    case "remote-only":
      return { builders: [...machines], settings: { "max-jobs": 0 } };
    case "balanced":
      return { builders: [...machines], settings: { "max-jobs": "auto" } };
    case "offline":
      return { builders: [], settings: { "max-jobs": "auto" } };
    case "local-first":
      if (localSystems.length === 0) {
        throw new InvalidValue(
          "localSystems",
          localSystems,
          "the systems that the client builds itself, for local-first",
        );
      }
      return { builders: withoutSystems(machines, localSystems), settings: { "max-jobs": "auto" } };
    default:
      throw new InvalidValue("profile", profile satisfies never, profileNames.join(", "));
  }
}

function withoutSystems(machines: readonly BuildMachine[], excluded: readonly string[]): BuildMachine[] {
  return machines
    .map((machine) => ({ ...machine, systems: machine.systems.filter((system) => !excluded.includes(system)) }))
    .filter((machine) => machine.systems.length > 0);
}
