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
    ["no address at all", { ipv4: false, ipv6: false }, /'arm' has neither ipv4 nor ipv6: .*allow ipv6/],
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

describe("ranges of IP addresses", () => {
  it.each([
    "203.0.113.7/32",
    "203.0.113.0/24",
    "2001:db8::/64",
    "2001:DB8:0::/64",
    "::/0",
    "0.0.0.0/0",
    "2001:db8::7/128",
  ])("take %s as who may connect", (range) => {
    expect(parse({}, { access: { allowedCidrs: [range] } }).access).toEqual({ allowedCidrs: [range] });
  });

  it.each([
    ["203.0.113.7/24", "203.0.113.0/24 for the whole range, or 203.0.113.7/32 for that address alone"],
    ["10.0.0.1/0", "0.0.0.0/0 for the whole range, or 10.0.0.1/32 for that address alone"],
    ["2001:db8::7/64", "2001:db8::/64 for the whole range, or 2001:db8::7/128 for that address alone"],
    ["203.0.113.7", "an IP range such as 203.0.113.7/32"],
    ["203.0.113.7/33", "an IP range such as"],
    ["fe80::1%eth0/64", "an IP range such as"],
    ["10.1/16", "an IP range such as"],
    [7, "an IP range such as"],
  ])("refuse %s, and say by which key, and what was meant", (range, words) => {
    const said = refusal({}, { access: { allowedCidrs: ["203.0.113.7/32", range] } });
    expect(said).toMatch(/^access\.allowedCidrs\[1\]: /);
    expect(said).toContain(words);
  });

  it.each(["10.64.0.0/16", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "192.168.7.0/24"])(
    "take %s for a network of the fleet's own",
    (range) => {
      expect(parse({}, { access, hcloud: { network: { ipRange: range } } }).hcloud.network?.ipRange).toBe(range);
    },
  );

  it.each([
    ["10.64.0.0/25", "/8 to /24"],
    ["10.64.0.0/30", "/8 to /24"],
    ["10.0.0.0/7", "/8 to /24"],
    ["172.16.0.0/11", "172.16.0.0/12"],
    ["192.168.0.0/15", "192.168.0.0/16"],
    ["203.0.113.0/24", "a private IPv4 range"],
    ["fd00::/16", "a private IPv4 range"],
    ["10.64.0.0", "a private IPv4 range"],
    ["10.64.7.1/16", "10.64.0.0/16 for the whole range"],
    [10, "a private IPv4 range"],
  ])("refuse %s for one", (range, words) => {
    const said = refusal({}, { access, hcloud: { network: { ipRange: range } } });
    expect(said).toMatch(/^hcloud\.network\.ipRange: /);
    expect(said).toContain(words);
  });
});

describe("a private network", () => {
  it("is no substitute for a public address", () => {
    const hcloud = { network: {} };
    expect(refusal({ ipv4: false, ipv6: false }, { access, hcloud })).toMatch(/network has no way out.*allow ipv6/);
    expect(parse({ ipv4: false }, { access, hcloud }).builders).toHaveLength(1);
  });

  const inZone = (zone: string) => ({ access, hcloud: { network: { zone } } });

  it("holds locations of its zone, and those that only the API knows", () => {
    expect(
      parse({ candidates: ["cax31@fsn1", "cax31@hel1", "cax31@xyz1"] }, inZone("eu-central")).builders,
    ).toHaveLength(1);
    expect(parse({ system: "x86_64-linux", candidates: ["cpx42@ash"] }, inZone("us-east")).builders).toHaveLength(1);
  });

  it.each([
    [
      ["cax31@fsn1", "cax31@ash"],
      "eu-central",
      "cax31@ash is in the network zone us-east",
      "fsn1, nbg1, hel1, or set hcloud.network.zone to us-east",
    ],
    [["cax31@fsn1"], "us-west", "cax31@fsn1 is in the network zone eu-central", "hil, or set"],
    [["cax31@fsn1"], "mars-north", "cax31@fsn1 is in the network zone eu-central", "locations in mars-north, or set"],
  ])("refuses %s in %s before anything is made", (candidates, zone, what, allowed) => {
    const said = refusal({ candidates }, inZone(zone));
    expect(said).toContain(`builders: 'arm': candidates: ${what}`);
    expect(said).toContain(`allowed are ${allowed}`);
  });
});

describe("a placement group", () => {
  it("holds ten servers, and not eleven", () => {
    const hcloud = { spread: true };
    expect(parse({ count: 10 }, { access, hcloud }).builders).toHaveLength(10);
    expect(refusal({ count: 11 }, { access, hcloud })).toMatch(
      /^hcloud\.spread: .* holds 10 servers.* 11 builders .*spread: false/,
    );
    expect(parse({ count: 11 }).builders).toHaveLength(11);
  });
});
