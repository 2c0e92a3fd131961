import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { hostname, tmpdir } from "node:os";
import { afterEach, expect, it } from "vitest";
import { dropStaleLocks } from "../../tools/staleLocks.ts";

const state = mkdtempSync(`${tmpdir()}/fleet-locks-`);
const locks = `${state}/.pulumi/locks/organization/nix-builder-fleet/dev`;
const write = (name: string, lock: unknown) => {
  mkdirSync(locks, { recursive: true });
  writeFileSync(`${locks}/${name}.json`, typeof lock === "string" ? lock : JSON.stringify(lock));
};
afterEach(() => {
  rmSync(state, { recursive: true, force: true });
});

/** Above any pid that Linux gives out. */
const nobody = 2 ** 22 + 1;

it("drops the lock of a process that has ended, and of one whose number another program has now", () => {
  write("dead", { pid: nobody, hostname: hostname() });
  write("reused", { pid: 1, hostname: hostname() });
  expect(dropStaleLocks(`file://${state}`).sort((a, b) => a - b)).toEqual([1, nobody]);
  expect(readdirSync(locks)).toEqual([]);
});

it("removes attributes that a killed process had half written, and no others", () => {
  const stacks = `${state}/.pulumi/stacks/nix-builder-fleet`;
  mkdirSync(stacks, { recursive: true });
  writeFileSync(`${stacks}/dev.json`, "");
  writeFileSync(`${stacks}/dev.json.attrs`, "");
  writeFileSync(`${stacks}/dev.json.bak.attrs`, '{"user.cache_control":"","md5"');
  writeFileSync(`${stacks}/prod.json.attrs`, '{"md5":"x"}\n');
  dropStaleLocks(`file://${state}`);
  expect(readdirSync(stacks)).toHaveLength(4);
  write("dead", { pid: nobody, hostname: hostname() });
  dropStaleLocks(`file://${state}`);
  expect(readdirSync(stacks)).toEqual(["dev.json", "prod.json.attrs"]);
});

it("keeps the lock of another machine, of what it can't read, and of a backend that is no folder", () => {
  write("elsewhere", { pid: nobody, hostname: "another-machine" });
  write("nonsense", "{");
  expect(dropStaleLocks(`file://${state}`)).toEqual([]);
  expect(readdirSync(locks)).toHaveLength(2);
  expect(dropStaleLocks("s3://bucket")).toEqual([]);
  expect(dropStaleLocks(undefined)).toEqual([]);
});
