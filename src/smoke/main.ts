/** The script behind the smoke test, run by `command.local.Command`: a SmokeTest as JSON in, a Verdict as JSON out. */
import { runSmokeTest, type SmokeTest } from "./smokeTest.ts";
import { runScript } from "../script.ts";
import { sayJson } from "../terminal.ts";

await runScript(async () => {
  const test = JSON.parse(process.env["FLEET_SMOKE_TEST"] ?? "{}") as SmokeTest;
  sayJson(await runSmokeTest(test), 0);
});
