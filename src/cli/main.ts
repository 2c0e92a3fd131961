/** `npx fleet`: the commands for people, over the stack's outputs. */
import { Command } from "commander";
import { describeForms, writeClient, type ClientChoice } from "./client.ts";
import { explainUse, nixHere } from "./clientUse.ts";
import { doctor } from "./doctor.ts";
import { explain, type ExplainOptions } from "./explain.ts";
import { findAwsAccess, findAwsRemains, renderAwsRemains } from "./aws.ts";
import { bakeBuilder, findRemains, hasToken, renderRemains } from "./hcloud.ts";
import { runNix } from "./nix.ts";
import { CliError, readFleet } from "./stack.ts";
import { verify, type VerifyOptions } from "./verify.ts";
import { liveStatus, renderStatus } from "./status.ts";
import { InvalidValue, NotExpressible } from "../nix/invalidValue.ts";
import { profileNames } from "../nix/profiles.ts";
import { LaunchError } from "../../tools/launch.mjs";
import { stackUnderSudo, whichStack } from "../../tools/stack.ts";
import { complain, say, sayJson } from "../terminal.ts";

/** Stands before the command or after it. */
const stackFlag = [
  "-s, --stack <name>",
  "stack to work with; default: $PULUMI_STACK, else the selected one, else dev",
] as const;

const program = new Command("fleet")
  .description("Use and look after the builders of a nix-builder-fleet stack.")
  .option(...stackFlag)
  .enablePositionalOptions()
  .showHelpAfterError("(`npx fleet --help` lists the commands, `npx fleet COMMAND --help` their options)");

/** The stack that was named, before the command or after it, or else what a call without a name works on. */
const stack = (options: { stack?: string }): string => {
  const named = options.stack ?? program.opts<{ stack?: string }>().stack;
  const note = stackUnderSudo(process.env, named);
  if (note !== undefined) complain(`fleet: ${note}`);
  return whichStack(process.env, named);
};

program
  .command("status")
  .description("Ask every builder for an answer and show them as a table. Exits with 1 if one does not answer.")
  .option(...stackFlag)
  .option("--json", "print JSON")
  .action(async ({ json, ...options }: { json?: true; stack?: string }) => {
    const rows = await liveStatus(await readFleet(stack(options)));
    if (json === true) sayJson(rows);
    else say(renderStatus(rows));
    if (rows.some(({ answers }) => answers === false)) process.exitCode = 1;
  });

