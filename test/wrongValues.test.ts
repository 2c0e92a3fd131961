/** Whatever a person writes, the message is this project's: key, value, what is allowed. zod's own words are for programmers. */
import fc from "fast-check";
import * as z from "zod";
import { describe, expect, it } from "vitest";
import { ConfigurationError, configurationSchema, parseFleetSpec } from "../src/fleetSpec.ts";

const hostKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPIQCZc54poJ8vqawd8TraNryQeJnvH1eLpIDgbiqymM";
const common = { name: "x86", system: "x86_64-linux" };
const builders: Record<string, Record<string, unknown>> = {
  local: { ...common, provider: "local" },
  existing: { ...common, provider: "existing", address: "builder.example.org", hostKey },
  hcloud: { ...common, provider: "hcloud", candidates: ["cx23@fsn1"] },
  aws: { ...common, provider: "aws", candidates: ["c7i.large"] },
};

/** A way to a value: keys, and 0 for an element of a list. */
type Path = readonly (string | number)[];

/** Every value that the schema knows of, by the way to it. Alternatives are told apart by `provider` alone. */
function placesIn(schema: z.core.$ZodType, path: Path = []): { path: Path; schema: z.core.$ZodType }[] {
  const { def } = (schema as z.core.$ZodTypes)._zod;
  const here = path.length === 0 ? [] : [{ path, schema }];
  switch (def.type) {
    case "object":
      return [...here, ...Object.entries(def.shape).flatMap(([key, value]) => placesIn(value, [...path, key]))];
    case "array":
      return [...here, ...placesIn(def.element, [...path, 0])];
    case "union":
      return [
        ...here,
        ...def.options.flatMap((option) => {
          const places = placesIn(option, path);
          return places.filter((place) => place.path.length > path.length);
        }),
      ];
    case "pipe":
      return placesIn(def.in, path);
    case "optional":
    case "default":
    case "prefault":
      return placesIn(def.innerType, path);
    default:
      return here;
  }
}

/** A whole configuration in which one value is another: those on the way to it are made where there are none. */
function withValue(path: Path, value: unknown, provider: string): Record<string, unknown> {
  const whole: Record<string, unknown> = {
    access: { allowedCidrs: ["203.0.113.7/32"] },
    builders: [structuredClone(builders[provider])],
  };
  let outer: Record<string | number, unknown> = whole;
  path.slice(0, -1).forEach((key, index) => {
    const inner = outer[key];
    const next = typeof inner === "object" && inner !== null ? inner : typeof path[index + 1] === "number" ? [] : {};
    outer[key] = next;
    outer = next as Record<string | number, unknown>;
  });
  outer[path.at(-1) ?? ""] = value;
  return whole;
}

/** What was refused, and in which words; `undefined`: it was taken. */
function refusal(values: Record<string, unknown>): string | undefined {
  try {
    parseFleetSpec("dev", values, "/checkout");
    return undefined;
  } catch (error) {
    if (error instanceof ConfigurationError) return error.message;
    throw error;
  }
}

