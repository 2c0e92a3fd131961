/**
 * The plugin's configuration, `aws:…`, as the program, its scripts, `npx fleet` and the plugin itself go by it: it is read here alone. What
 * the fleet's own calls can't honour is refused, as a fleet half of which works elsewhere or as somebody else is worse than none.
 */
import * as z from "zod";
import { oneLine } from "../machineText.ts";
import { ownValue } from "../record.ts";
import { allowedWords } from "../schemaWords.ts";
import { stackConfiguration, type ConfigurationValues } from "../stackConfig.ts";

/**
 * Names the region for a script. Unlike credentials it belongs to what was made: whatever the configuration says by now, a fleet is
 * deleted where it is.
 */
export const regionVariable = "FLEET_AWS_REGION";

/** Names the stack whose things are meant, by the id in its tag. */
export const tagVariable = "FLEET_AWS_STACK";

/** Go's durations, which the plugin takes: `1h30m`, `900s`. In seconds. */
const duration = z
  .string()
  .regex(/^(\d+h)?(\d+m)?(\d+s)?$/, "a time such as 1h or 30m")
  .transform((text) => {
    const part = (unit: string): number => Number(new RegExp(String.raw`(\d+)${unit}`).exec(text)?.[1] ?? 0);
    return part("h") * 3600 + part("m") * 60 + part("s");
  });

const role = {
  roleArn: z
    .string()
    .regex(/^arn:[a-z-]+:iam::\d{12}:role\/.+$/, "the ARN of a role, arn:aws:iam::123456789012:role/NAME"),
  duration: duration.optional(),
  policy: z.string().optional(),
  policyArns: z.array(z.string()).optional(),
  sessionName: z.string().optional(),
};
const assumedRole = z.strictObject({
  ...role,
  externalId: z.string().optional(),
  sourceIdentity: z.string().optional(),
  tags: z.record(z.string(), z.string()).optional(),
  transitiveTagKeys: z.array(z.string()).optional(),
});
const webIdentity = z
  .strictObject({ ...role, webIdentityToken: z.string().optional(), webIdentityTokenFile: z.string().optional() })
  .refine(
    ({ webIdentityToken, webIdentityTokenFile }) =>
      (webIdentityToken === undefined) !== (webIdentityTokenFile === undefined),
    "a roleArn, and either a webIdentityToken or a webIdentityTokenFile",
  );

/** A role that is assumed, with what its session is to be like. */
export type AssumedRole = z.infer<typeof assumedRole>;

/** A role that is assumed by a token of another provider of identities. */
export type WebIdentity = z.infer<typeof webIdentity>;

const oneFile = (like: string) =>
  z.array(z.string()).length(1, `a list of one file: AWS's SDK for JavaScript reads one only, as in ["${like}"]`);
const account = z.array(z.string().regex(/^\d{12}$/, "an account's number of 12 digits"));
const flag = z.union([z.boolean(), z.enum(["true", "false"]).transform((text) => text === "true")], "true or false");

/** Keys that say who asks, and where. */
const schema = z.strictObject({
  region: z
    .string()
    .regex(/^[a-z]{2}(-[a-z]+)+-\d$/, "a region such as eu-central-1")
    .optional(),
  profile: z.string().optional(),
  accessKey: z.string().optional(),
  secretKey: z.string().optional(),
  token: z.string().optional(),
  sharedConfigFiles: oneFile("~/.aws/config").optional(),
  sharedCredentialsFiles: oneFile("~/.aws/credentials").optional(),
  assumeRoles: z.array(assumedRole).optional(),
  assumeRoleWithWebIdentity: webIdentity.optional(),
  stsRegion: z.string().optional(),
  endpoints: z
    .array(z.record(z.string(), z.url("a URL such as http://127.0.0.1:4566")))
    .transform((all): Readonly<Record<string, string>> => Object.assign({}, ...all) as Record<string, string>)
    .optional(),
  useDualstackEndpoint: flag.optional(),
  useFipsEndpoint: flag.optional(),
  customCaBundle: z.string().optional(),
  allowedAccountIds: account.optional(),
  forbiddenAccountIds: account.optional(),
  defaultTags: z.strictObject({ tags: z.record(z.string(), z.string()).optional() }).optional(),
});

/** Keys that are the plugin's own affair: how often it asks, what it leaves alone. */
const pluginOnly = new Set([
  "ignoreTags",
  "maxRetries",
  "retryMode",
  "s3UsEast1RegionalEndpoint",
  "s3UsePathStyle",
  "skipCredentialsValidation",
  "skipMetadataApiCheck",
  "skipRegionValidation",
  "skipRequestingAccountId",
  "tagPolicyCompliance",
  "tokenBucketRateLimiterCapacity",
  "userAgents",
]);

