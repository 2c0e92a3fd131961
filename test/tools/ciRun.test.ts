/** `.ci/run`: that what it runs first can't hide what it runs last. With an npm that says what it is asked. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { afterAll, expect, it } from "vitest";
import { checkout } from "../../tools/launch.mjs";

const directory = mkdtempSync(join(tmpdir(), "ci-run-test-"));
afterAll(() => {
  rmSync(directory, { recursive: true, force: true });
});

it.each([
  ["nothing", 0],
  ["run test:aws", 1],
  ["test", 1],
])("runs everything, `npm test` last, and tells if %s failed", (failing, code) => {
  const script = `#!/bin/sh\necho "$*"\ncase "$*" in "${failing} "*) exit 7 ;; esac\n`;
  writeFileSync(join(directory, "npm"), script, { mode: 0o755 });
  const env = { ...process.env, PATH: [directory, process.env["PATH"]].join(delimiter) };
  const { status, stdout, stderr } = spawnSync(join(checkout, ".ci", "run"), {
    env,
    encoding: "utf8",
    timeout: 10_000,
  });
  expect(stdout.split("\n").map((line) => line.replace(" --loglevel=silent", ""))).toEqual([
    "run test:aws",
    "test",
    "",
  ]);
  expect(status).toBe(code);
  expect(stderr).toMatch(/^Not run here: `nix flake check`, .* needs nixpkgs, .*systems\.yml runs it on GitHub\.\n$/);
});
