/** What a builder's settings are when nobody sets them. */
import { expect, it } from "vitest";
import { defaultsFor } from "../../src/bootstrap/defaults.ts";

const GiB = 1024;

it.each([
  [
    "a large machine",
    { cpus: 16, memoryMiB: 64 * GiB, diskMiB: 500 * GiB, diskFreeMiB: 480 * GiB },
    16,
    2,
    16,
    20 * GiB,
  ],
  ["little memory", { cpus: 8, memoryMiB: 4 * GiB, diskMiB: 100 * GiB, diskFreeMiB: 90 * GiB }, 2, 8, 8, 10 * GiB],
  [
    "the smallest cloud server",
    { cpus: 1, memoryMiB: 950, diskMiB: 20 * GiB, diskFreeMiB: 16 * GiB },
    1,
    1,
    1,
    2 * GiB,
  ],
  ["a nearly full disk", { cpus: 2, memoryMiB: 4 * GiB, diskMiB: 100 * GiB, diskFreeMiB: 4 * GiB }, 2, 2, 2, 2 * GiB],
])("%s", (_, size, maxJobs, cores, speedFactor, minFreeMiB) => {
  expect(defaultsFor(size)).toEqual({ maxJobs, cores, speedFactor, minFreeMiB, maxFreeMiB: minFreeMiB * 2.5 });
});

it("gives an emulated builder the lowest speedFactor", () => {
  expect(defaultsFor({ cpus: 16, memoryMiB: 64 * GiB, diskMiB: GiB, diskFreeMiB: GiB }, true).speedFactor).toBe(1);
});
