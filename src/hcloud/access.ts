/** Where the program, its scripts and the CLI have the API's address and token from. */
import { stackConfiguration, type ConfigurationValues } from "../stackConfig.ts";
import type { HcloudAccess } from "./api.ts";

/** Variables as Hetzner's own tools have them. */
export const accessVariables = { token: "HCLOUD_TOKEN", endpoint: "HCLOUD_ENDPOINT" } as const;

/** Names the stack whose servers are meant, by the id in its label. */
export const labelVariable = "FLEET_HCLOUD_STACK";

/**
 * As the plugin has it: from the stack's configuration, else from the environment.
 *
 * @param values Of `hcloud:…` in the configuration.
 * @returns `undefined` where there is no token.
 */
export function accessFrom(
  { token = "", endpoint = "" }: ConfigurationValues,
  env: NodeJS.ProcessEnv = process.env,
): HcloudAccess | undefined {
  const wanted = { token: token || env[accessVariables.token], endpoint: endpoint || env[accessVariables.endpoint] };
  if (!wanted.token) return undefined;
  return { token: wanted.token, ...(wanted.endpoint && { endpoint: wanted.endpoint }) };
}

/** Why nothing can be asked of the API. */
export const noToken =
  "there is no token for the Hetzner Cloud API; `npm run pulumi -- config set --secret hcloud:token …`, or set HCLOUD_TOKEN";

/**
 * Today's access, for a script.
 *
 * @throws Error when there is no token.
 */
export async function currentAccess(): Promise<HcloudAccess> {
  const access = accessFrom(await stackConfiguration("hcloud"));
  if (access === undefined) throw new Error(noToken);
  return access;
}
