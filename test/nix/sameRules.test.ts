/** The program and nixos/client.nix hold builders to the same rules, though one is TypeScript and the other Nix. */
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { isIPv6 } from "node:net";
import { isDeepStrictEqual } from "node:util";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { checkBuildMachines, type BuildMachine } from "../../src/nix/buildMachine.ts";
import { InvalidValue } from "../../src/nix/invalidValue.ts";
import { renderNix } from "../../src/nix/nixExpression.ts";
import { renderNixosModule } from "../../src/nix/nixosModule.ts";
import { ed25519, fleets, x86 } from "./fleets.ts";
import { evaluate, temporaryDirectory } from "./realNix.ts";

const stubs = fileURLToPath(new URL("stubs", import.meta.url));
const clientModule = fileURLToPath(new URL("../../nixos/client.nix", import.meta.url));

/** For each file, whether the module takes it: in one run of Nix, with everything evaluated that a system would. */
function taken(files: readonly unknown[]): boolean[] {
  using directory = temporaryDirectory();
  const paths = files.map((file, index) => {
    const path = `${directory.path}/${index}.json`;
    writeFileSync(path, JSON.stringify(file));
    return path;
  });
  return evaluate(`
    let lib = import ${stubs}/lib.nix; in
    map (file:
      (builtins.tryEval (
        let config = lib.evalModules { modules = [ ${stubs}/nixos.nix ${clientModule} { nix.builderFleet.file = file; } ]; };
        in builtins.deepSeq [ config.nix.buildMachines config.programs ] true
      )).success
    ) ${renderNix(paths)}
  `) as boolean[];
}

/** Whether it is what the program writes: what it accepts, in its one canonical form. */
function writable(fleet: unknown): boolean {
  const known = Object.keys({ ...x86, sshKey: "" });
  const all = fleet as BuildMachine[];
  if (all.some((machine) => Object.keys(machine).some((field) => !known.includes(field)))) return false;
  try {
    return isDeepStrictEqual(checkBuildMachines(all), all);
  } catch (error) {
    // A missing list is a TypeError there; zod has refused it before.
    if (error instanceof InvalidValue || error instanceof TypeError) return false;
    throw error;
  }
}

const line = Buffer.from(x86.publicHostKey, "base64").toString();
const base64 = (text: string | Buffer) => Buffer.from(text).toString("base64");
const blob = Buffer.from(line.split(" ")[1] ?? "", "base64");
const cut = (bytes: Buffer) => base64(`ssh-ed25519 ${bytes.toString("base64")}`);
const keyOfType = (...words: string[]) => {
  using directory = temporaryDirectory();
  execFileSync("ssh-keygen", ["-q", "-N", "", "-C", "", "-f", `${directory.path}/key`, "-t", ...words]);
  return base64(readFileSync(`${directory.path}/key.pub`, "utf8").trim());
};

