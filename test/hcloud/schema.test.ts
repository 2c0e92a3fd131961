import { describe, expect, it } from "vitest";
import { pinnedNix } from "../../src/nixosRelease.ts";
import { ConfigurationError, parseFleetSpec } from "../../src/fleetSpec.ts";

const arm = { name: "arm", provider: "hcloud", system: "aarch64-linux", candidates: ["cax31@fsn1", "cax41@hel1"] };
const access = { allowedCidrs: ["203.0.113.7/32"] };

const parse = (builder: Record<string, unknown>, more: Record<string, unknown> = { access }) =>
  parseFleetSpec("dev", { builders: [{ ...arm, ...builder }], ...more }, "/checkout");

const refusal = (builder: Record<string, unknown>, more?: Record<string, unknown>): string => {
  try {
    parse(builder, more);
  } catch (error) {
    if (error instanceof ConfigurationError) return error.message;
    throw error;
  }
  throw new Error("was accepted");
};

describe("a builder at Hetzner", () => {
  it("has its candidates in order, and a Debian image that is converted by default", () => {
    expect(parse({ count: 2 }).builders).toMatchObject([
      {
        alias: "dev-arm",
        candidates: [
          { serverType: "cax31", location: "fsn1" },
          { serverType: "cax41", location: "hel1" },
        ],
        image: { kind: "infect" },
        ipv4: true,
        ipv6: true,
      },
      { alias: "dev-arm-2" },
    ]);
  });

  it.each([
    ["snapshot", { kind: "snapshot", selector: "nix-builder-fleet.snapshot=builder" }],
    [4711, { kind: "snapshot", id: 4711 }],
    ["role=builder", { kind: "snapshot", selector: "role=builder" }],
  ])("takes the image %s", (image, expected) => {
    expect(parse({ image }).builders).toMatchObject([{ image: expected }]);
  });

  it.each([
    ["x86 types for an Arm system", { candidates: ["cax31@fsn1", "ccx23@fsn1"] }, /ccx23@fsn1 runs x86_64-linux.*cax…/],
    ["Arm types for an x86 system", { system: "x86_64-linux" }, /cax31@fsn1 runs aarch64-linux.*cx…, cpx… and ccx…/],
    ["a family that does not exist", { candidates: ["t4g@fsn1"] }, /t4g@fsn1 is no server type of Hetzner Cloud/],
    ["a candidate without location", { candidates: ["cax31"] }, /candidates\[0\]: "cax31".*SERVERTYPE@LOCATION/],
    ["no candidates", { candidates: [] }, /candidates: \[\].*at least one/],
    ["candidates left out", { candidates: undefined }, /candidates: missing.*list/],
    ["an unknown image", { image: "ubuntu" }, /image: "ubuntu".*infect, snapshot/],
    ["no address at all", { ipv4: false, ipv6: false }, /neither ipv4 nor ipv6 nor a private network/],
  ])("is refused with %s", (_, builder, message) => {
    expect(refusal(builder)).toMatch(message);
  });

  it("is converted with what is pinned here, unless another Nix or nixpkgs is named with its hash", () => {
    const { nixosRelease, nixpkgs, nixArchives, baseImage } = parse({}).hcloud;
    expect({ nixosRelease, nixpkgs, baseImage }).toEqual({
      nixosRelease: "26.05",
      nixpkgs: undefined,
      baseImage: "debian-13",
    });
    expect(nixArchives).toEqual(pinnedNix);
    const own = { url: "https://example.org/nixexprs.tar.xz", hash: "0".repeat(52) };
    expect(parse({}, { access, hcloud: { nixpkgs: own } }).hcloud.nixpkgs).toEqual(own);
  });

  it.each([
    [
      { nixosInfect: { commit: "0".repeat(40) } },
      /^hcloud\.nixosInfect: .* allowed is nothing: nixos-infect is used no more, so remove it/,
    ],
    [{ nixosRelease: "25.11" }, /^hcloud\.nixosRelease: "25\.11".* allowed is one of 26\.05; .*hcloud\.nixpkgs/],
    [{ nixpkgs: { url: "https://example.org/x" } }, /^hcloud\.nixpkgs\.hash: missing; .*nix-prefetch-url --unpack/],
    [
      { nixpkgs: { url: "http://example.org/x", hash: "0".repeat(52) } },
      /^hcloud\.nixpkgs\.url: .*an https:\/\/ address/,
    ],
    [
      { nixArchives: { "x86_64-linux": { url: "https://example.org/nix.tar.xz", hash: `sha256-${"A".repeat(43)}=` } } },
      /^hcloud\.nixArchives\.x86_64-linux\.hash: .*64 hexadecimal digits/,
    ],
  ])("is refused with hcloud: %j", (hcloud, message) => {
    expect(refusal({}, { access, hcloud })).toMatch(message);
  });

  it("needs it said who may reach it", () => {
    expect(refusal({}, {})).toMatch(/^access: missing; builder 'arm' .*0\.0\.0\.0\/0/);
    expect(refusal({}, { access: { allowedCidrs: ["203.0.113.7"] } })).toMatch(
      /access\.allowedCidrs\[0\]: "203\.0\.113\.7"/,
    );
    expect(refusal({}, { access: { allowedCidrs: ["10.0.0.0/33"] } })).toMatch(/10\.0\.0\.0\/33/);
    expect(refusal({}, { access: { allowedCidrs: [] } })).toMatch(/at least one IP range/);
  });

  it("expires on a day of the calendar", () => {
    expect(parse({}, { access, expires: "2026-12-31" }).expires).toBe("2026-12-31");
    expect(refusal({}, { access, expires: "2026-02-30" })).toMatch(/expires: "2026-02-30"/);
    expect(refusal({}, { access, expires: "tomorrow" })).toMatch(/expires: "tomorrow"/);
  });
});
