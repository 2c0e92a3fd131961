/** What the npm scripts call: `node tools/run.mjs TASK ARGS…` runs tools/TASK.ts, on a machine that may have nothing yet. */
import { fail, launch } from "./launch.mjs";

const tasks = {
  start: "stand up the fleet of the selected stack, after any set-up that is missing",
  setup: "get or renew what the project needs on this machine",
  pulumi: "the Pulumi CLI with this checkout's backend, passphrase and plugins",
  test: "lint, types and all tests; with arguments: only vitest, with these",
  bench: "measure how long a fleet takes",
};

const [task, ...args] = process.argv.slice(2);
if (Object.keys(tasks).includes(task)) launch(`tools/${task}.ts`, args).catch(fail);
else {
  const asked = task === "--help" || task === "-h";
  const list = Object.entries(tasks).map(([name, purpose]) => `  ${name.padEnd(8)}${purpose}`);
  const text = `Usage: node tools/run.mjs TASK [ARGS…]   (or: npm run TASK -- ARGS…)\n\n${list.join("\n")}`;
  if (asked) console.log(text);
  else console.error(`${task === undefined ? "No task was named." : `There is no task "${task}".`}\n\n${text}`);
  process.exitCode = asked ? 0 : 2;
}
