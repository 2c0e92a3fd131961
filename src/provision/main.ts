/** The script behind a cloud builder's provisioning, run by `command.local.Command`; prints the key that opens it now. */
import { text } from "node:stream/consumers";
import { provision, type Provisioning } from "./provision.ts";

try {
  const wanted = JSON.parse(await text(process.stdin)) as Provisioning;
  const previousKey = process.env["PULUMI_COMMAND_STDOUT"];
  await provision(wanted, previousKey === "" ? undefined : previousKey, (progress) => {
    console.error(`${wanted.alias}: ${progress}`);
  });
  console.log(wanted.adminPrivateKey.trimEnd());
} catch (error) {
  console.error(error instanceof Error ? error.message : String(error));
  process.exitCode = 1;
}
