import { describe, expect, it } from "vitest";
import { ConfigurationError, parseFleetSpec } from "../src/fleetSpec.ts";

const x86 = { name: "x86", provider: "local", system: "x86_64-linux" };
const hostKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPIQCZc54poJ8vqawd8TraNryQeJnvH1eLpIDgbiqymM";
const own = { name: "own", provider: "existing", system: "aarch64-linux", address: "builder.example.org", hostKey };

const parse = (...builders: unknown[]) => parseFleetSpec("dev", { builders }, "/checkout");

const refusal = (values: Record<string, unknown>): string => {
  try {
    parseFleetSpec("dev", values, "/checkout");
  } catch (error) {
    if (error instanceof ConfigurationError) return error.message;
    throw error;
  }
  throw new Error("was accepted");
};

describe("a fleet's configuration", () => {
  it("fills in defaults", () => {
    const { builders, clientDirectory, smokeTimeout } = parse(x86, own);
    expect(builders[0]).toMatchObject({ alias: "dev-x86", port: 2222, speedFactor: undefined, protocol: "ssh-ng" });
    expect(builders[1]).toMatchObject({ alias: "dev-own", port: 22, user: "nix-builder", sshKey: undefined });
    expect({ clientDirectory, smokeTimeout }).toEqual({
      clientDirectory: "/etc/nix/fleet",
      smokeTimeout: 120,
    });
  });

  it("limits builds where the fleet configures Nix, some day by default", () => {
    expect(parse(x86).builders[0]).toMatchObject({ timeout: 172_800, maxSilentTime: 14_400 });
    expect(parse({ ...x86, timeout: 0, maxSilentTime: 60 }).builders[0]).toMatchObject({
      timeout: 0,
      maxSilentTime: 60,
    });
    expect(refusal({ builders: [{ ...x86, timeout: -1 }] })).toMatch(/timeout.*0 or more/);
    expect(refusal({ builders: [{ ...x86, maxSilentTime: "1h" }] })).toMatch(
      /maxSilentTime.*a whole number of seconds/,
    );
    expect(refusal({ builders: [{ ...own, timeout: 60 }] })).toMatch(/timeout/);
  });

  it("makes several of a kind without renaming or moving the first", () => {
    const one = parse(x86, { ...x86, name: "other" }).builders;
    const three = parse({ ...x86, count: 3 }, { ...x86, name: "other" }).builders;
    expect(three.map(({ name }) => name)).toEqual(["x86", "x86-2", "x86-3", "other"]);
    expect([three[0], three[3]]).toEqual(one);
  });

  it("gives local builders loopback addresses of their own, other ones in another checkout", () => {
    const addresses = parse({ ...x86, count: 16 }).builders.map((builder) => "address" in builder && builder.address);
    expect(new Set(addresses).size).toBe(16);
    for (const address of addresses) expect(address).toMatch(/^127\.(6[4-9]|[7-9]\d|1[01]\d|12[0-7])\./);
    expect(parseFleetSpec("dev", { builders: [x86] }, "/elsewhere").builders[0]).not.toMatchObject({
      address: addresses[0],
    });
  });

  it("forgets the comment of a host key, which is no part of what is pinned", () => {
    expect(parse({ ...own, hostKey: `${hostKey} root@builder` }).builders[0]).toMatchObject({ hostKey });
  });

  it("brings an address into the form in which ssh looks it up", () => {
    expect(parse({ ...own, address: "Builder.Example.org" }).builders[0]).toMatchObject({
      address: "builder.example.org",
    });
    expect(() =>
      parse({ ...own, address: "Builder.example.org" }, { ...own, name: "b", address: "builder.example.org" }),
    ).toThrow("'own' and 'b' are both at builder.example.org:22");
  });

  it("accepts whatever the model of a builder can be rendered from", () => {
    const [builder] = parse({
      ...own,
      user: "Nix.Builder",
      sshKey: "/home/jürgen/schlüssel",
      supportedFeatures: ["gccarch-x86-64-v3", "uid:range"],
    }).builders;
    expect(builder).toMatchObject({ user: "Nix.Builder", sshKey: "/home/jürgen/schlüssel" });
  });

  it("accepts a client's key that lives in a security key, without its comment", () => {
    const type = "sk-ssh-ed25519@openssh.com";
    const blob = [type, "k".repeat(32), "ssh:"].map((part) => {
      const bytes = Buffer.from(part);
      return Buffer.concat([Buffer.from([0, 0, 0, bytes.length]), bytes]);
    });
    const publicKey = `${type} ${Buffer.concat(blob).toString("base64")}`;
    const clients = [{ name: "ci", publicKey: `${publicKey} me@laptop` }];
    expect(parseFleetSpec("dev", { builders: [x86], clients }, "/checkout").clients[0]).toMatchObject({ publicKey });
  });

  it.each([
    ["1st", "fleet-1st-x86"],
    ["Org.Prod", "org-prod-x86"],
    ["a".repeat(40), `${"a".repeat(30)}-x86`],
  ])("makes host names out of a stack named %s", (stack, alias) => {
    expect(parseFleetSpec(stack, { builders: [x86] }, "/checkout").builders[0]?.alias).toBe(alias);
  });
});

