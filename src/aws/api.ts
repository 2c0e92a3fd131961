/** The EC2 API beside the plugin, and its errors in words. */
import { EC2Client } from "@aws-sdk/client-ec2";
import { oneLine } from "../machineText.ts";
import type { AwsAccess } from "./access.ts";
import { clientSettings } from "./connection.ts";
import { credentialsOf } from "./credentials.ts";

/** A client, which uses the person's proxy. Calls are retried for some seconds. */
export function ec2Client(access: AwsAccess): EC2Client {
  return new EC2Client({ ...clientSettings(access, "ec2"), credentials: credentialsOf(access) });
}

/** What the API refused, or what kept it from being asked; the message is for people. */
export class AwsError extends Error {
  override readonly name = "AwsError";
  /** The API's code, or the SDK's name of the error. */
  readonly code: string;

  constructor(code: string, message: string, cause: unknown) {
    super(message, { cause });
    this.code = code;
  }
}

/**
 * Does something with the API and turns what it throws into an `AwsError`.
 *
 * Codes: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html.
 */
export async function asking<T>(region: string, ask: () => Promise<T>): Promise<T> {
  try {
    return await ask();
  } catch (error) {
    if (!(error instanceof Error) || error instanceof AwsError) throw error;
    if (error.name === "Error" && !("code" in error) && !("$metadata" in error)) throw error;
    const code = "Code" in error && typeof error.Code === "string" ? error.Code : error.name;
    throw new AwsError(code, explain(oneLine(code, 100), oneLine(error.message, 1000), region), error);
  }
}

function explain(code: string, message: string, region: string): string {
  if (code === "CredentialsProviderError") {
    return (
      `there are no credentials for AWS (${message.trim()}); set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ` +
      "or `npm run pulumi -- config set aws:profile …`"
    );
  }
  if (refusals.has(code)) {
    return `AWS refuses the credentials (${code}: ${message}); renew them, or choose others with AWS_PROFILE or aws:profile`;
  }
  if (code === "UnauthorizedOperation") {
    return `the credentials may not do this: ${message}; docs/aws.md lists the permissions that a fleet needs`;
  }
  if (code === "OptInRequired") return `the account has not enabled ${region}: ${message}`;
  if (/ENOTFOUND|EAI_AGAIN|ECONNREFUSED|TimeoutError|ETIMEDOUT|ECONNRESET|EHOSTUNREACH/.test(`${code} ${message}`)) {
    return `the EC2 API of the region '${region}' can't be reached (${message || code}); check aws:region and the network`;
  }
  return `${code}: ${message}`;
}

const refusals = new Set([
  "AuthFailure",
  "InvalidClientTokenId",
  "UnrecognizedClientException",
  "SignatureDoesNotMatch",
  "ExpiredToken",
  "ExpiredTokenException",
  "RequestExpired",
  "Blocked",
]);
