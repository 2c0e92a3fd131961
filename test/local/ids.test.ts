import { chmodSync, chownSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { describe, expect, it, onTestFinished } from "vitest";
import { accountFiles, containerIds, groupMap, idRangeFor, kvmGroup, userMap } from "../../src/local/ids.ts";

const wholeHost = "         0          0 4294967295\n";

/** A builder's folder whose store belongs to `owner`. */
function builderOf(owner?: number): string {
  const directory = mkdtempSync(`${tmpdir()}/fleet-ids-`);
  onTestFinished(() => {
    rmSync(directory, { recursive: true });
  });
  if (owner !== undefined) {
    mkdirSync(`${directory}/root`);
    chownSync(`${directory}/root`, owner, owner);
  }
  return directory;
}

describe("the host's ids for a container", () => {
  it("are of the range that systemd's table calls unused, and the same each time", () => {
    const directory = builderOf();
    const { first, count } = idRangeFor(directory, wholeHost, "");
    expect(first).toBeGreaterThanOrEqual(1_879_048_192);
    expect(first + count).toBeLessThanOrEqual(2_147_352_576);
    expect(idRangeFor(directory, wholeHost, "")).toEqual({ first, count });
  });

  it("leave out accounts, and ranges that users were given", () => {
    const directory = builderOf();
    const { first, count } = idRangeFor(directory, wholeHost, "");
    const account = idRangeFor(directory, wholeHost, `somebody:x:${first + 5}:100::/:/bin/sh`);
    expect(account.first === first).toBe(false);
    const range = idRangeFor(directory, wholeHost, `somebody:${first - 1000}:${1000 + count}`);
    expect(range.first >= first && range.first < first + count).toBe(false);
  });

  it("lie in what root of a container can give", () => {
    const { first, count } = idRangeFor(builderOf(), "0 100000 65536\n", "");
    expect(first).toBeGreaterThanOrEqual(32_768);
    expect(first + count).toBeLessThanOrEqual(65_536);
    expect(() => idRangeFor(builderOf(), "0 1000 1\n", "")).toThrow("no 256 user ids in a row");
  });

  it.runIf(process.getuid?.() === 0)("stay those that the store has, unless they are an account's", () => {
    expect(idRangeFor(builderOf(1_879_099_904), wholeHost, "").first).toBe(1_879_099_904);
    for (const owner of [0, 1000]) {
      expect(idRangeFor(builderOf(owner), wholeHost, "").first).toBeGreaterThan(1_000_000_000);
    }
  });

  it.runIf(process.getuid?.() === 0)(
    "are no other container's, whomever of its users root of the container gives the store to",
    () => {
      const directory = builderOf();
      const own = idRangeFor(directory, wholeHost, "");
      mkdirSync(`${directory}/root`);
      for (const user of [1, 100, 255]) {
        chownSync(`${directory}/root`, own.first + user, own.first);
        expect(idRangeFor(directory, wholeHost, "")).toEqual(own);
      }
    },
  );
});

describe("the maps of a container", () => {
  const ids = { first: 5000, count: 256 };
  it("give it ids in a row", () => {
    expect(userMap(ids)).toBe("0 5000 256\n");
    expect(groupMap(ids, undefined)).toBe("0 5000 256\n");
  });

  it("have one place for the host's group of /dev/kvm, which build users are in", () => {
    const lines = groupMap(ids, 36)
      .trim()
      .split("\n")
      .map((line) => line.split(" ").map(Number));
    expect(lines).toContainEqual([containerIds.kvmGroup, 36, 1]);
    expect(lines.reduce((sum, [, , count = 0]) => sum + count, 0)).toBe(256);
    expect(accountFiles(true).group).toMatch(/^kvm:x:99:nixbld1,/m);
  });

  it.runIf(process.getuid?.() === 0)("need it only where not everybody may use the device", () => {
    const device = `${builderOf()}/kvm`;
    expect(kvmGroup(device)).toBeUndefined();
    writeFileSync(device, "");
    for (const [mode, wanted] of [
      [0o666, false],
      [0o660, true],
      [0o600, false],
    ] as const) {
      chmodSync(device, mode);
      chownSync(device, 0, 36);
      expect(kvmGroup(device) !== undefined, mode.toString(8)).toBe(wanted);
    }
  });
});
