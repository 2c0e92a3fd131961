/** The only reader of the stack's configuration. */
import * as pulumi from "@pulumi/pulumi";
import { accessVariables as awsVariables, type AwsAccess } from "./aws/access.ts";
import { ConfigurationError, parseFleetSpec, type FleetSpec } from "./fleetSpec.ts";
import { accessVariables } from "./hcloud/access.ts";
import type { HcloudAccess } from "./hcloud/api.ts";

/**
 * The fleet that the stack's configuration describes.
 *
 * @param place What tells this checkout from others on the machine.
 * @param localNix Version of this machine's Nix.
 * @throws ConfigurationError naming the key, its value and what is allowed; also for a key that does not exist.
 */
export function readFleetSpec(place: string, localNix: () => string | undefined): FleetSpec {
  const prefix = `${pulumi.getProject()}:`;
  const values = Object.entries(pulumi.runtime.allConfig())
    .filter(([key]) => key.startsWith(prefix))
    .map(([key, text]) => [key.slice(prefix.length), parseValue(text)] as const);
  return parseFleetSpec(pulumi.getStack(), Object.fromEntries(values), place, localNix);
}

/**
 * How to reach the Hetzner Cloud API: the plugin's own keys, `hcloud:token` and `hcloud:endpoint`, or its variables.
 *
 * @throws ConfigurationError when there is no token.
 */
export function readHcloudAccess(): pulumi.Output<HcloudAccess> {
  const config = new pulumi.Config("hcloud");
  const token = config.get("token") ?? process.env[accessVariables.token];
  const endpoint = config.get("endpoint") ?? process.env[accessVariables.endpoint];
  if (token === undefined || token === "") {
    throw new ConfigurationError(
      "hcloud:token: missing; a builder has the provider hcloud, which needs a token with read and write access: " +
        "`npm run pulumi -- config set --secret hcloud:token …`, or set HCLOUD_TOKEN",
    );
  }
  return pulumi.secret({ token, ...(endpoint !== undefined && endpoint !== "" && { endpoint }) });
}

/**
 * How to reach AWS: the plugin's own keys, `aws:region`, `aws:profile` and so on, or AWS's variables for the region. Where
 * neither has credentials, AWS's SDK looks for them in its usual places.
 *
 * @throws ConfigurationError when there is no region.
 */
export function readAwsAccess(): AwsAccess {
  const config = new pulumi.Config("aws");
  const value = (key: keyof typeof awsVariables): string | undefined => config.get(key) || undefined;
  const region = value("region") ?? (process.env["AWS_REGION"] || process.env["AWS_DEFAULT_REGION"]);
  if (region === undefined || region === "") {
    throw new ConfigurationError(
      "aws:region: missing; a builder has the provider aws, which needs a region: " +
        "`npm run pulumi -- config set aws:region eu-central-1`, or set AWS_REGION",
    );
  }
  const credentials = (["profile", "accessKey", "secretKey", "token"] as const).flatMap((key) => {
    const found = value(key);
    return found === undefined ? [] : [[key, found] as const];
  });
  return { region, ...Object.fromEntries(credentials) };
}

/** The engine hands strings over as they are and everything else as JSON. */
function parseValue(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return text;
  }
}