/** Keys that only one of the two could honour → what to do instead. */
const refused: Readonly<Record<string, string>> = {
  httpProxy: "set HTTP_PROXY in the environment, which plugin and fleet both go by",
  httpsProxy: "set HTTPS_PROXY in the environment, which plugin and fleet both go by",
  noProxy: "set NO_PROXY in the environment, which plugin and fleet both go by",
  insecure: "name the certificate of your endpoint with aws:customCaBundle",
  ec2MetadataServiceEndpoint: "set AWS_EC2_METADATA_SERVICE_ENDPOINT in the environment",
  ec2MetadataServiceEndpointMode: "set AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE in the environment",
};

/** Keys that are texts, whatever they look like: an account's number is no number. */
const texts = new Set(["region", "profile", "accessKey", "secretKey", "token", "stsRegion", "customCaBundle"]);

/** How AWS is asked. */
export interface AwsAccess extends Omit<z.infer<typeof schema>, "region"> {
  readonly region: string;
  /** The plugin's own settings, by key. */
  readonly plugin?: Readonly<Record<string, unknown>>;
}

/** A key of `aws:…` that is wrong, or that not all of the fleet can honour. */
export class WrongAwsAccess extends Error {
  override readonly name = "WrongAwsAccess";
}

/** Why nothing can be asked of AWS. */
export const noRegion =
  "aws:region: missing; a builder has the provider aws, which needs a region: " +
  "`npm run pulumi -- config set aws:region eu-central-1`, or set AWS_REGION";

/**
 * As the plugin has it: the stack's configuration first, then AWS's variables.
 *
 * @param values Of `aws:…` in the configuration.
 * @returns `undefined` where there is no region.
 * @throws WrongAwsAccess one sentence for each key.
 */
export function accessFrom(values: ConfigurationValues, env: NodeJS.ProcessEnv = process.env): AwsAccess | undefined {
  // An emptied value is none, as for the plugin.
  const given = Object.entries(values).filter(([, value]) => value !== "");
  const problems = given.flatMap(([key]) => {
    const instead = ownValue(refused, key);
    return instead === undefined ? [] : [`aws:${key}: the fleet's own calls to AWS can't honour it; ${instead}`];
  });
  const plugin = Object.fromEntries(
    given.filter(([key]) => pluginOnly.has(key)).map(([key, value]) => [key, parsed(value)]),
  );
  const own = given
    .filter(([key]) => !pluginOnly.has(key) && ownValue(refused, key) === undefined)
    .map(([key, value]) => [key, texts.has(key) ? value : parsed(value)] as const);
  const result = schema.safeParse(Object.fromEntries(own), { error: allowedWords });
  for (const issue of result.error?.issues ?? []) problems.push(describe(issue));
  const { accessKey, secretKey } = result.data ?? {};
  if ((accessKey === undefined) !== (secretKey === undefined)) {
    const [there, missing] = accessKey === undefined ? ["secretKey", "accessKey"] : ["accessKey", "secretKey"];
    problems.push(`aws:${missing}: missing, while there is aws:${there}; set both, or none`);
  }
  if (problems.length > 0 || result.data === undefined) throw new WrongAwsAccess(problems.join("\n"));
  const region = result.data.region ?? (env["AWS_REGION"] || env["AWS_DEFAULT_REGION"]);
  if (region === undefined || region === "") return undefined;
  return { ...result.data, region, ...(Object.keys(plugin).length > 0 && { plugin }) };
}

/**
 * Today's access, for a script, in the region that it was started for.
 *
 * @throws Error when no region is said.
 * @throws WrongAwsAccess as `accessFrom`.
 */
export async function currentAccess(env: NodeJS.ProcessEnv = process.env): Promise<AwsAccess> {
  const access = accessFrom(await stackConfiguration("aws"), {
    ...env,
    AWS_REGION: env["AWS_REGION"] || env[regionVariable],
  });
  if (access === undefined) throw new Error(noRegion);
  return { ...access, region: env[regionVariable] || access.region };
}

/** The engine and the CLI hand structures over as JSON. */
function parsed(value: string): unknown {
  try {
    return JSON.parse(value) as unknown;
  } catch {
    return value;
  }
}

function describe(issue: z.core.$ZodIssue): string {
  const [first, ...rest] = issue.path;
  const inner = rest.map((part) => (typeof part === "number" ? `[${part}]` : `.${String(part)}`)).join("");
  // Values stay out of it: they may be secrets.
  if (issue.code !== "unrecognized_keys")
    return `aws:${String(first)}${inner}: not allowed as it is; allowed is ${issue.message}`;
  const where = first === undefined ? "aws" : `aws:${String(first)}${inner}`;
  const unknown = oneLine(issue.keys.map((name) => `'${name}'`).join(", "));
  return `${where}: unknown key ${unknown}; remove it or fix its spelling`;
}
