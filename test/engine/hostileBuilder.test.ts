/** A builder that means harm, measured by the real engine and plugin: `up` ends, in words, and goes on once the builder is well. */
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { afterAll, beforeAll, expect, test } from "vitest";
import { attack, forbidden } from "../support/hostileText.ts";
import { print } from "../support/hostileBuilder.ts";
import { TestDeployment } from "../support/engine.ts";
import { machineDirectory } from "../../src/local/plan.ts";
import { systemOfThisMachine } from "../../src/nix/system.ts";

let deployment: TestDeployment;
let directory: string;

beforeAll(async () => {
  deployment = await TestDeployment.create({
    builders: [{ name: "evil", provider: "local", system: systemOfThisMachine() }],
  });
  expect((await deployment.up()).output).not.toContain("error:");
  directory = machineDirectory(deployment.directory, "evil");
});
afterAll(() => deployment.remove());

/** What its sshd answers whoever logs in from now on; `undefined`: what a builder does. */
function answer(script: string | undefined): void {
  const path = `${directory}/sshd_config`;
  const config = readFileSync(path, "utf8").replace(/^ForceCommand .*\n/m, "");
  if (script !== undefined) writeFileSync(`${directory}/answer`, `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  writeFileSync(path, script === undefined ? config : `ForceCommand ${directory}/answer\n${config}`);
  execFileSync("kill", ["-HUP", readFileSync(`${directory}/sshd.pid`, "utf8").trim()]);
}

function measureAgain() {
  return deployment.pulumi("up", "--yes", "--skip-preview", "--suppress-progress", "--replace", "**::evil-measurement");
}

test.each([
  ["sends without end", "exec yes", "builder 'evil' was cut off while it was measured: it sent more than 64 KiB"],
  ["never ends", "exec sleep 600", "builder 'evil' was cut off while it was measured: it was not done within 60 s"],
  ["says what would take over a terminal", `cat >/dev/null; ${print(attack)}; exit 1`, 'running "sh -s":'],
  [
    "measures as what would",
    `echo 'bootId = b'; ${print(attack)}; exit 0`,
    "the builder was measured without a value for arch",
  ],
])("a builder that %s", { timeout: 200_000 }, async (_, script, sentence) => {
  answer(script);
  const started = Date.now();
  const { exitCode, output } = await measureAgain();
  expect(exitCode).not.toBe(0);
  expect(output).toContain(sentence);
  expect(output.length).toBeLessThan(20_000);
  expect(forbidden(output)).toEqual([]);
  expect(Date.now() - started).toBeLessThan(120_000);
});

test("is measured once it is well, and then nothing changes any more", async () => {
  answer(undefined);
  expect((await measureAgain()).exitCode).toBe(0);
  const preview = await deployment.pulumi("preview", "--expect-no-changes");
  expect(preview.output).not.toContain("error:");
  expect(preview.exitCode).toBe(0);
});