describe("what is wrong is said with key, value and what is allowed", () => {
  it.each<[string, Record<string, unknown>, string]>([
    ["no builders at all", {}, "builders: missing"],
    ["an empty fleet", { builders: [] }, "at least one builder"],
    [
      "an unknown provider",
      { builders: [{ ...x86, provider: "gcp" }] },
      'builders[0].provider: "gcp" is not allowed; allowed is one of',
    ],
    [
      "an unknown system",
      { builders: [{ ...x86, system: "riscv64-linux" }] },
      'builders[0].system: "riscv64-linux" is not allowed; allowed is one of x86_64-linux, aarch64-linux',
    ],
    [
      "an illegal name",
      { builders: [{ ...x86, name: "X 86" }] },
      'builders[0].name: "X 86" is not allowed; allowed is 1 to 32 of a-z',
    ],
    ["a missing name", { builders: [{ ...x86, name: undefined }] }, "builders[0].name: missing"],
    [
      "maxJobs 0",
      { builders: [{ ...x86, maxJobs: 0 }] },
      "builders[0].maxJobs: 0 is not allowed; allowed is a whole number of at least 1",
    ],
    [
      "maxJobs that no Nix reads",
      { builders: [{ ...x86, maxJobs: 3e9 }] },
      "builders[0].maxJobs: 3000000000 is not allowed; allowed is at most 2147483647",
    ],
    [
      "a speedFactor that no Nix reads",
      { builders: [{ ...x86, speedFactor: 2 ** 40 }] },
      "builders[0].speedFactor: 1099511627776 is not allowed; allowed is at most 2147483647",
    ],
    [
      "a time limit that no timer has",
      { builders: [x86], smokeTimeout: 2 ** 31 },
      "smokeTimeout: 2147483648 is not allowed; allowed is at most 86400",
    ],
    [
      "an address that is what clients call another builder",
      { builders: [x86, { ...own, address: "dev-x86" }] },
      "builders: the address of 'own' is dev-x86, but so clients call another builder",
    ],
    [
      "an address that is what clients call a service",
      {
        builders: [{ ...own, address: "nixbuild" }],
        services: [{ "nixbuild.net": { sshKey: "/k" } }],
      },
      "the address of 'own' is nixbuild",
    ],
    [
      "one service twice",
      { builders: [x86], services: [{ "nixbuild.net": { sshKey: "/k" } }, { "nixbuild.net": { sshKey: "/l" } }] },
      "services: nixbuild.net stands there twice; remove one",
    ],
    ["negative maxJobs", { builders: [{ ...x86, maxJobs: -2 }] }, "builders[0].maxJobs: -2 is not allowed"],
    [
      "a speedFactor that old Nix can't parse",
      { builders: [{ ...x86, speedFactor: 1.5 }] },
      "builders[0].speedFactor: 1.5 is not allowed; allowed is a whole number",
    ],
    [
      "a feature with a comma",
      { builders: [{ ...x86, supportedFeatures: ["kvm,big-parallel"] }] },
      'builders[0].supportedFeatures[0]: "kvm,big-parallel" is not allowed; allowed is a word of letters, digits',
    ],
    [
      "a feature with a space",
      { builders: [{ ...x86, mandatoryFeatures: ["big parallel"] }] },
      'builders[0].mandatoryFeatures[0]: "big parallel" is not allowed',
    ],
    [
      "a port out of range",
      { builders: [{ ...x86, port: 70000 }] },
      "builders[0].port: 70000 is not allowed; allowed is 1 to 65535",
    ],
    [
      "an address that isn't loopback",
      { builders: [{ ...x86, address: "10.0.0.1" }] },
      'builders[0].address: "10.0.0.1" is not allowed; allowed is an IPv4 loopback address',
    ],
    ["a misspelled key", { builders: [{ ...x86, maxjobs: 2 }] }, "builders[0]: unknown key 'maxjobs'"],
    ["a misspelled top-level key", { builders: [x86], clientDir: "/x" }, "unknown key 'clientDir'"],
    [
      "a host key that is none",
      { builders: [{ ...own, hostKey: "AAAA" }] },
      'builders[0].hostKey: "AAAA" is not allowed; allowed is the host\'s public key line',
    ],
    [
      "a host key that was cut off in copying",
      { builders: [{ ...own, hostKey: hostKey.slice(0, -8) }] },
      "is not allowed; allowed is the host's public key line",
    ],
    [
      "a host key of another type than it says",
      { builders: [{ ...own, hostKey: hostKey.replace("ssh-ed25519", "ssh-rsa") }] },
      "builders[0].hostKey: ",
    ],
    [
      "an address that no client could write down",
      { builders: [{ ...own, address: "builder..example.org" }] },
      'builders[0].address: "builder..example.org" is not allowed; allowed is a DNS name',
    ],
    [
      "a user that is none",
      { builders: [{ ...own, user: "nix builder" }] },
      'builders[0].user: "nix builder" is not allowed; allowed is a user name',
    ],
    [
      "a client's key that was cut off",
      { builders: [x86], clients: [{ name: "ci", publicKey: hostKey.slice(0, -8) }] },
      "allowed is a public key line",
    ],
    [
      "a certificate in place of a client's key",
      {
        builders: [x86],
        clients: [{ name: "ci", publicKey: `ssh-ed25519-cert-v01@openssh.com ${hostKey.slice(12)}` }],
      },
      "clients[0].publicKey: ",
    ],
    [
      "no host key, as that would be trust on first use",
      { builders: [{ ...own, hostKey: undefined }] },
      "builders[0].hostKey: missing",
    ],
    ["a count on a host that exists once", { builders: [{ ...own, count: 2 }] }, "unknown key 'count'"],
    [
      "a relative key path",
      { builders: [{ ...own, sshKey: "id_ed25519" }] },
      'builders[0].sshKey: "id_ed25519" is not allowed; allowed is an absolute path',
    ],
    ["two of one name", { builders: [x86, x86] }, "two builders are named 'x86'"],
    [
      "a name that a count makes too",
      {
        builders: [
          { ...x86, count: 2 },
          { ...x86, name: "x86-2" },
        ],
      },
      "two builders are named 'x86-2'",
    ],
    [
      "two on one socket",
      {
        builders: [
          { ...x86, address: "127.0.0.5" },
          { ...x86, name: "b", address: "127.0.0.5" },
        ],
      },
      "'x86' and 'b' are both at 127.0.0.5:2222",
    ],
  ])("%s", (_, values, expected) => {
    expect(refusal(values)).toContain(expected);
  });

  it("refuses names that get too long as clients call them", () => {
    const builders = [{ ...x86, name: "b".repeat(32), count: 2 }];
    expect(() => parseFleetSpec("s".repeat(30), { builders }, "/checkout")).toThrow(
      /^builders: clients would call 'b{32}-2' s{30}-b{32}-2, and that is no host name of at most 63 characters/,
    );
  });

  it("names every mistake at once", () => {
    expect(refusal({ builders: [{ ...x86, maxJobs: 0, port: 0 }] }).split("\n")).toHaveLength(2);
  });
});

