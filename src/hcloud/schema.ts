/** The part of the configuration that is about Hetzner Cloud, and what can be known of it without asking the API. */
import * as z from "zod";
import { ipRange, networkRange } from "../ipRange.ts";
import { currentRelease, pinnedNix, pinnedNixpkgs, type PinnedRelease } from "../nixosRelease.ts";
import type { System } from "../nix/system.ts";

/** One server type in one location: `cax31@fsn1`. */
export interface Candidate {
  readonly serverType: string;
  readonly location: string;
}

/** How a server becomes a NixOS builder. */
export type HcloudImage =
  /** A Debian image, turned into NixOS at first boot. */
  | { readonly kind: "infect" }
  /** A snapshot of one's own that runs nixos/builder.nix already: by id, or the newest of a label for the architecture. */
  | { readonly kind: "snapshot"; readonly id: number }
  | { readonly kind: "snapshot"; readonly selector: string };

/** Label of the snapshots that `npx fleet bake` makes. */
export const snapshotLabel = "nix-builder-fleet.snapshot";

const snapshotLabelAny = `${snapshotLabel}=builder`;

const candidate = z
  .string()
  .regex(/^[a-z][a-z0-9]*@[a-z]{2,5}[0-9]*$/, "SERVERTYPE@LOCATION, for instance cax31@fsn1")
  .transform((text): Candidate => {
    const [serverType = "", location = ""] = text.split("@");
    return { serverType, location };
  });

const image = z
  .union([z.number(), z.string()])
  .refine(
    (value) =>
      typeof value === "number"
        ? Number.isInteger(value) && value > 0
        : /^(infect|snapshot|[A-Za-z0-9][A-Za-z0-9_./-]*=[A-Za-z0-9][A-Za-z0-9_.-]*)$/.test(value),
    "infect, snapshot (the newest that `npx fleet bake` made), a snapshot's id, or a label of snapshots such as role=nix-builder",
  )
  .transform((value): HcloudImage => {
    if (value === "infect") return { kind: "infect" };
    if (value === "snapshot") return { kind: "snapshot", selector: snapshotLabelAny };
    return typeof value === "number" ? { kind: "snapshot", id: value } : { kind: "snapshot", selector: value };
  });

/** The keys of a builder with `provider: hcloud`. */
export const hcloudBuilderFields = {
  candidates: z
    .array(candidate, "a list such as [cax31@fsn1, cax41@hel1]")
    .min(1, "at least one SERVERTYPE@LOCATION, in order of preference, for instance [cax31@fsn1, cax41@hel1]"),
  image: image.default({ kind: "infect" }),
  ipv4: z.boolean("true or false").default(true),
  ipv6: z.boolean("true or false").default(true),
};

/** What a builder's own entry says, after defaults. */
export interface HcloudBuilderFields {
  /** In order of preference. */
  readonly candidates: readonly Candidate[];
  readonly image: HcloudImage;
  /** Whether it gets a public IPv4 address, which costs extra. */
  readonly ipv4: boolean;
  readonly ipv6: boolean;
}

/** `access` of the configuration. */
export const accessSchema = z.strictObject({
  allowedCidrs: z.array(ipRange, "a list of IP ranges").min(1, "at least one IP range, for instance 203.0.113.7/32"),
});

/** Who may reach the SSH port of cloud builders. */
export type AccessSpec = z.infer<typeof accessSchema>;

/** `expires` of the configuration. Pulumi hands an unquoted day over as a point in time. */
export const expiresSchema = z
  .string()
  .transform((text) => text.replace(/ 00:00:00 \+0000 UTC$/, ""))
  .pipe(z.iso.date("a day as YYYY-MM-DD, for instance 2026-12-31"));

const address = z.string().regex(/^(https|file):\/\/[A-Za-z0-9._~:/@%+-]+$/, "an https:// address of an archive");

const nixArchive = z.strictObject({
  url: address,
  hash: z.string().regex(/^[0-9a-f]{64}$/, "the archive's SHA-256 in 64 hexadecimal digits"),
});

/** Servers in a placement group at most. Source: https://docs.hetzner.com/cloud/placement-groups/overview. */
export const placementGroupSize = 10;

const releases = Object.keys(pinnedNixpkgs) as [PinnedRelease, ...PinnedRelease[]];

/**
 * `hcloud` of the configuration: what all builders at Hetzner share.
 *
 * Whatever a conversion fetches has a hash here, or a signature of cache.nixos.org.
 */
