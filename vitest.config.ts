import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    reporters: [process.stdout.isTTY ? "default" : ["default", { summary: false }], "./test/support/reporter.ts"],
    projects: [
      {
        extends: true,
        test: {
          name: "parts",
          include: ["test/**/*.test.ts"],
          exclude: ["test/engine/**", "test/faults/**"],
          testTimeout: 60_000,
          hookTimeout: 60_000,
          sequence: { groupOrder: 0 },
        },
      },
      {
        extends: true,
        test: {
          // Each runs the real CLI and whole builders: one after the other, after all that is quick.
          name: "engine",
          include: ["test/engine/**/*.test.ts", "test/faults/**/*.test.ts"],
          exclude: ["test/engine/aws.test.ts", "test/engine/vm.test.ts"],
          fileParallelism: false,
          testTimeout: 5 * 60_000,
          hookTimeout: 5 * 60_000,
          sequence: { groupOrder: 1 },
        },
      },
      {
        extends: true,
        test: {
          // `npm run test:aws`: its plugin takes minutes to build where it can't be downloaded.
          name: "aws",
          include: ["test/engine/aws.test.ts"],
          maxConcurrency: 3,
          testTimeout: 5 * 60_000,
          hookTimeout: 5 * 60_000,
          sequence: { groupOrder: 2 },
        },
      },
      {
        extends: true,
        test: {
          // `npm run test:vm`: makes a disk image, and boots it without hardware virtualization.
          name: "vm",
          include: ["test/engine/vm.test.ts"],
          testTimeout: 5 * 60_000,
          hookTimeout: 40 * 60_000,
          sequence: { groupOrder: 3 },
        },
      },
    ],
  },
});
