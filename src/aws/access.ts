/** Where scripts have the credentials and the region from. */

/** Variables of AWS's own tools, by the plugin's key in the stack's configuration. */
export const accessVariables = {
  region: "AWS_REGION",
  profile: "AWS_PROFILE",
  accessKey: "AWS_ACCESS_KEY_ID",
  secretKey: "AWS_SECRET_ACCESS_KEY",
  token: "AWS_SESSION_TOKEN",
  endpoint: "AWS_ENDPOINT_URL",
} as const;

/** What AWS's SDK is told; where it holds no credentials the SDK looks for them in its usual places. */
export type AwsAccess = { readonly region: string } & {
  readonly [key in Exclude<keyof typeof accessVariables, "region">]?: string;
};

/** Variables for a script that is to have this access. */
export function environmentOf(access: AwsAccess): Record<string, string> {
  const entries = Object.entries(accessVariables).flatMap(([key, variable]) => {
    const value = access[key as keyof AwsAccess];
    return value === undefined ? [] : [[variable, value] as const];
  });
  return Object.fromEntries(entries);
}

/** @throws Error when no region is said. */
export function accessFromEnvironment(env: NodeJS.ProcessEnv = process.env): AwsAccess {
  const region = env[accessVariables.region] ?? env["AWS_DEFAULT_REGION"];
  if (region === undefined || region === "") {
    throw new Error("there is no region; `npm run pulumi -- config set aws:region eu-central-1`, or set AWS_REGION");
  }
  return { region };
}