/** How zod speaks, in every kind of issue that it has. */
const zodsOwn =
  /Invalid|Unrecognized|Too (small|big)|expected (string|number|int|boolean|array|object|record|null|undefined|one of|NaN)|received|must be a multiple|to have [<>]|to be [<>]|undefined|\[object|NaN/;

const own = (message: string) => {
  expect(message).not.toMatch(zodsOwn);
  for (const line of message.split("\n")) {
    expect(line).toMatch(
      /^[\w.[\]-]+: ((has no value|missing|.* is not allowed); allowed is .{4}|unknown key .*: allowed are \w+)|^(builders|access|services|clients|client|profile|[\w ']+): /,
    );
    expect(line.length).toBeLessThan(1000);
  }
};

const places = placesIn(configurationSchema).map(({ path }) => path);
const simple: unknown[] = [null, "", " ", "nonsense!", 0, -1, 1.5, 1e300, true, [], ["a b"], {}, { a: 1 }];
/** And each of them one deeper. */
const wrong = [...simple, ...simple.flatMap((value) => [[value], { name: value }, { a: value }])];

describe("a wrong value is refused in this project's words", () => {
  it("is tried at every place of the schema", () => {
    const names = new Set(places.map((path) => path.join(".")));
    // One of each kind, so that a schema that isn't walked through doesn't pass for one without places.
    for (const name of [
      "builders",
      "builders.0",
      "builders.0.hostKey",
      "builders.0.supportedFeatures.0",
      "builders.0.disk.iops",
      "services.0.nixbuild.net.sshKey",
      "clients.0.localSystems.0",
      "access.allowedCidrs.0",
      "hcloud.nixArchives.x86_64-linux.hash",
      "aws.network.zones",
      "expires",
    ]) {
      expect(names).toContain(name);
    }
  });

  it.each(places.map((path) => [path.join("."), path] as const))("%s", (_, path) => {
    let refused = 0;
    for (const provider of Object.keys(builders)) {
      for (const value of wrong) {
        const message = refusal(withValue(path, value, provider));
        if (message === undefined) continue;
        refused += 1;
        own(message);
      }
    }
    expect(refused).toBeGreaterThan(0);
  });

  it("is refused so whatever it is", () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...places),
        fc.jsonValue({ maxDepth: 3 }),
        fc.constantFrom(...Object.keys(builders)),
        (path, value, provider) => {
          const message = refusal(withValue(path, value, provider));
          if (message !== undefined) own(message);
        },
      ),
      { numRuns: 1500 },
    );
  });

  it("is refused so where the whole configuration is something else", () => {
    fc.assert(
      fc.property(fc.dictionary(fc.string(), fc.jsonValue({ maxDepth: 3 })), (values) => {
        own(refusal(values) ?? "no builders: were taken");
      }),
      { numRuns: 300 },
    );
  });

  it.each<[string, Path, unknown, string]>([
    [
      "a host key that was left empty",
      ["builders", 0, "hostKey"],
      null,
      "builders[0].hostKey: has no value; allowed is the host's public key line, 'ssh-ed25519 AAAA…', whole",
    ],
    [
      "one feature in place of a list",
      ["builders", 0, "supportedFeatures"],
      "kvm",
      'builders[0].supportedFeatures: "kvm" is not allowed; allowed is a list such as [kvm, big-parallel]',
    ],
    [
      "a number for a name",
      ["builders", 0, "name"],
      86,
      "builders[0].name: 86 is not allowed; allowed is 1 to 32 of a-z",
    ],
    [
      "a name for a builder",
      ["builders", 0],
      "x86",
      'builders[0]: "x86" is not allowed; allowed is keys with values, for instance { name: x86, provider: local, system: x86_64-linux }',
    ],
    ["builders that are no list", ["builders"], { x86: {} }, "allowed is a list of builders"],
    [
      "an optional key that was left empty",
      ["builders", 0, "maxJobs"],
      null,
      "maxJobs: has no value; allowed is a whole",
    ],
    ["a section that was left empty", ["hcloud"], null, "hcloud: has no value; allowed is keys with values"],
    ["one range in place of a list", ["access", "allowedCidrs"], "10.0.0.0/8", "allowed is a list of IP ranges"],
    [
      "a misspelled key",
      ["builders", 0, "hostkey"],
      hostKey,
      "builders[0]: unknown key 'hostkey'; remove it or fix its spelling: allowed are name, system, ",
    ],
  ])("%s", (_, path, value, words) => {
    expect(refusal(withValue(path, value, "existing"))).toContain(words);
  });

  it("isn't shown whole where it is long", () => {
    const message = refusal({ builders: [{ ...builders["local"], name: "x".repeat(100_000) }] });
    expect(message?.length).toBeLessThan(1000);
    expect(message).toContain("allowed is 1 to 32 of a-z");
  });
});
