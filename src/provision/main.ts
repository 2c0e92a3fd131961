/** The script behind a cloud builder's provisioning, run by `command.local.Command`; prints the key that opens it now. */
import { text } from "node:stream/consumers";
import { provision, type Provisioning } from "./provision.ts";
import { runScript } from "../script.ts";
import { complain, say } from "../terminal.ts";

await runScript(async () => {
  const wanted = JSON.parse(await text(process.stdin)) as Provisioning;
  const previousKey = process.env["PULUMI_COMMAND_STDOUT"];
  await provision(wanted, previousKey === "" ? undefined : previousKey, (progress) => {
    complain(`${wanted.alias}: ${progress}`);
  });
  say(wanted.adminPrivateKey.trimEnd());
});
