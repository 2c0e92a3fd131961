import { describe, expect, it } from "vitest";
import { systemOfInstanceType } from "../../src/aws/schema.ts";
import { parseFleetSpec } from "../../src/fleetSpec.ts";
import { currentRelease } from "../../src/nixosRelease.ts";

const builder = { name: "x86", provider: "aws", system: "x86_64-linux", candidates: ["c7i.4xlarge"] };
const access = { allowedCidrs: ["203.0.113.7/32"] };
const parse = (entry: object, more: object = {}) =>
  parseFleetSpec("dev", { builders: [{ ...builder, ...entry }], access, ...more }, "/checkout");

describe("the system of an instance type", () => {
  it.each([
    ["c8g.4xlarge", "aarch64-linux"],
    ["t4g.small", "aarch64-linux"],
    ["m6gd.metal", "aarch64-linux"],
    ["im4gn.large", "aarch64-linux"],
    ["a1.xlarge", "aarch64-linux"],
    ["c7i.4xlarge", "x86_64-linux"],
    ["m7i-flex.large", "x86_64-linux"],
    ["g4dn.xlarge", "x86_64-linux"],
    ["c8i.metal-48xl", "x86_64-linux"],
    ["mac2.metal", undefined],
  ])("%s runs %s", (instanceType, system) => {
    expect(systemOfInstanceType(instanceType)).toBe(system);
  });
});

it("gets the current release unless told another that its image can be of", () => {
  expect(parse({}).aws.nixosRelease).toBe(currentRelease);
  for (const nixosRelease of ["25.11", "26.05", "26.11"])
    expect(parse({}, { aws: { nixosRelease } }).aws.nixosRelease).toBe(nixosRelease);
});

it.each(["latest", "25.05", "24.11", "9.11", "25.12", "26.05-small", "unstable", "", 26.05])(
  "is refused with the release %j, before anything is asked",
  (nixosRelease) => {
    expect(() => parse({}, { aws: { nixosRelease } })).toThrow(
      `aws.nixosRelease: ${JSON.stringify(nixosRelease)} is not allowed; allowed is a release from "25.11" on, such as "${currentRelease}", in quotes; ` +
        "the images of older ones can start with another host key than the pinned one",
    );
  },
);

describe("a builder at AWS", () => {
  it("is on demand, with 100 GiB and a public address, unless it says otherwise", () => {
    expect(parse({}).builders).toMatchObject([
      { candidates: ["c7i.4xlarge"], spot: false, disk: { size: 100 }, publicAddress: true, alias: "dev-x86" },
    ]);
    expect(parse({ disk: 200 }).builders).toMatchObject([{ disk: { size: 200 } }]);
    expect(parse({ disk: { iops: 6000 } }).builders).toMatchObject([{ disk: { size: 100, iops: 6000 } }]);
  });

  it.each([
    [{ candidates: ["c8g.4xlarge"] }, /'x86': candidates: c8g\.4xlarge runs aarch64-linux.*x86 types such as c7i/],
    [{ candidates: ["mac1.metal"] }, /mac1\.metal runs no NixOS/],
    [{ candidates: [] }, /candidates: \[\] is not allowed; allowed is at least one instance type/],
    [{ candidates: ["huge"] }, /candidates\[0\]: "huge" is not allowed; allowed is an instance type such as/],
    [{ disk: 8 }, /disk: 8 is not allowed; allowed is a size in GiB from 16/],
    [{ ami: "nixos" }, /ami: "nixos" is not allowed/],
    [{ nestedVirtualization: true }, /nestedVirtualization: c7i\.4xlarge does not have it; .* c8i, m8i and r8i/],
    [{ publicAddress: false }, /'x86' has no public address.*subnetIds/],
    [{ spott: true }, /unknown key 'spott'/],
  ])("is refused with %j", (entry, message) => {
    expect(() => parse(entry)).toThrow(message);
  });

  it.each([
    [{ access: undefined }, /access: missing; builder 'x86' is in a cloud/],
    [
      { aws: { network: { ipRange: "10.65.7.0/16" } } },
      /aws\.network\.ipRange: .*10\.65\.0\.0\/16 for the whole range/,
    ],
    [{ aws: { network: { ipRange: "10.0.0.0/8" } } }, /aws\.network.*"10\.0\.0\.0\/8" is not allowed/],
  ])("is refused in a fleet with %j", (more, message) => {
    expect(() => parse({}, more)).toThrow(message);
  });
});
