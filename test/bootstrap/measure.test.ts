/** The measurement script, run by a real shell: what it refuses, and what is read from what it prints. */
import { execFileSync, spawnSync } from "node:child_process";
import { chmodSync, mkdirSync, writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { describe, expect, it } from "vitest";
import {
  measuredUsers,
  measureScript,
  parseMeasurement,
  type Declared,
  type Peculiarities,
} from "../../src/bootstrap/measure.ts";
import { temporaryDirectory } from "../nix/realNix.ts";

const arch = execFileSync("uname", ["-m"], { encoding: "utf8" }).trim();
const [system, otherSystem] =
  arch === "x86_64" ? (["x86_64-linux", "aarch64-linux"] as const) : (["aarch64-linux", "x86_64-linux"] as const);
const declared: Declared = {
  name: "b",
  system,
  features: ["big-parallel"],
  users: [{ user: "nobody", trusted: true }],
};
const untrusting: Declared = { ...declared, users: [{ user: "nobody", trusted: false }] };

/** Clients write to its store themselves, so that trust is no question. */
const own: Peculiarities = { ownStore: "/" };

const sound: Readonly<Record<string, string>> = {
  system,
  "extra-platforms": "",
  "system-features": "big-parallel benchmark",
  sandbox: "true",
  "trusted-users": "root nobody",
  cores: "0",
  "min-free": "0",
  "max-free": "1",
};

/** Runs the script on a machine whose Nix has these settings; `undefined`: it has no Nix. */
function measure(
  settings: Readonly<Record<string, string>> | undefined,
  of = declared,
  peculiarities: Peculiarities = own,
) {
  using directory = temporaryDirectory();
  const path = `${directory.path}/bin`;
  mkdirSync(path);
  const lines = Object.entries({ ...settings }).map(([name, value]) => `${name} = ${value}`);
  if (settings !== undefined) {
    writeFileSync(
      `${path}/nix`,
      `#!/bin/sh\n[ "$1" = --version ] && { echo 'nix (Nix) 2.8.0'; exit; }\ncat <<'END'\n${lines.join("\n")}\nEND\n`,
    );
    chmodSync(`${path}/nix`, 0o755);
  }
  for (const program of ["sh", "cat", "sed", "uname", "nproc", "df", "id"]) {
    writeFileSync(`${path}/${program}`, `#!/bin/sh\nPATH=/usr/bin:/bin exec ${program} "$@"\n`);
    chmodSync(`${path}/${program}`, 0o755);
  }
  return spawnSync("/bin/sh", ["-s"], {
    input: measureScript(of, peculiarities),
    env: { PATH: path },
    encoding: "utf8",
  });
}

describe("a machine that is what it was declared to be", () => {
  it("is measured", () => {
    const { status, stdout, stderr } = measure(sound);
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    expect(parseMeasurement(stdout)).toMatchObject({
      arch,
      cpus: availableParallelism(),
      nixVersion: "2.8.0",
      nixSystems: [system],
      nixFeatures: ["big-parallel", "benchmark"],
      sandbox: "true",
    });
    const { memoryMiB, diskMiB, diskFreeMiB } = parseMeasurement(stdout);
    expect(Math.min(memoryMiB, diskMiB, diskFreeMiB)).toBeGreaterThan(10);
  });

  it("may be emulated where that is known", () => {
    const settings = { ...sound, "extra-platforms": otherSystem };
    expect(measure(settings, { ...declared, system: otherSystem }, { ...own, emulated: true }).status).toBe(0);
  });
});

describe("a machine that isn't is refused, in words", () => {
  it.each([
    ["no Nix", undefined, declared, own, "finds no Nix"],
    [
      "another system",
      sound,
      { ...declared, system: otherSystem },
      { ...own, emulated: true },
      `not for ${otherSystem}`,
    ],
    [
      "another architecture",
      { ...sound, "extra-platforms": otherSystem },
      { ...declared, system: otherSystem },
      own,
      arch,
    ],
    ["a missing feature", sound, { ...declared, features: ["nixos-test"] }, own, "doesn't have the feature nixos-test"],
    [
      "kvm in an emulation",
      { ...sound, "system-features": "kvm" },
      { ...declared, features: ["kvm"] },
      { ...own, emulated: true },
      "emulated",
    ],
    ["no sandbox", { ...sound, sandbox: "false" }, declared, own, "without a sandbox"],
    ["an untrusted user", { ...sound, "trusted-users": "root" }, declared, {}, "does not trust the user nobody"],
    ["a trusted user who isn't to be", sound, untrusting, {}, "trusts the user nobody (`trusted-users = root nobody`)"],
    ["trust in everybody", { ...sound, "trusted-users": "*" }, untrusting, {}, "would be root there"],
    ["trust in a group of the user", { ...sound, "trusted-users": "@nogroup" }, untrusting, {}, "would be root there"],
  ] as const)("%s", (_, settings, of, peculiarities, sentence) => {
    const { status, stdout, stderr } = measure(settings, of, peculiarities);
    expect(status).toBe(1);
    expect(stdout).toBe("");
    expect(stderr).toContain("builder 'b': ");
    expect(stderr).toContain(sentence);
  });

  it("names everything that is wrong at once", () => {
    const { stderr } = measure({ ...sound, sandbox: "false", "system-features": "" });
    expect(stderr.trim().split("\n")).toHaveLength(2);
  });
});

it("takes no user for one of both kinds", () => {
  const shared = { none: "u", signed: "u", full: "u" };
  expect(measuredUsers(shared, ["none", "full"])).toEqual([]);
  const own = { none: "u", signed: "u", full: "t" };
  expect(measuredUsers(own, ["none", "signed"])).toEqual([{ user: "u", trusted: false }]);
  expect(measuredUsers(own, ["full", "none"])).toEqual([
    { user: "t", trusted: true },
    { user: "u", trusted: false },
  ]);
  expect(measure({ ...sound, "trusted-users": "root" }, untrusting, {}).stderr).toBe("");
});

it.each(["root nobody", "@nogroup", "*"])("takes trusted-users = %s as trust in nobody", (trusted) => {
  const settings = { ...sound, "trusted-users": trusted };
  expect(measure(settings, declared, {}).stderr).not.toContain("trust");
});
