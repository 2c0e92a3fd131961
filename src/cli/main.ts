/** `npx fleet`: the commands for people, over the stack's outputs. */
import { resolve } from "node:path";
import { Command } from "commander";
import { runNix } from "./nix.ts";
import { CliError, readFleet, writeClient } from "./stack.ts";
import { liveStatus, renderStatus } from "./status.ts";
import { clientFiles, clientKeyName } from "../nix/clientFiles.ts";
import { InvalidValue } from "../nix/invalidValue.ts";

const program = new Command("fleet")
  .description("Use and look after the builders of a nix-builder-fleet stack.")
  .option("-s, --stack <name>", "stack to work with (before the command)", process.env["PULUMI_STACK"] ?? "dev")
  .enablePositionalOptions()
  .showHelpAfterError();

/** The stack that was chosen before the command. */
const stack = (): string => program.opts<{ stack: string }>().stack;

program
  .command("status")
  .description("Ask every builder for an answer and show them as a table. Exits with 1 if one does not answer.")
  .option("--json", "print JSON")
  .action(async ({ json }: { json?: true }) => {
    const rows = await liveStatus(await readFleet(stack()));
    console.log(json === true ? JSON.stringify(rows, null, 2) : renderStatus(rows));
    if (rows.some(({ answers }) => answers !== true)) process.exitCode = 1;
  });

program
  .command("client")
  .description("Write the client's files: machines, nix.conf, ssh_config, known_hosts, and id_ed25519 (mode 0600).")
  .argument("<dir>", "folder to write to; the files name each other by its absolute path")
  .option("--json", "print what was written as JSON")
  .action(async (dir: string, { json }: { json?: true }) => {
    const directory = resolve(dir);
    const fleet = await readFleet(stack());
    writeClient(fleet, directory);
    const names = [...Object.keys(clientFiles(fleet.builders, { directory })), clientKeyName];
    if (json === true) {
      console.log(JSON.stringify({ directory, files: names }, null, 2));
      return;
    }
    console.log(`${names.map((name) => `${directory}/${name}`).join("\n")}

Nix uses them with these two variables set, for one command or in a shell:
  NIX_CONF_DIR=${directory} NIX_SSHOPTS='-F ${directory}/ssh_config' nix-build --max-jobs 0 …`);
  });

for (const [name, nixProgram, example] of [
  ["build", "nix-build", "fleet build '<nixpkgs>' -A hello"],
  ["nix", "nix", "fleet nix build nixpkgs#hello"],
] as const) {
  program
    .command(name)
    .description(`Run \`${nixProgram}\` with the fleet's files alone and --max-jobs 0. For instance: ${example}`)
    .argument("[args...]", `what ${nixProgram} takes`)
    .helpOption("--help", "show this help")
    .allowUnknownOption()
    .passThroughOptions()
    .action(async (words: string[]) => {
      process.exitCode = await runNix(stack(), nixProgram, words);
    });
}

try {
  await program.parseAsync();
} catch (error) {
  if (!(error instanceof CliError || error instanceof InvalidValue)) throw error;
  console.error(`fleet: ${error.message}`);
  process.exitCode = 1;
}