export const hcloudSchema = z.strictObject({
  network: z
    .strictObject({
      // "Must be one of the private IPv4 ranges of RFC1918. Minimum network size is /24": https://docs.hetzner.cloud/reference/cloud#networks.
      ipRange: networkRange(8, 24, "private").default("10.64.0.0/16"),
      zone: z
        .string()
        .regex(/^[a-z]+-[a-z]+$/, "a network zone such as eu-central")
        .default("eu-central"),
    })
    .optional(),
  spread: z.boolean("true or false").default(false),
  bootTimeout: z
    .int("a whole number of seconds")
    .min(1, "a whole number of seconds")
    .max(86_400, "at most 86400 seconds, a day")
    .default(1200),
  baseImage: z
    .string()
    .regex(/^[a-z0-9.-]+$/, "a system image of Hetzner's, for instance debian-13")
    .default("debian-13"),
  nixosRelease: z
    .enum(releases, `one of ${releases.join(", ")}; what else is to be installed, hcloud.nixpkgs says`)
    .default(currentRelease),
  nixpkgs: z
    .strictObject({
      url: address,
      hash: z
        .string()
        .regex(
          /^(sha256-[A-Za-z0-9+/]{43}=|[0-9a-df-np-sv-z]{52}|[0-9a-f]{64})$/,
          "the hash that `nix-prefetch-url --unpack URL` prints, or the same as sha256-…",
        ),
    })
    .optional(),
  nixArchives: z
    .strictObject({
      "x86_64-linux": nixArchive.default(pinnedNix["x86_64-linux"]),
      "aarch64-linux": nixArchive.default(pinnedNix["aarch64-linux"]),
    })
    .prefault({}),
  nixosInfect: z
    .never(
      "nothing: nixos-infect is used no more, so remove it; what is installed, hcloud.nixosRelease or hcloud.nixpkgs says",
    )
    .optional(),
  automaticUpgrades: z.boolean("true or false").default(false),
});

/** What all builders at Hetzner share. */
export type HcloudFleetSpec = z.infer<typeof hcloudSchema>;

/**
 * The system that a server type runs, by its family: `cax` is Arm (Ampere), `cx`, `cpx` and `ccx` are x86.
 *
 * Source: https://docs.hetzner.com/cloud/servers/overview.
 */
export function systemOfServerType(serverType: string): System | undefined {
  if (/^cax\d/.test(serverType)) return "aarch64-linux";
  return /^(cx|cpx|ccx)\d/.test(serverType) ? "x86_64-linux" : undefined;
}

/** Why a candidate can't be a builder of `system`, in words; `undefined`: it can, as far as is known here. */
export function wrongCandidate({ serverType, location }: Candidate, system: System): string | undefined {
  const runs = systemOfServerType(serverType);
  const found = `candidates: ${serverType}@${location}`;
  if (runs === undefined) {
    return `${found} is no server type of Hetzner Cloud; allowed are cax… (aarch64-linux) and cx…, cpx…, ccx… (x86_64-linux)`;
  }
  if (runs === system) return undefined;
  return `${found} runs ${runs}, but the builder's system is ${system}; allowed are ${system === "aarch64-linux" ? "cax…" : "cx…, cpx… and ccx…"}`;
}

/** Source: https://docs.hetzner.com/cloud/general/locations. What isn't here, the API knows. */
const zones = new Map([
  ["fsn1", "eu-central"],
  ["nbg1", "eu-central"],
  ["hel1", "eu-central"],
  ["ash", "us-east"],
  ["hil", "us-west"],
  ["sin", "ap-southeast"],
]);

/** Why a candidate can't be in the fleet's private network, in words; `undefined`: it can, as far as is known here. */
export function outsideZone({ serverType, location }: Candidate, { network }: HcloudFleetSpec): string | undefined {
  const zone = zones.get(location);
  if (network === undefined || zone === undefined || zone === network.zone) return undefined;
  const inside = [...zones].flatMap(([name, its]) => (its === network.zone ? [name] : []));
  return (
    `candidates: ${serverType}@${location} is in the network zone ${zone}, which a network in ${network.zone} does not reach; ` +
    `allowed are ${inside.length === 0 ? `locations in ${network.zone}` : inside.join(", ")}, or set hcloud.network.zone to ${zone}`
  );
}
