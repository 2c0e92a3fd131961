/** The EC2 API beside the plugin, and its errors in words. */
import { EC2Client } from "@aws-sdk/client-ec2";
import { oneLine } from "../machineText.ts";
import type { AwsAccess } from "./access.ts";
import { clientSettings } from "./connection.ts";
import { credentialsOf } from "./credentials.ts";

/** A client, which uses the person's proxy. Calls that AWS fails at are made again for half a minute. */
export function ec2Client(access: AwsAccess): EC2Client {
  const client = new EC2Client({ ...clientSettings(access, "ec2"), credentials: credentialsOf(access) });
  // What the API refuses it doesn't name.
  client.middlewareStack.add(
    (next, { commandName = "" }) =>
      async (args) => {
        try {
          return await next(args);
        } catch (error) {
          if (error instanceof Error) actions.set(error, commandName.replace(/Command$/, ""));
          throw error;
        }
      },
    { step: "initialize" },
  );
  // That there is no room is no failure of AWS's, although its status says so: another place may have some.
  client.middlewareStack.add(
    (next) => async (args) => {
      try {
        return await next(args);
      } catch (error) {
        if (!(error instanceof Error) || !/^Insufficient\w+Capacity$/.test(error.name)) throw error;
        throw Object.assign(error, { $metadata: { httpStatusCode: 400 } });
      }
    },
    { step: "deserialize", priority: "high" },
  );
  return client;
}

/** Error → name of the action that ended in it. */
const actions = new WeakMap<Error, string>();

/** What the API refused, or what kept it from being asked; the message is for people. */
export class AwsError extends Error {
  override readonly name = "AwsError";
  /** The API's code, or the SDK's name of the error. */
  readonly code: string;
  /** The API's own words. */
  readonly said: string;

  constructor(code: string, message: string, cause: unknown) {
    super(message, { cause });
    this.code = code;
    this.said =
      cause instanceof AwsError ? cause.said : oneLine(cause instanceof Error ? cause.message : String(cause), 1000);
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
    const action = actions.get(error);
    throw new AwsError(
      code,
      explain(oneLine(code, 100), oneLine(error.message, 1000), region, { action, status: statusOf(error) }),
      error,
    );
  }
}

function statusOf(error: Error): number {
  const { httpStatusCode = 0 } = "$metadata" in error ? (error.$metadata as { httpStatusCode?: number }) : {};
  return httpStatusCode;
}

function explain(
  code: string,
  message: string,
  region: string,
  { action, status }: { readonly action: string | undefined; readonly status: number },
): string {
  if (code === "CredentialsProviderError") {
    return (
      `there are no credentials for AWS (${message.trim()}); set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ` +
      "or `npm run pulumi -- config set aws:profile …`"
    );
  }
  if (isRefusal(code)) {
    return (
      `AWS refuses the credentials (${code}: ${message}); renew them, or choose others with AWS_PROFILE or aws:profile. ` +
      "A deployment that they ended goes on with the next `up`"
    );
  }
  if (code === "UnauthorizedOperation" || code === "AccessDenied") {
    // Newer answers name it; it differs from the action where roles and tags are concerned.
    const permission =
      /not authorized to perform: (\S+)/.exec(message)?.[1] ?? (action === undefined ? "this" : `ec2:${action}`);
    return `the credentials may not do ${permission}; docs/aws.md has a policy with what a fleet needs. What AWS says: ${message}`;
  }
  if (code === "AuthFailure.ServiceLinkedRoleCreationNotPermitted") {
    return (
      "the account has no service-linked role for spot instances yet, and the credentials may not make it; an administrator does it once: " +
      "`aws iam create-service-linked-role --aws-service-name spot.amazonaws.com`"
    );
  }
  if (code === "OptInRequired") return `the account has not enabled ${region}: ${message}`;
  if (/ENOTFOUND|EAI_AGAIN|ECONNREFUSED|TimeoutError|ETIMEDOUT|ECONNRESET|EHOSTUNREACH/.test(`${code} ${message}`)) {
    return `the EC2 API of the region '${region}' can't be reached (${message || code}); check aws:region and the network`;
  }
  if (status >= 500) {
    return (
      `AWS itself failed at ${action === undefined ? "a request" : `ec2:${action}`} again and again (${status} ${code}: ${message}): nothing is wrong ` +
      "here; see https://health.aws.amazon.com/health/status, and run `up` again later"
    );
  }
  return `${code}: ${message}`;
}

/** Whether a code says that the credentials themselves aren't accepted. */
export function isRefusal(code: string): boolean {
  return refusals.has(code);
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
