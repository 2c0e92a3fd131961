/** A client of the EC2 API whose requests are answered by a test. */
import type { EC2Client } from "@aws-sdk/client-ec2";
import { ec2Client } from "../../../src/aws/api.ts";
import { ownValue } from "../../../src/record.ts";

/** Code and words of a refusal. */
export type Refusal = readonly [code: string, message: string];

/**
 * @param answers Name of a command → what the API answers; other commands get an empty answer.
 * @param refusals Name of a command → how the API refuses it, whatever its input or by that.
 */
export function answeringClient(
  answers: Readonly<Record<string, object>>,
  refusals: Readonly<Record<string, Refusal | ((input: object) => Refusal | undefined)>> = {},
): EC2Client {
  const client = ec2Client({
    region: "eu-central-1",
    accessKey: "k",
    secretKey: "s",
    endpoints: { ec2: "http://127.0.0.1:9" },
  });
  client.middlewareStack.add(
    (_, { commandName = "" }) =>
      ({ input }) => {
        const refusal = ownValue(refusals, commandName);
        const [name, message] = (typeof refusal === "function" ? refusal(input) : refusal) ?? [];
        if (name !== undefined) return Promise.reject(Object.assign(new Error(message), { name }));
        return Promise.resolve({ output: { $metadata: {}, ...ownValue(answers, commandName) }, response: {} });
      },
    { step: "initialize" },
  );
  return client;
}
