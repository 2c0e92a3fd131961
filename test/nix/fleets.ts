/** Generated fleets: whatever the model allows, odd names, ports, addresses and lists included. */
import fc from "fast-check";
import { checkBuildMachine, type BuildMachine } from "../../src/nix/buildMachine.ts";
import { toPublicHostKey } from "../../src/ssh/hostKey.ts";

/** A builder as a person has it in mind, for tests that change one field. */
export const x86: BuildMachine = {
  alias: "x86",
  hostName: "127.0.0.1",
  port: 2201,
  protocol: "ssh-ng",
  systems: ["x86_64-linux"],
  sshUser: "nix-builder",
  maxJobs: 4,
  speedFactor: 2,
  supportedFeatures: ["big-parallel", "kvm"],
  mandatoryFeatures: [],
  publicHostKey: ed25519(new Uint8Array(32).fill(7)),
};

/** A public host key of these 32 bytes. No private key belongs to it, which no reader can know. */
export function ed25519(bytes: Uint8Array): string {
  const field = (data: Uint8Array) => Buffer.concat([Buffer.from([0, 0, 0, data.length]), data]);
  const blob = Buffer.concat([field(Buffer.from("ssh-ed25519")), field(bytes)]);
  return toPublicHostKey(`ssh-ed25519 ${blob.toString("base64")}`);
}

const letters = "abcdefghijklmnopqrstuvwxyz";
const word = (first: string, rest: string, maxLength: number) =>
  fc
    .tuple(fc.constantFrom(...Array.from(first)), fc.string({ unit: fc.constantFrom(...Array.from(rest)), maxLength }))
    .map(([head, tail]) => head + tail);

const digits = "0123456789";
const alias = word(letters, `${letters}${digits}-`, 62).filter((name) => name !== "localhost" && !name.endsWith("-"));
const dnsName = fc
  .array(word(letters, `${letters}${digits}`, 12), { minLength: 2, maxLength: 4 })
  .map((labels) => labels.join("."));
const feature = word(letters + digits, `${letters}${digits}._+:-`, 20);
const features = fc.uniqueArray(feature, { maxLength: 4 });
const system = fc.constantFrom("x86_64-linux", "aarch64-linux", "i686-linux", "aarch64-darwin", "riscv64-linux");
const path = fc
  .array(word(`${letters}.é`, `${letters}${digits}._+@:=,-ü`, 12), { minLength: 1, maxLength: 5 })
  .map((names) => `/${names.join("/")}`);

/** One builder in canonical form. */
const buildMachine: fc.Arbitrary<BuildMachine> = fc
  .record(
    {
      alias,
      hostName: fc.oneof(dnsName, fc.ipV4(), fc.ipV6()),
      port: fc.oneof(fc.constant(22), fc.integer({ min: 1, max: 65535 })),
      protocol: fc.constantFrom("ssh-ng", "ssh"),
      systems: fc.uniqueArray(system, { minLength: 1, maxLength: 3 }),
      sshUser: word(`${letters}_`, `${letters}${digits}_.-`, 31),
      sshKey: path,
      maxJobs: fc.integer({ min: 1, max: 1000 }),
      speedFactor: fc.integer({ min: 1, max: 1000 }),
      supportedFeatures: features,
      mandatoryFeatures: features,
      publicHostKey: fc.uint8Array({ minLength: 32, maxLength: 32 }).map(ed25519),
    },
    {
      requiredKeys: [
        "alias",
        "hostName",
        "port",
        "protocol",
        "systems",
        "sshUser",
        "maxJobs",
        "speedFactor",
        "supportedFeatures",
        "mandatoryFeatures",
        "publicHostKey",
      ],
    },
  )
  .map((machine) => checkBuildMachine(machine as BuildMachine));

/** A fleet of up to `maxLength` builders, the empty one included. */
export function fleets(maxLength = 5): fc.Arbitrary<BuildMachine[]> {
  return fc.uniqueArray(buildMachine, { maxLength, selector: (machine) => machine.alias });
}

/** A directory of a client that every form can express. */
export const directories = path;
