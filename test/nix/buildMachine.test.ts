import { describe, expect, test } from "vitest";
import { checkBuildMachine, checkBuildMachines, type BuildMachine } from "../../src/nix/buildMachine.ts";
import { InvalidValue } from "../../src/nix/invalidValue.ts";
import { x86 } from "./fleets.ts";

/** Text that would end or begin something in one of the languages that the strings go into. */
const breakers = [
  "",
  "-",
  " ",
  "a b",
  "a\tb",
  "a\nb",
  "a\r\nb",
  "a;b",
  "a#b",
  "a,b",
  'a"b',
  "a'b",
  "a''b",
  "${a}",
  "a${b}c",
  "$(a)",
  "`a`",
  "a\\b",
  "a|b",
  "a&b",
  "a*",
  "a?",
  "!a",
  "%h",
  "a>b",
  "a{b",
  "a\0b",
];

describe("strings that would break out of a file are refused", () => {
  const fields: [string, (text: string) => Partial<BuildMachine>][] = [
    ["alias", (text) => ({ alias: text })],
    ["hostName", (text) => ({ hostName: text })],
    ["systems", (text) => ({ systems: ["x86_64-linux", text] })],
    ["sshUser", (text) => ({ sshUser: text })],
    ["sshKey", (text) => ({ sshKey: text })],
    ["sshKey", (text) => ({ sshKey: `/key${text === "" || text === "a,b" || text === "-" ? " " : text}` })],
    ["supportedFeatures", (text) => ({ supportedFeatures: ["kvm", text] })],
    ["mandatoryFeatures", (text) => ({ mandatoryFeatures: [text] })],
    ["publicHostKey", (text) => ({ publicHostKey: text })],
    ["publicHostKey", (text) => ({ publicHostKey: x86.publicHostKey + text + " " })],
    ["protocol", (text) => ({ protocol: text as "ssh" })],
  ];
  test.each(fields)("in %s", (field, change) => {
    for (const text of breakers) {
      const broken = { ...x86, ...change(text) };
      expect(() => checkBuildMachine(broken, "x"), JSON.stringify(text)).toThrow(
        expect.objectContaining({ name: "InvalidValue", field: `x.${field}` }) as Error,
      );
    }
  });
});

test.each<[string, Partial<BuildMachine>]>([
  ["an alias that Nix would run without ssh", { alias: "localhost" }],
  ["an alias in upper case", { alias: "X86" }],
  ["an alias that starts with a digit", { alias: "86" }],
  ["an alias that ends with a hyphen", { alias: "x86-" }],
  ["an alias of 64 characters", { alias: "a".repeat(64) }],
  ["an IPv6 address in brackets", { hostName: "[::1]" }],
  ["an IPv6 address with a zone", { hostName: "fe80::1%eth0" }],
  ["an address that is none", { hostName: "256.0.0.1" }],
  ["a name that ssh would take for an option", { hostName: "-oProxyCommand=x" }],
  ["no system", { systems: [] }],
  ["port 0", { port: 0 }],
  ["port 65536", { port: 65536 }],
  ["maxJobs 0", { maxJobs: 0 }],
  ["maxJobs -1", { maxJobs: -1 }],
  ["maxJobs 1.5", { maxJobs: 1.5 }],
  ["maxJobs NaN", { maxJobs: NaN }],
  ["speedFactor 0", { speedFactor: 0 }],
  ["speedFactor 0.5, which Nix up to 2.18 can't parse", { speedFactor: 0.5 }],
  ["a relative path of a key", { sshKey: "id_ed25519" }],
  ["a home directory's short form", { sshKey: "~/.ssh/id" }],
  ["a second line in the host key", { publicHostKey: Buffer.from(`ssh-ed25519 A\n* x`).toString("base64") }],
])("%s is refused", (_, change) => {
  expect(() => checkBuildMachine({ ...x86, ...change })).toThrow(InvalidValue);
});

test("the error names the field, the value and what is allowed, in one sentence", () => {
  expect(() => checkBuildMachine({ ...x86, maxJobs: 0 }, "builders.x86")).toThrow(
    "builders.x86.maxJobs is 0, but allowed is a whole number from 1 to 2147483647.",
  );
});

test("features are a set, and mandatory ones aren't repeated among the supported ones", () => {
  const machine = { ...x86, supportedFeatures: ["kvm", "kvm", "gpu"], mandatoryFeatures: ["gpu", "gpu"] };
  expect(checkBuildMachine(machine)).toMatchObject({ supportedFeatures: ["kvm"], mandatoryFeatures: ["gpu"] });
});

test.each([
  ["Builder.Example.ORG", "builder.example.org"],
  ["2001:DB8:0:0:1:0:0:1", "2001:db8::1:0:0:1"],
  ["10.0.0.1", "10.0.0.1"],
  ["my_host", "my_host"],
])("the address %s is the one that ssh looks up: %s", (hostName, lookedUp) => {
  expect(checkBuildMachine({ ...x86, hostName }).hostName).toBe(lookedUp);
});

test("a host key's comment is no part of the pin", () => {
  const line = Buffer.from(x86.publicHostKey, "base64").toString();
  const withComment = Buffer.from(`${line} root@x86\n`).toString("base64");
  expect(checkBuildMachine({ ...x86, publicHostKey: withComment }).publicHostKey).toBe(x86.publicHostKey);
});

test("no name stands for two builders", () => {
  expect(() => checkBuildMachines([x86, { ...x86, port: 1 }])).toThrow(
    /alias is "x86", but allowed is a name that no other/,
  );
  expect(() => checkBuildMachines([x86, { ...x86, alias: "arm", hostName: "X86" }])).toThrow(/arm.hostName is "x86"/);
});