describe("the level of trust", () => {
  const parse = (values: Record<string, unknown>, nix?: string) =>
    parseFleetSpec("dev", values, "/checkout", () => nix);
  const local = [{ name: "x86", provider: "local", system: "x86_64-linux" }];
  const cloud = {
    access: { allowedCidrs: ["192.0.2.0/24"] },
    builders: [{ name: "arm", provider: "hcloud", system: "aarch64-linux", candidates: ["cax11@fsn1"] }],
  };

  it("is signed unless local builders alone run a Nix that is too old for it", () => {
    expect(parse({ builders: local }, "2.34.1").trust).toBe("signed");
    expect(parse({ builders: local }, "2.16.0").trust).toBe("signed");
    expect(parse({ builders: local }, "2.15.3").trust).toBe("full");
    expect(parse(cloud, "2.8.0").trust).toBe("signed");
    expect(parse({ ...cloud, builders: [...local, ...cloud.builders] }, "2.8.0").trust).toBe("signed");
    expect(parse({ ...cloud, trust: "none" }).trust).toBe("none");
  });

  it("is the fleet's for a client that says nothing, and its own for one that does", () => {
    const clients = [{ name: "ci", trust: "none" }, { name: "laptop" }];
    expect(parse({ ...cloud, clients }).clients.map(({ trust }) => trust)).toEqual(["none", "signed"]);
  });

  it.each<[string, Record<string, unknown>, RegExp]>([
    ["an unknown level", { ...cloud, trust: "some" }, /^trust: .*one of none, signed, full/],
    [
      "one key at two levels",
      { ...cloud, clients: ["none", "full"].map((trust, i) => ({ name: `c${i}`, trust, publicKey: hostKey })) },
      /'c0' \(trust: none\) and 'c1' \(trust: full\) have the same publicKey/,
    ],
    [
      "the protocol that needs full",
      { ...cloud, builders: cloud.builders.map((one) => ({ ...one, protocol: "ssh" })) },
      /'arm' has protocol: ssh, .* clients at trust: signed; remove the protocol .* or set trust: full/,
    ],
  ])("refuses %s", (_, values, sentence) => {
    expect(() => parse(values)).toThrow(sentence);
  });
});
