/** The part of the configuration that is about AWS, and what can be known of it without asking the API. */
import * as z from "zod";
import { networkRange } from "../ipRange.ts";
import { currentRelease, isSupportedRelease, oldestRelease } from "../nixosRelease.ts";
import type { System } from "../nix/system.ts";

const wholeNumber = (least: number, most: number) => {
  const allowed = `a whole number from ${least} to ${most}`;
  return z.int(allowed).min(least, allowed).max(most, allowed);
};

/** Root volume: EBS gp3, encrypted. Bounds: https://docs.aws.amazon.com/ebs/latest/userguide/general-purpose.html. */
const disk = z.union(
  [
    wholeNumber(16, 16_384).transform((size): AwsDisk => ({ size, iops: undefined, throughput: undefined })),
    z
      .strictObject({
        size: wholeNumber(16, 16_384).default(100),
        iops: wholeNumber(3000, 16_000).optional(),
        throughput: wholeNumber(125, 1000).optional(),
      })
      .transform(({ size, iops, throughput }): AwsDisk => ({ size, iops, throughput })),
  ],
  "a size in GiB from 16 to 16384, or { size, iops: 3000 to 16000, throughput: 125 to 1000 (MiB/s) }",
);

/** The keys of a builder with `provider: aws`. */
export const awsBuilderFields = {
  candidates: z
    .array(
      z.string().regex(/^[a-z][a-z0-9-]*\.[a-z0-9-]+$/, "an instance type such as c7i.4xlarge"),
      "a list of instance types such as [c8g.4xlarge, c7g.4xlarge]",
    )
    .min(1, "at least one instance type, in order of preference, for instance [c8g.4xlarge, c7g.4xlarge]"),
  spot: z.boolean("true or false").default(false),
  disk: disk.prefault(100),
  ami: z
    .string()
    .regex(/^ami-[0-9a-f]{8,17}$/, "the id of an image of yours with NixOS, for instance ami-0123456789abcdef0")
    .optional(),
  publicAddress: z.boolean("true or false").default(true),
  nestedVirtualization: z.boolean("true or false").default(false),
};

/** A root volume. */
export interface AwsDisk {
  /** GiB. */
  readonly size: number;
  /** Operations a second; `undefined`: the 3000 that gp3 includes. */
  readonly iops: number | undefined;
  /** MiB/s; `undefined`: the 125 that gp3 includes. */
  readonly throughput: number | undefined;
}

/** What a builder's own entry says, after defaults. */
export interface AwsBuilderFields {
  /** Instance types in order of preference. */
  readonly candidates: readonly string[];
  /** Whether it runs on spare capacity, which costs less and can be taken away with two minutes' notice. */
  readonly spot: boolean;
  readonly disk: AwsDisk;
  /** Image with NixOS; `undefined`: the newest official one of `aws.nixosRelease`. */
  readonly ami: string | undefined;
  /** Whether clients reach it by a public IPv4 address; else by its private one. */
  readonly publicAddress: boolean;
  /** Whether builds may use /dev/kvm on an instance that isn't bare metal: families C8i, M8i and R8i. */
  readonly nestedVirtualization: boolean;
}

/** Up to 25.05 the service that takes the pinned host key from user data raced with the one that makes a host key: nixpkgs#444040. */
const releaseAllowed = `a release from "${oldestRelease}" on, such as "${currentRelease}", in quotes; the images of older ones can start with another host key than the pinned one`;

/** `aws` of the configuration: what all builders at AWS share. */
export const awsSchema = z.strictObject({
  network: z
    .union(
      [
        z.strictObject({
          subnetIds: z
            .array(z.string().regex(/^subnet-[0-9a-f]{8,17}$/, "a subnet's id"))
            .min(1, "at least one subnet's id, for instance subnet-0123456789abcdef0"),
        }),
        z.strictObject({
          ipRange: networkRange(16, 24, "any").default("10.65.0.0/16"),
          zones: wholeNumber(1, 4).default(1),
        }),
      ],
      "{ ipRange: 10.65.0.0/16, zones: 1 to 4 } for a network of the fleet's own, or { subnetIds: [subnet-…] } for one that exists",
    )
    .prefault({}),
  nixosRelease: z.string(releaseAllowed).refine(isSupportedRelease, releaseAllowed).default(currentRelease),
  bootTimeout: wholeNumber(1, 86_400).default(1200),
  automaticUpgrades: z.boolean("true or false").default(false),
});

/** What all builders at AWS share. */
export type AwsFleetSpec = z.infer<typeof awsSchema>;

/**
 * The system that an instance type runs, by its family: Graviton's have a `g` right after the generation (`c7g`, `t4g`,
 * `m6gd`, `im4gn`), and `a1` was the first of them. `undefined`: it runs no Linux.
 *
 * Source: https://docs.aws.amazon.com/ec2/latest/instancetypes/instance-type-names.html.
 */
export function systemOfInstanceType(instanceType: string): System | undefined {
  if (/^mac\d/.test(instanceType)) return undefined;
  return /^([a-z]+\d+g[a-z]*[.-]|a1\.)/.test(instanceType) ? "aarch64-linux" : "x86_64-linux";
}

/** Families whose instances can run virtual machines themselves, beside all `.metal` ones. */
const nesting = /^[cmr]8i[a-z-]*\./;

/** Why a builder can't be what its entry says, in words; `undefined`: it can, as far as is known here. */
export function wrongAwsBuilder(
  { candidates, nestedVirtualization }: AwsBuilderFields,
  system: System,
): string | undefined {
  for (const candidate of candidates) {
    const runs = systemOfInstanceType(candidate);
    if (runs === undefined) return `candidates: ${candidate} runs no NixOS; choose another instance type`;
    if (runs !== system) {
      return (
        `candidates: ${candidate} runs ${runs}, but the builder's system is ${system}; ` +
        `allowed are ${system === "aarch64-linux" ? "Graviton types such as c8g.4xlarge" : "x86 types such as c7i.4xlarge"}`
      );
    }
    if (nestedVirtualization && !nesting.test(candidate)) {
      return `nestedVirtualization: ${candidate} does not have it; allowed are types of the families c8i, m8i and r8i`;
    }
  }
  return undefined;
}
