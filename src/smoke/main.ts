/** The script behind the smoke test, run by `command.local.Command`: a SmokeTest as JSON in, a Verdict as JSON out. */
import { runSmokeTest, type SmokeTest } from "./smokeTest.ts";

try {
  const test = JSON.parse(process.env["FLEET_SMOKE_TEST"] ?? "{}") as SmokeTest;
  console.log(JSON.stringify(await runSmokeTest(test)));
} catch (error) {
  console.error(error instanceof Error ? error.message : String(error));
  process.exitCode = 1;
}