/** Field → what a person, or somebody who means harm, might put there. */
const values: Readonly<Record<string, readonly unknown[]>> = {
  alias: [
    "localhost",
    "-x",
    "x-",
    "X",
    "x_y",
    "",
    "a".repeat(63),
    "a".repeat(64),
    "x\nHost *",
    "x y",
    "1a",
    "a.b",
    1,
    null,
  ],
  hostName: [
    ...[
      "-oProxyCommand=touch /tmp/x",
      "-",
      "a b",
      "a\nProxyCommand x",
      "",
      ".",
      "a.",
      ".a",
      "a..b",
      "-a.example",
      "a-.example",
    ],
    ...[
      "EXAMPLE.org",
      "example.org",
      "a_b.example",
      "localhost",
      "127.0.0.1",
      "127.0.0.01",
      "256.1.1.1",
      "1.2.3",
      "1.2.3.4.5",
      "1",
    ],
    ...[
      "::1",
      "::",
      "fe80::1",
      "fe80::1%eth0",
      "[::1]",
      "1:2:3:4:5:6:7:8",
      "1:2:3:4:5:6:7",
      "1:2:3:4:5:6:7:8:9",
      "1::2::3",
      ":1",
      "1:",
    ],
    ...[
      "::ffff:1.2.3.4",
      "::ffff:1.2.3.256",
      "1.2.3.4::",
      ":::",
      "1:2:3:4:5:6::8",
      "g::1",
      "12345::",
      "a".repeat(64),
      "a.b.123",
    ],
    ...[
      `${"a".repeat(63)}.${"b".repeat(63)}.${"c".repeat(63)}.${"d".repeat(61)}`,
      "a.".repeat(127),
      "x$(id)",
      "x;y",
      "x#y",
      5,
      null,
    ],
  ],
  port: [0, -1, 1, 65535, 65536, 1.5, "22", 1e21, null, true],
  protocol: ["ssh", "ssh-ng", "ssh-ng ", "http", "", null, 1],
  systems: [
    [],
    ["x86_64-linux", "x86_64-linux"],
    ["linux"],
    ["x86_64-linux -"],
    ["a-b-c"],
    "x86_64-linux",
    [1],
    null,
    [`a-${"b".repeat(99)}`],
  ],
  sshUser: ["", "-oProxyCommand=x", "root", "1a", "a".repeat(32), "a".repeat(33), "a b", "a@b", "_x", "a\n", null],
  sshKey: [
    ...[
      "/k",
      "k",
      "",
      "~/k",
      "/a b",
      "/a\nHost *",
      "/a\tb",
      "/a%h",
      "/a${b}",
      "/a'b",
      '/a"b',
      "/a#b",
      "/a;b",
      "/a\\b",
      "/a[b]",
      "/a(b)",
    ],
    ...[
      "/a*",
      "/a?",
      "/a|b",
      "/a`b`",
      "/a^b",
      "/a!b",
      "/a<b",
      "/a&b",
      "/a~b",
      "/a+b@c:d=e,f-g_h.i",
      "/jürgen/漢字/é",
      "/a\u007f",
      "/a\u0001",
    ],
    ...[
      "/a\u202eb",
      "/a\u200bb",
      "/a\u00a0b",
      "/a\u3000b",
      "/a\u2028b",
      "/a\ufeffb",
      "/a\u00adb",
      "/a\u0085b",
      `/${"a".repeat(1023)}`,
      `/${"a".repeat(1024)}`,
      1,
    ],
  ],
  maxJobs: [0, -1, 1, 2 ** 31 - 1, 2 ** 31, 1.5, "1", null],
  speedFactor: [0, -1, 1, 2 ** 31 - 1, 2 ** 31, 0.5, "1", null],
  supportedFeatures: [
    [],
    ["-"],
    ["kvm"],
    ["kvm", "kvm"],
    ["a b"],
    ["a,b"],
    ["a;b"],
    [""],
    [1],
    "kvm",
    null,
    ["a".repeat(101)],
    ["a\n"],
  ],
  mandatoryFeatures: [[], ["-"], ["a\nb"], ["x"], ["x", "x"], ["kvm"], "kvm", null],
  publicHostKey: [
    ...[
      "",
      "AAAA",
      "AAAA AAAA",
      line,
      base64(`${line}\n`),
      base64(`${line} me@here`),
      base64(`${line}\n@cert-authority x86 ${line}`),
    ],
    ...[
      base64(`${line}\nx86 ${line}`),
      base64(`@cert-authority * ${line}`),
      base64(`x86 ${line}`),
      base64(line.replace("ssh-ed25519", "ssh-rsa")),
    ],
    ...[
      base64(line.replace(" ", "  ")),
      base64(line.replace(" ", "\t")),
      base64(` ${line}`),
      base64(line.slice(0, -4)),
      base64("ssh-ed25519"),
    ],
    ...[
      `${base64(line)}=`,
      base64(line).replace(/=*$/, ""),
      `${base64(line)}\n`,
      cut(blob.subarray(0, -1)),
      cut(Buffer.concat([blob, Buffer.from([0])])),
    ],
    ...[
      cut(blob.subarray(0, 15)),
      cut(blob.subarray(0, 3)),
      base64(`ssh-dss ${line.split(" ")[1] ?? ""}`),
      base64(line.replace(/.$/, "=")),
      base64("é"),
    ],
    ...[
      keyOfType("rsa", "-b", "4096"),
      keyOfType("ecdsa", "-b", "256"),
      keyOfType("ecdsa", "-b", "384"),
      keyOfType("ecdsa", "-b", "521"),
    ],
    ...[ed25519(new Uint8Array(32)), "A".repeat(8192), "A".repeat(100_000), 1, null],
  ],
  madeUp: [1, "x", null],
  trustedUsers: [["root"]],
};

