/** Where Nix would build a derivation: the rules of its build hook, said in words. */
import type { BuildMachine } from "./buildMachine.ts";

/** What decides where a derivation is built. */
export interface Requirements {
  readonly system: string;
  readonly requiredFeatures: readonly string[];
  /** `preferLocalBuild`. */
  readonly preferLocal: boolean;
}

/** A builder as a row of `machines` has it. */
export type Candidate = Pick<
  BuildMachine,
  "alias" | "systems" | "maxJobs" | "speedFactor" | "supportedFeatures" | "mandatoryFeatures"
> & {
  /** Slots that this client has taken there now. */
  readonly load: number;
  /** Why no row of it can be used by this client's Nix, as the end of a sentence; `undefined`: it can. */
  readonly noRow?: string | undefined;
};

/** What a client's own Nix can do. */
export interface ClientCapabilities {
  /** `system` and `extra-platforms`. */
  readonly systems: readonly string[];
  readonly features: readonly string[];
  /** 0: it builds nothing itself. */
  readonly maxJobs: number;
  /** Version of the client's Nix: it decides how loads are compared. */
  readonly nixVersion: string;
}

/** What one builder says to a derivation. */
export interface Judgement {
  readonly alias: string;
  /** Why it refuses, one sentence each; empty: it accepts. */
  readonly refusals: readonly string[];
  /** Whether all of its slots are taken. Only of interest where it accepts. */
  readonly full: boolean;
  readonly load: number;
  readonly maxJobs: number;
}

/** Where Nix builds, and why. `wait`: on the first builder with a free slot. `nowhere`: the build fails. */
export interface Decision {
  readonly place: "builder" | "here" | "wait" | "nowhere";
  /** The builder, if it is one. */
  readonly alias?: string;
  readonly why: string;
  readonly judgements: readonly Judgement[];
}

/**
 * Decides as Nix's build hook does (`src/build-remote/build-remote.cc`), and `DerivationGoal` before it.
 *
 * Of the builders that accept and have a free slot, the one with the lowest load ÷ speedFactor is taken; of equal ones the one
 * with the higher speedFactor, then the one with the lower load, then the first in the file.
 */
export function decide(required: Requirements, candidates: readonly Candidate[], client: ClientCapabilities): Decision {
  const judgements = candidates.map((candidate) => judge(required, candidate));
  const ownRefusals = refusalsOf(client, required);
  const canBuildHere = ownRefusals.length === 0 && client.maxJobs > 0;
  if (required.preferLocal && canBuildHere) {
    return { place: "here", why: "it asks for that (preferLocalBuild), and this machine can", judgements };
  }
  const accepting = candidates.filter((_, index) => judgements[index]?.refusals.length === 0);
  const free = accepting.filter(({ load, maxJobs }) => load < maxJobs);
  const best = pick(free, client.nixVersion);
  if (best !== undefined) {
    const why = whyPicked(best, free, client.nixVersion);
    // Nix knows nothing of it when it picks: the build then fails there.
    if (best.noRow !== undefined) {
      return {
        place: "nowhere",
        why: `Nix picks ${best.alias} (${why}), which refuses: ${best.noRow}; use it as a store`,
        judgements,
      };
    }
    return { place: "builder", alias: best.alias, why, judgements };
  }
  const none = accepting.length === 0 ? "no builder accepts it" : "all slots of the builders that accept it are taken";
  if (canBuildHere)
    return { place: "here", why: `${none}, and this machine can build it (max-jobs isn't 0)`, judgements };
  if (accepting.length > 0) return { place: "wait", why: none, judgements };
  const own =
    client.maxJobs === 0
      ? "this machine builds nothing itself (max-jobs = 0)"
      : `this machine ${ownRefusals.join(" and ")}`;
  return { place: "nowhere", why: `${none}, and ${own}`, judgements };
}

function judge(required: Requirements, candidate: Candidate): Judgement {
  const { alias, systems, supportedFeatures, mandatoryFeatures, load, maxJobs } = candidate;
  // A builder takes Nix's own builders (builtin:fetchurl) whatever its systems are.
  const able = { systems: [...systems, "builtin"], features: [...supportedFeatures, ...mandatoryFeatures] };
  const unmet = mandatoryFeatures.filter((feature) => !required.requiredFeatures.includes(feature));
  const refusals = [
    ...refusalsOf(able, required),
    ...unmet.map((feature) => `takes only what requires its mandatory feature ${feature}`),
  ];
  return { alias, refusals, full: load >= maxJobs, load, maxJobs };
}

function refusalsOf(
  able: { readonly systems: readonly string[]; readonly features: readonly string[] },
  { system, requiredFeatures }: Requirements,
): string[] {
  const systems = able.systems.filter((one) => one !== "builtin");
  const missing = requiredFeatures.filter((feature) => !able.features.includes(feature));
  return [
    ...(able.systems.includes(system) ? [] : [`builds ${systems.join(", ")}, not ${system}`]),
    ...missing.map((feature) => `lacks the feature ${feature}`),
  ];
}

function pick(candidates: readonly Candidate[], nixVersion: string): Candidate | undefined {
  return candidates.reduce<Candidate | undefined>((best, candidate) => {
    if (best === undefined) return candidate;
    const [weight, bestWeight] = [weightOf(candidate, nixVersion), weightOf(best, nixVersion)];
    if (weight !== bestWeight) return weight < bestWeight ? candidate : best;
    if (candidate.speedFactor !== best.speedFactor) return candidate.speedFactor > best.speedFactor ? candidate : best;
    return candidate.load < best.load ? candidate : best;
  }, undefined);
}

/** Up to 2.18 Nix divides whole numbers: below a full multiple of speedFactor, a builder counts as idle. */
function weightOf({ load, speedFactor }: Candidate, nixVersion: string): number {
  const [major = 0, minor = 0] = nixVersion.split(".").map((part) => Number.parseInt(part, 10));
  const weight = load / speedFactor;
  return major > 2 || minor >= 19 ? weight : Math.floor(weight);
}

function whyPicked(best: Candidate, free: readonly Candidate[], nixVersion: string): string {
  const others = free.filter((candidate) => candidate !== best);
  if (others.length === 0) return "no other builder accepts it and has a free slot";
  const weight = weightOf(best, nixVersion);
  const tied = others.filter((candidate) => weightOf(candidate, nixVersion) === weight);
  if (tied.length === 0) return "the lowest load for its speed (load ÷ speedFactor)";
  if (tied.every(({ speedFactor }) => speedFactor < best.speedFactor)) {
    return `equal load for its speed, and the highest speedFactor (${best.speedFactor})`;
  }
  return tied.some(({ speedFactor, load }) => speedFactor === best.speedFactor && load === best.load)
    ? "equal in load and speedFactor to others, and the first of them in the file"
    : "equal load for its speed and equal speedFactor, and the fewest slots taken";
}
