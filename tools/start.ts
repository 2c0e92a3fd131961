/** `npm start`: set up what is missing, deploy the stack, and say what to try next. */
import { relative } from "node:path";
import { parseArgs } from "node:util";
import { deploy, type Deployment } from "./deployment.ts";
import { fail, LaunchError } from "./launch.mjs";
import { prepare, refuseHopeless, requireStack } from "./pulumi.ts";
import { defaultStack, stackOption, whichStack } from "./stack.ts";
import { rememberDeployment, unchangedDeployment } from "./unchanged.ts";

const usage = `usage: npm start [-- --stack NAME]

Sets up what is missing on this machine, deploys the stack (default: $PULUMI_STACK, else the one that
\`npm run pulumi -- stack select\` has selected, else ${defaultStack}) and verifies its builders.
Safe to repeat: what stands already is left alone, and where nothing has changed since the last deployment and every builder of
this machine runs, nothing is deployed (\`npm run pulumi -- up\` does so all the same).`;

try {
  const { values } = parseArgs({
    options: { stack: { type: "string", short: "s" }, help: { type: "boolean", short: "h" } },
  });
  if (values.help === true) console.log(usage);
  else process.exitCode = await start(values.stack);
} catch (error) {
  if (error instanceof Error && error.name === "CliError") fail(new LaunchError(error.message));
  else if (error instanceof TypeError && "code" in error) fail(new LaunchError(`${error.message}\n\n${usage}`));
  else fail(error);
}

async function start(named: string | undefined): Promise<number> {
  // Before set-up, which may take minutes.
  if (named !== undefined) whichStack({}, named);
  const { env: chosen, stack } = await prepare({ stack: named });
  const env = { ...chosen, PULUMI_STACK: stack };
  await requireStack(env);
  const unchanged = unchangedDeployment(env, stack);
  if (unchanged === undefined) refuseHopeless(env, stack);
  // What shows the result is loaded while the deployment runs.
  const [{ exitCode, outputs, warned, cancelled }, { parseFleet, stackDirectory }, { recordedStatus, renderStatus }] =
    await Promise.all([
      unchanged === undefined
        ? deployNow(env, stack)
        : { exitCode: 0, outputs: unchanged, warned: false, cancelled: false },
      import("../src/cli/stack.ts"),
      import("../src/cli/status.ts"),
    ]);
  const other = stackOption(env, stack);
  if (exitCode !== 0) {
    console.error(
      cancelled
        ? `\nCancelled, the fleet is not up: \`npm start${other && ` --${other}`}\` goes on from here, ` +
            `\`npm run pulumi -- destroy${other}\` removes what stands.`
        : "\nThe fleet is not up; the reason stands above. Once it is mended, `npm start` goes on from here.",
    );
    return exitCode;
  }
  if (unchanged !== undefined)
    console.log(`Stack ${stack} stands as it was deployed, and its builders run: nothing to do.`);
  else if (!warned) rememberDeployment(env, stack, outputs);
  const fleet = parseFleet(stack, outputs);
  const systems = new Set(fleet.builders.flatMap((builder) => builder.systems));
  // docs/hello.nix has an attribute for each system; asked for all, it needs builders for all.
  const attribute = systems.size > 1 ? "" : systems.has("x86_64-linux") ? " -A x86" : " -A arm";
  console.log(`
${renderStatus(recordedStatus(fleet))}

Client files: ${relative(process.cwd(), stackDirectory(stack))}/client (machines, nix.conf, ssh_config, known_hosts, id_ed25519)

Try next:
  npx fleet${other} build docs/hello.nix${attribute}
      builds a derivation on each kind of builder, and nothing on this machine
  npx fleet${other} status
      the same table, live
  npm run pulumi -- destroy${other}
      removes everything again`);
  return 0;
}

function deployNow(env: NodeJS.ProcessEnv, stack: string): Promise<Deployment> {
  console.log(`Deploying stack ${stack}`);
  return deploy(env, console.log);
}