describe("what the program writes the module takes, and nothing else", () => {
  const rows = Object.entries(values).flatMap(([field, some]) =>
    some.map((value) => ({ field, value, fleet: [{ ...x86, [field]: value }] })),
  );

  test("value by value of each field", () => {
    const answers = taken(rows.map(({ fleet }) => fleet));
    const wrong = rows.filter(({ fleet }, index) => answers[index] !== writable(fleet));
    // An IPv6 address spelled at length is the one difference: no harm, and Nix has nothing to shorten it with.
    expect(wrong.map(({ field, value }) => `${field} = ${JSON.stringify(value)}`)).toEqual([
      'hostName = "1:2:3:4:5:6::8"',
    ]);
    expect(answers.filter(Boolean).length).toBeGreaterThan(30);
    expect(answers.filter((one) => !one).length).toBeGreaterThan(120);
  });

  test("builder with builder: names that mean two of them, fields that lack", () => {
    const arm = { ...x86, alias: "arm", hostName: "127.0.0.2" };
    const without = Object.keys(x86).map((field) => {
      return [Object.fromEntries(Object.entries(x86).filter(([name]) => name !== field))];
    });
    const fleetsOfTwo: unknown[] = [
      [x86, arm],
      [x86, x86],
      [x86, { ...arm, alias: "x86" }],
      [x86, { ...arm, hostName: "x86" }],
      [{ ...x86, hostName: "arm" }, arm],
      [{ ...x86, hostName: "x86" }, arm],
      [],
    ];
    const all = [...fleetsOfTwo, ...without];
    expect(taken(all)).toEqual(all.map(writable));
    expect(taken(all).filter(Boolean)).toHaveLength(3);
    expect(taken([{}, "x", null, [1], [[]]])).toEqual([false, false, false, false, false]);
  });

  test("generated: fleets as they are, and with one field made of another's or of anything", () => {
    const fields = Object.keys(values);
    const anything = fc.oneof(
      fc.constantFrom(...Object.values(values).flat()),
      fc.string({ maxLength: 12 }),
      fc.integer(),
      fc.constantFrom(null, true, [null], [true], {}),
      fc.array(fc.string({ maxLength: 5 }), { maxLength: 2 }),
      fc.stringMatching(/^[a-z0-9.:-]{0,20}$/),
      fc.stringMatching(/^\/[ -~]{0,9}$/),
      fc.ipV4(),
      fc.ipV6(),
      fc.uint8Array({ minLength: 30, maxLength: 33 }).map((bytes) => {
        return base64(`ssh-ed25519 ${Buffer.concat([blob.subarray(0, 19), bytes]).toString("base64")}`);
      }),
    );
    const changed = fc
      .tuple(fleets(3), fc.nat(), fc.constantFrom(...fields), anything)
      .map(([fleet, at, field, value]): unknown[] => {
        const index = fleet.length === 0 ? 0 : at % fleet.length;
        return fleet.map((machine, i) => (i === index ? { ...machine, [field]: value } : machine));
      });
    const samples: unknown[][] = [
      ...fc.sample(fleets(4), { numRuns: 100, seed: 12 }),
      ...fc.sample(changed, { numRuns: 900, seed: 12 }),
    ];
    const answers = taken(samples);
    const wrong = samples.filter((fleet, index) => {
      // See above.
      const respelled = fleet.some((machine) => {
        const { hostName } = machine as BuildMachine;
        return isIPv6(hostName) && !writable([{ ...x86, hostName }]);
      });
      return !respelled && answers[index] !== writable(fleet);
    });
    expect(wrong).toEqual([]);
    expect(answers.filter(Boolean).length).toBeGreaterThan(150);
    expect(answers.filter((one) => !one).length).toBeGreaterThan(400);
  });
});

test("a loopback fleet is configured as the written module does it", () => {
  using directory = temporaryDirectory();
  for (const hostName of ["127.0.0.1", "::1", "localhost", "a.localhost", "example.org"]) {
    writeFileSync(`${directory.path}/fleet.json`, JSON.stringify([{ ...x86, hostName }]));
    const [own, written] = evaluate(`
      let lib = import ${stubs}/lib.nix; in
      map (modules: (lib.evalModules { modules = [ ${stubs}/nixos.nix ] ++ modules; }).programs) [
        [ ${clientModule} { nix.builderFleet.file = ${directory.path}/fleet.json; } ]
        [ (${renderNixosModule([{ ...x86, hostName }])}) ]
      ]
    `) as unknown[];
    expect(own).toEqual(written);
  }
});

test.each(["k", "/a b", "/k\nHost *", "-oProxyCommand=x"])("the option sshKey = %j is refused, too", (sshKey) => {
  using directory = temporaryDirectory();
  writeFileSync(`${directory.path}/fleet.json`, JSON.stringify([x86]));
  const settings = renderNix({ file: `${directory.path}/fleet.json`, sshKey });
  expect(() =>
    evaluate(
      `(import ${stubs}/lib.nix).evalModules { modules = [ ${stubs}/nixos.nix ${clientModule} { nix.builderFleet = ${settings}; } ]; }`,
    ),
  ).toThrow("nix.builderFleet.sshKey is ");
});
