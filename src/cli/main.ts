/** `npx fleet`: the commands for people, over the stack's outputs. */
import { Command } from "commander";
import { describeForms, writeClient, type ClientChoice } from "./client.ts";
import { doctor } from "./doctor.ts";
import { explain, type ExplainOptions } from "./explain.ts";
import { findAwsAccess, findAwsRemains, renderAwsRemains } from "./aws.ts";
import { findRemains, hasToken, renderRemains } from "./hcloud.ts";
import { runNix } from "./nix.ts";
import { CliError, readFleet } from "./stack.ts";
import { verify, type VerifyOptions } from "./verify.ts";
import { liveStatus, renderStatus } from "./status.ts";
import { clientKeyName } from "../nix/clientFiles.ts";
import { InvalidValue, NotExpressible } from "../nix/invalidValue.ts";
import { profileNames } from "../nix/profiles.ts";

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
  .description(
    `Write the client's files: machines, nix.conf, ssh_config, known_hosts, and id_ed25519 (mode 0600).
With --form, print one form of the configuration, or write it to the folder.`,
  )
  .argument("[dir]", "folder to write to; the files name each other by its absolute path")
  .option("--form <form>", "one form alone, see below")
  .option("--client <name>", "for a client of the configuration, with its own key and profile")
  .option("--profile <profile>", `what the client leaves to the fleet: ${profileNames.join(", ")}`)
  .option("--nix-version <version>", "version of the client's Nix, for forms that older ones can't read")
  .option("--force", "overwrite files of another fleet")
  .option("--json", "print what was written as JSON")
  .addHelpText("after", `\nForms:\n${describeForms()}`)
  .action(
    async (directory: string | undefined, { json, ...choice }: Omit<ClientChoice, "directory"> & { json?: true }) => {
      const fleet = await readFleet(stack());
      const result = writeClient(fleet, { ...choice, ...(directory !== undefined && { directory }) });
      if ("text" in result) {
        process.stdout.write(json === true ? `${JSON.stringify(result)}\n` : result.text);
      } else if (json === true) {
        console.log(JSON.stringify(result, null, 2));
      } else {
        console.log(result.files.map((name) => `${result.directory}/${name}`).join("\n"));
        if (choice.form === undefined) console.log(usage(result.directory, result.needsOwnKey));
      }
    },
  );

program
  .command("verify")
  .description(
    "Prove again what each builder does: by default all of it, every kind of build and every refusal. Exits with 1 if one fails.",
  )
  .argument("[builders...]", "names of the builders; default: all")
  .option("--quick", "one build for each builder")
  .option("--recorded", "show what the last deployment found, and build nothing")
  .option("--json", "print JSON")
  .option("--junit <file>", "write the results to a file for CI systems, too")
  .action(async (names: string[], options: VerifyOptions) => {
    process.exitCode = await verify(await readFleet(stack()), names, options);
  });

program
  .command("doctor")
  .description(
    "Look for what is wrong with the builders and with this machine as their client (as root: as its Nix daemon sees it), and say how to mend it. Exits with 1 for warnings, 2 for errors.",
  )
  .argument("[builders...]", "names of the builders; default: all")
  .option("--json", "print JSON")
  .action(async (names: string[], options: { json?: true }) => {
    process.exitCode = await doctor(await readFleet(stack()), names, options);
  });

program
  .command("explain")
  .description(
    "Say where each derivation would be built: which builders accept it, which refuse and why, and which one Nix would pick. For instance: fleet explain '<nixpkgs>' -A hello",
  )
  .argument("<installable...>", "a .drv file, FLAKE#ATTRIBUTE, or what nix-build takes")
  .option("--machine", "for this machine's own Nix instead of `fleet build`")
  .option("--json", "print JSON")
  .helpOption("--help", "show this help")
  .allowUnknownOption()
  .passThroughOptions()
  .action(async (words: string[], options: ExplainOptions) => {
    process.exitCode = await explain(await readFleet(stack()), words, options);
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
    .option("--remote-store <builder>", "evaluate here, build everything on this one builder, bring the results back")
    .allowUnknownOption()
    .passThroughOptions()
    .action(async (words: string[], { remoteStore }: { remoteStore?: string }) => {
      const run = { stack: stack(), program: nixProgram, words };
      process.exitCode = await runNix(remoteStore === undefined ? run : { ...run, remoteStore });
    });
}

program
  .command("verify-gone")
  .description("Ask Hetzner Cloud and AWS what still carries the fleet's label. Exits with 1 if there is anything.")
  .option("--json", "print JSON")
  .action(async ({ json }: { json?: true }) => {
    const aws = await findAwsAccess(stack());
    const left = aws && (await findAwsRemains(stack(), aws));
    const remains = aws === undefined || (await hasToken(stack())) ? await findRemains(stack()) : undefined;
    const text = [
      ...(remains === undefined ? [] : [renderRemains(stack(), remains)]),
      ...(aws === undefined || left === undefined ? [] : [renderAwsRemains(stack(), aws, left)]),
    ];
    console.log(json === true ? JSON.stringify({ ...remains, ...(left && { aws: left }) }, null, 2) : text.join("\n"));
    if ((remains?.left.length ?? 0) + (left?.length ?? 0) > 0) process.exitCode = 1;
  });

/** How Nix uses a client directory. */
function usage(directory: string, needsOwnKey: boolean): string {
  return `${needsOwnKey ? `\nPut this client's own private key into ${directory}/${clientKeyName} (mode 0600).\n` : ""}
Nix uses them with these two variables set, for one command or in a shell:
  NIX_CONF_DIR=${directory} NIX_SSHOPTS='-F ${directory}/ssh_config' nix-build --max-jobs 0 …`;
}

try {
  await program.parseAsync();
} catch (error) {
  if (!(error instanceof CliError || error instanceof InvalidValue || error instanceof NotExpressible)) throw error;
  console.error(`fleet: ${error.message}`);
  process.exitCode = 1;
}
