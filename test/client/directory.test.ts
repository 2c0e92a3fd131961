import { existsSync, mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { afterEach, beforeEach, expect, it } from "vitest";
import { writeClientDirectory } from "../../src/client/directory.ts";

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(`${tmpdir()}/fleet-directory-`);
});
afterEach(() => {
  rmSync(directory, { recursive: true });
});

it("is made with all folders above it, the key for its owner's eyes only", () => {
  writeClientDirectory(`${directory}/a/b`, { machines: "", id_ed25519: "key\n" });
  expect(statSync(`${directory}/a/b/id_ed25519`).mode & 0o777).toBe(0o600);
  expect(statSync(`${directory}/a/b/machines`).mode & 0o777).toBe(0o644);
});

it("ends at once where no folder can be made", () => {
  expect(() => {
    writeClientDirectory("/proc/nope/deeper", { machines: "" });
  }).toThrow("no such file or directory, mkdir '/proc/nope'");
  writeClientDirectory(directory, { file: "" });
  expect(() => {
    writeClientDirectory(`${directory}/file/deeper`, { machines: "" });
  }).toThrow(/mkdir/);
  expect(existsSync(`${directory}/machines`)).toBe(false);
});
