/** The one chain of credentials: the plugin has them from it (plugin.ini), and so has every call of the fleet's own. */
import { readFileSync } from "node:fs";
import { homedir } from "node:os";
import { AssumeRoleCommand, AssumeRoleWithWebIdentityCommand, STSClient, type Credentials } from "@aws-sdk/client-sts";
import { fromIni } from "@aws-sdk/credential-provider-ini";
import { defaultProvider } from "@aws-sdk/credential-provider-node";
import type { AssumedRole, AwsAccess, WebIdentity } from "./access.ts";
import { clientSettings } from "./connection.ts";

/** Keys to ask with. */
export interface AwsCredentials {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  readonly sessionToken?: string;
  /** When they end; absent: never. */
  readonly expiration?: Date;
}

/**
 * Looks for credentials in the plugin's order: keys of the configuration, else its web identity, else its profile, else AWS's variables, else
 * `AWS_PROFILE` and whatever else AWS's SDK knows (SSO, a process, a container's role, an instance's). Then it assumes the roles.
 *
 * @returns Gets them anew when it is called.
 */
export function credentialsOf(access: AwsAccess): () => Promise<AwsCredentials> {
  const first = source(access);
  return async () => {
    let credentials: AwsCredentials = await first();
    for (const role of access.assumeRoles ?? []) credentials = await assume(access, credentials, role);
    return credentials;
  };
}

/**
 * When the session of keys in the environment ends, as `aws configure export-credentials` and its like say it. Nobody can renew those.
 *
 * @returns `undefined`: they aren't used, have no end, or don't say it.
 */
export function sessionEnd(access: AwsAccess): Date | undefined {
  const { AWS_CREDENTIAL_EXPIRATION: end = "", AWS_SESSION_TOKEN: token } = process.env;
  if (access.accessKey !== undefined || access.profile !== undefined || access.assumeRoleWithWebIdentity !== undefined)
    return undefined;
  if (!token || variables(process.env) === undefined || Number.isNaN(Date.parse(end))) return undefined;
  return new Date(end);
}

function source(access: AwsAccess): () => Promise<AwsCredentials> {
  const { accessKey, secretKey, token, assumeRoleWithWebIdentity: identity, profile } = access;
  if (accessKey !== undefined && secretKey !== undefined) {
    const keys = {
      accessKeyId: accessKey,
      secretAccessKey: secretKey,
      ...(token !== undefined && { sessionToken: token }),
    };
    return () => Promise.resolve(keys);
  }
  if (identity !== undefined) return () => assumeByToken(access, identity);
  const env = process.env;
  const chosen = profile ?? (env["AWS_ACCESS_KEY_ID"] && env["AWS_SECRET_ACCESS_KEY"] ? undefined : env["AWS_PROFILE"]);
  const files = {
    ...(access.sharedConfigFiles?.[0] !== undefined && { configFilepath: expanded(access.sharedConfigFiles[0]) }),
    ...(access.sharedCredentialsFiles?.[0] !== undefined && { filepath: expanded(access.sharedCredentialsFiles[0]) }),
    clientConfig: { region: access.stsRegion ?? access.region },
  };
  // A profile that isn't there must not end up as the role of the instance that this happens to run on.
  if (chosen) return fromIni({ ...files, profile: chosen });
  return variables(env) ?? defaultProvider(files);
}

/** The SDK would prefer `AWS_PROFILE` to them, and the plugin doesn't. */
function variables(env: NodeJS.ProcessEnv): (() => Promise<AwsCredentials>) | undefined {
  const {
    AWS_ACCESS_KEY_ID: accessKeyId,
    AWS_SECRET_ACCESS_KEY: secretAccessKey,
    AWS_SESSION_TOKEN: sessionToken,
  } = env;
  if (!accessKeyId || !secretAccessKey) return undefined;
  return () => Promise.resolve({ accessKeyId, secretAccessKey, ...(sessionToken && { sessionToken }) });
}

async function assume(access: AwsAccess, credentials: AwsCredentials, role: AssumedRole): Promise<AwsCredentials> {
  const client = new STSClient({ ...stsSettings(access), credentials });
  const { Credentials: found } = await client.send(
    new AssumeRoleCommand({
      ...sessionOf(role),
      ExternalId: role.externalId,
      SourceIdentity: role.sourceIdentity,
      Tags: Object.entries(role.tags ?? {}).map(([Key, Value]) => ({ Key, Value })),
      TransitiveTagKeys: role.transitiveTagKeys,
    }),
  );
  return given(found);
}

async function assumeByToken(access: AwsAccess, identity: WebIdentity): Promise<AwsCredentials> {
  const { webIdentityToken, webIdentityTokenFile = "" } = identity;
  // Nobody signs this request: the token is what counts.
  const { Credentials: found } = await new STSClient(stsSettings(access)).send(
    new AssumeRoleWithWebIdentityCommand({
      ...sessionOf(identity),
      WebIdentityToken: webIdentityToken ?? readFileSync(expanded(webIdentityTokenFile), "utf8").trim(),
    }),
  );
  return given(found);
}

function stsSettings(access: AwsAccess) {
  return { ...clientSettings(access, "sts"), region: access.stsRegion ?? access.region };
}

function sessionOf({ roleArn, sessionName, duration, policy, policyArns }: AssumedRole | WebIdentity) {
  return {
    RoleArn: roleArn,
    RoleSessionName: sessionName ?? "nix-builder-fleet",
    DurationSeconds: duration,
    Policy: policy,
    PolicyArns: policyArns?.map((arn) => ({ arn })),
  };
}

function given(found: Credentials | undefined): AwsCredentials {
  const { AccessKeyId, SecretAccessKey, SessionToken, Expiration } = found ?? {};
  if (AccessKeyId === undefined || SecretAccessKey === undefined)
    throw new Error("AWS assumed the role and gave no credentials");
  return {
    accessKeyId: AccessKeyId,
    secretAccessKey: SecretAccessKey,
    ...(SessionToken !== undefined && { sessionToken: SessionToken }),
    ...(Expiration !== undefined && { expiration: Expiration }),
  };
}

function expanded(path: string): string {
  return path.replace(/^~(?=\/)/, homedir());
}
