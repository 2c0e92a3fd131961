/** Where scripts and the CLI have the API's address and token from. */
import type { HcloudAccess } from "./api.ts";

/** Variables as Hetzner's own tools have them. */
export const accessVariables = { token: "HCLOUD_TOKEN", endpoint: "HCLOUD_ENDPOINT" } as const;

/** Names the stack whose servers are meant. */
export const stackVariable = "FLEET_HCLOUD_STACK";

/** @throws Error when there is no token. */
export function accessFromEnvironment(env: NodeJS.ProcessEnv = process.env): HcloudAccess {
  const token = env[accessVariables.token];
  const endpoint = env[accessVariables.endpoint];
  if (token === undefined || token === "") {
    throw new Error(
      "there is no token for the Hetzner Cloud API; `npm run pulumi -- config set --secret hcloud:token …`, or set HCLOUD_TOKEN",
    );
  }
  return { token, ...(endpoint !== undefined && endpoint !== "" && { endpoint }) };
}
