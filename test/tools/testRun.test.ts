/** `npm test -- ARGS` counts what ran, whatever the arguments are. */
import { join } from "node:path";
import { execa } from "execa";
import { expect, it } from "vitest";
import { checkout } from "../../tools/launch.mjs";
import { cleanEnvironment } from "../support/checkoutCopy.ts";

/** This test's own vitest leaves variables that another one would take for its own. */
const env = Object.fromEntries(
  Object.entries(cleanEnvironment(process.env)).filter(([name]) => !/^(VITEST|FLEET_TEST|NODE_ENV$|TEST$)/.test(name)),
);

it.each([[[]], [["--reporter=verbose"]], [["--reporter", "dot"]], [["--reporter=dot", "--reporter=verbose"]]])(
  "with %j",
  async (args) => {
    const words = ["test", "--project", "parts", "test/hcloud/schema.test.ts", "-t", "system", ...args];
    const { exitCode, stdout, stderr } = await execa(process.execPath, [join(checkout, "tools/run.mjs"), ...words], {
      cwd: checkout,
      env,
      extendEnv: false,
      reject: false,
    });
    const [, passed, failed] = /^(\d+) passed, (\d+) failed, \d+ skipped$/.exec(stdout.split("\n").at(-1) ?? "") ?? [];
    expect(Number(passed), `${stdout}\n${stderr}`).toBeGreaterThan(0);
    expect({ failed, exitCode }).toEqual({ failed: "0", exitCode: 0 });
  },
);