program
  .command("client")
  .description(
    `Write the client's files: machines, nix.conf, ssh_config, known_hosts, id_ed25519 and, at the level signed, signing-key (both with mode 0600).
With --form, print one form of the configuration, or write it to the folder.`,
  )
  .argument("[dir]", "folder to write to")
  .option("--form <form>", "one form alone, see below")
  .option("--client <name>", "for a client of the configuration, with its own key and profile")
  .option(
    "--installed-at <path>",
    "folder where the files will lie on the client, as they name each other by it; default: where they are written, and for a client with a publicKey the configured clientDirectory",
  )
  .option("--profile <profile>", `what the client leaves to the fleet: ${profileNames.join(", ")}`)
  .option("--nix-version <version>", "version of the client's Nix, for forms that older ones can't read")
  .option("--force", "overwrite files that aren't this fleet's")
  .option("--json", "print what was written as JSON")
  .option(...stackFlag)
  .addHelpText("after", `\nForms:\n${describeForms()}`)
  .action(
    async (
      directory: string | undefined,
      { json, stack: named, ...choice }: Omit<ClientChoice, "directory"> & { json?: true; stack?: string },
    ) => {
      const fleet = await readFleet(stack({ ...(named !== undefined && { stack: named }) }));
      const result = writeClient(fleet, { ...choice, ...(directory !== undefined && { directory }) });
      if (json !== true) for (const note of result.notes) complain(`fleet: ${note}`);
      if ("text" in result) {
        process.stdout.write(json === true ? `${JSON.stringify(result)}\n` : result.text);
      } else if (json === true) {
        sayJson(result);
      } else {
        say(result.files.map((name) => `${result.directory}/${name}`).join("\n"));
        if (choice.form === undefined) {
          const client = choice.client === undefined ? "" : ` --client ${choice.client}`;
          const profile = choice.profile === undefined ? "" : ` --profile ${choice.profile}`;
          const place = `--installed-at ${fleet.clientSettings.directory} ${directory ?? ""}`;
          const again = `npx fleet client --stack ${fleet.stack}${client}${profile} ${place}`;
          say(explainUse(result, again, nixHere()));
        }
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
  .option(...stackFlag)
  .action(async (names: string[], options: VerifyOptions & { stack?: string }) => {
    process.exitCode = await verify(await readFleet(stack(options)), names, options);
  });

program
  .command("doctor")
  .description(
    "Look for what is wrong with the builders and with this machine as their client (as root: as its Nix daemon sees it), and say how to mend it. Exits with 1 for warnings, 2 for errors.",
  )
  .argument("[builders...]", "names of the builders; default: all")
  .option("--json", "print JSON")
  .option(...stackFlag)
  .action(async (names: string[], options: { json?: true; stack?: string }) => {
    process.exitCode = await doctor(await readFleet(stack(options)), names, options);
  });

program
  .command("explain")
  .description(
    "Say where each derivation would be built: which builders accept it, which refuse and why, and which one Nix would pick. For instance: fleet explain '<nixpkgs>' -A hello",
  )
  .argument("<installable...>", "a .drv file, FLAKE#ATTRIBUTE, or what nix-build takes")
  .option("--machine", "for this machine's own Nix instead of `fleet build`")
  .option("--json", "print JSON")
  .option(...stackFlag)
  .helpOption("--help", "show this help")
  .allowUnknownOption()
  .passThroughOptions()
  .action(async (words: string[], options: ExplainOptions & { stack?: string }) => {
    refuseLate(words, "explain", ["--stack", "--machine"]);
    process.exitCode = await explain(await readFleet(stack(options)), words, options);
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
    .option(...stackFlag)
    .allowUnknownOption()
    .passThroughOptions()
    .action(async (words: string[], { remoteStore, ...options }: { remoteStore?: string; stack?: string }) => {
      refuseLate(words, name, ["--stack", "--remote-store"]);
      const run = { stack: stack(options), program: nixProgram, words };
      process.exitCode = await runNix(remoteStore === undefined ? run : { ...run, remoteStore });
    });
}

program
  .command("verify-gone")
  .description("Ask Hetzner Cloud and AWS what still carries the fleet's label. Exits with 1 if there is anything.")
  .option("--json", "print JSON")
  .option(...stackFlag)
  .action(async ({ json, ...options }: { json?: true; stack?: string }) => {
    const name = stack(options);
    const aws = await findAwsAccess(name);
    const left = aws && (await findAwsRemains(name, aws));
    const remains = aws === undefined || (await hasToken(name)) ? await findRemains(name) : undefined;
    const text = [
      ...(remains === undefined ? [] : [renderRemains(name, remains)]),
      ...(aws === undefined || left === undefined ? [] : [renderAwsRemains(name, aws, left)]),
    ];
    if (json === true) sayJson({ ...remains, ...(left && { aws: left }) });
    else say(text.join("\n"));
    if ((remains?.left.length ?? 0) + (left?.length ?? 0) > 0) process.exitCode = 1;
  });

program
  .command("bake")
  .description(
    "Make a snapshot of a verified builder at Hetzner Cloud; builders with `image: snapshot` start from the newest.",
  )
  .argument("<builder>", "name of the builder within the fleet")
  .option("--keep <number>", "snapshots of its architecture that stay, this one included", "3")
  .option("--accept-trusting", "bake it although clients at trust: full are, or were, root on it")
  .option("--json", "print JSON")
  .option(...stackFlag)
  .action(async (builder: string, choice: { keep: string; acceptTrusting?: true; json?: true; stack?: string }) => {
    const { keep, acceptTrusting, json, ...options } = choice;
    const baked = await bakeBuilder(stack(options), builder, keep, acceptTrusting);
    if (json === true) sayJson(baked);
    else
      say(
        `Snapshot ${baked.snapshot} is there.${baked.deleted.length > 0 ? ` Older ones deleted: ${baked.deleted.join(", ")}.` : ""}`,
      );
  });

/**
 * Everything from the first word on belongs to Nix, which would say of an option of ours only that it doesn't know it.
 *
 * @throws CliError naming the right place.
 */
function refuseLate(words: readonly string[], command: string, own: readonly string[]): void {
  // What follows `--` is for the program that `nix run` starts.
  const forNix = words.slice(0, words.includes("--") ? words.indexOf("--") : undefined);
  for (const option of own) {
    if (!forNix.some((word) => word === option || word.startsWith(`${option}=`))) continue;
    throw new CliError(`put ${option} before the arguments: fleet ${command} ${option} … ${words[0] ?? ""}`);
  }
}

/** What to tell a person of an error that is no mistake of this program's; `undefined`: it is one. */
function explanation(error: unknown): string | undefined {
  if (!(error instanceof Error)) return undefined;
  if ([CliError, InvalidValue, NotExpressible, LaunchError].some((kind) => error instanceof kind)) return error.message;
  // What the operating system refused, as Node words it: "EACCES: permission denied, mkdir '/x'".
  const refused = "syscall" in error && "path" in error && /^[A-Z0-9]+: (.*), (\w+ .*)$/s.exec(error.message);
  return refused ? `can't ${refused[2] ?? ""}: ${refused[1] ?? ""}` : undefined;
}

try {
  await program.parseAsync();
} catch (error) {
  const message = explanation(error);
  if (message === undefined) throw error;
  complain(`fleet: ${message}`);
  process.exitCode = 1;
}
