/** What an instance said before it could be reached: the console that EC2 keeps. */
import { GetConsoleOutputCommand } from "@aws-sdk/client-ec2";
import { plainText } from "../machineText.ts";
import { currentAccess } from "./access.ts";
import { asking, ec2Client } from "./api.ts";

/** The last lines of an instance's console, without control sequences. EC2 has them some minutes late. */
export async function lastConsoleLines(instance: string, count = 15): Promise<string> {
  const access = await currentAccess();
  const { Output = "" } = await asking(access.region, () =>
    ec2Client(access).send(new GetConsoleOutputCommand({ InstanceId: instance, Latest: true })),
  );
  const lines = plainText(Buffer.from(Output, "base64").toString())
    .split("\n")
    .filter((line) => line.trim() !== "");
  return lines.length === 0 ? "(nothing yet)" : lines.slice(-count).join("\n");
}
