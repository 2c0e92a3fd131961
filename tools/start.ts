/** `npm start`: set up what is missing, deploy the stack, and say what to try next. */
import { parseArgs } from "node:util";
import { execa } from "execa";
import { readFleet, stackDirectory } from "../src/cli/stack.ts";
import { recordedStatus, renderStatus } from "../src/cli/status.ts";

const { values } = parseArgs({
  options: { stack: { type: "string", short: "s", default: "dev" }, help: { type: "boolean", short: "h" } },
});

if (values.help === true) {
  console.log(
    "usage: npm start [-- --stack NAME]\n\nSets up what is missing, deploys the stack (default: dev) and verifies its builders.",
  );
} else {
  await start(values.stack);
}

async function start(stack: string): Promise<void> {
  const up = await execa(
    process.execPath,
    [`${import.meta.dirname}/pulumi.ts`, "up", "--yes", "--skip-preview", "--suppress-outputs", "--stack", stack],
    { stdio: "inherit", reject: false },
  );
  if (up.exitCode !== 0) {
    console.error("\nThe fleet is not up; what is wrong stands above. Once mended, `npm start` goes on from here.");
    process.exitCode = up.exitCode ?? 1;
    return;
  }
  const fleet = await readFleet(stack);
  const other = stack === "dev" ? "" : ` --stack ${stack}`;
  console.log(`
${renderStatus(recordedStatus(fleet))}

Client files: ${stackDirectory(stack)}/client

Try next:
  npx fleet${other} status                      the same table, live
  npx fleet${other} build --help                nix-build on these builders, and nowhere else
  npm run pulumi -- destroy${other}             remove everything again`);
}
