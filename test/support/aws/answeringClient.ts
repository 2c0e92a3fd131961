/** A client of the EC2 API whose requests are answered by a test. */
import type { EC2Client } from "@aws-sdk/client-ec2";
import { ec2Client } from "../../../src/aws/api.ts";

/** @param answers Name of a command → what the API answers; other commands get an empty answer. */
export function answeringClient(answers: Readonly<Record<string, object>>): EC2Client {
  const client = ec2Client({
    region: "eu-central-1",
    accessKey: "k",
    secretKey: "s",
    endpoints: { ec2: "http://127.0.0.1:9" },
  });
  client.middlewareStack.add(
    (_, { commandName = "" }) =>
      () =>
        Promise.resolve({ output: { $metadata: {}, ...answers[commandName] }, response: {} }),
    { step: "initialize" },
  );
  return client;
}
