/** The only reader of the stack's configuration. */
import * as pulumi from "@pulumi/pulumi";
import { accessFrom as awsAccessFrom, noRegion, WrongAwsAccess, type AwsAccess } from "./aws/access.ts";
import { ConfigurationError, parseFleetSpec, type FleetSpec } from "./fleetSpec.ts";
import { accessFrom as hcloudAccessFrom } from "./hcloud/access.ts";
import type { ConfigurationValues } from "./stackConfig.ts";

/**
 * The fleet that the stack's configuration describes.
 *
 * @param place What tells this checkout from others on the machine.
 * @param localNix Version of this machine's Nix.
 * @throws ConfigurationError naming the key, its value and what is allowed; also for a key that does not exist.
 */
export function readFleetSpec(place: string, localNix: () => string | undefined): FleetSpec {
  const values = Object.entries(valuesOf(pulumi.getProject())).map(([key, text]) => [key, parseValue(text)] as const);
  return parseFleetSpec(pulumi.getStack(), Object.fromEntries(values), place, localNix);
}

/**
 * How to reach the Hetzner Cloud API: the plugin's own keys, `hcloud:token` and `hcloud:endpoint`, or its variables.
 *
 * @throws ConfigurationError when there is no token.
 */
export function requireHcloudAccess(): void {
  if (hcloudAccessFrom(valuesOf("hcloud")) !== undefined) return;
  throw new ConfigurationError(
    "hcloud:token: missing; a builder has the provider hcloud, which needs a token with read and write access: " +
      "`npm run pulumi -- config set --secret hcloud:token …`, or set HCLOUD_TOKEN",
  );
}

/**
 * How to reach AWS: the plugin's own keys, `aws:region`, `aws:profile` and so on, else AWS's variables.
 *
 * @throws ConfigurationError when there is no region, and for each key that is wrong or can't be honoured.
 */
export function readAwsAccess(): AwsAccess {
  try {
    const access = awsAccessFrom(valuesOf("aws"));
    if (access !== undefined) return access;
  } catch (error) {
    throw error instanceof WrongAwsAccess ? new ConfigurationError(error.message) : error;
  }
  throw new ConfigurationError(noRegion);
}

function valuesOf(namespace: string): ConfigurationValues {
  return Object.fromEntries(
    Object.entries(pulumi.runtime.allConfig()).flatMap(([key, value]) =>
      key.startsWith(`${namespace}:`) ? [[key.slice(namespace.length + 1), value] as const] : [],
    ),
  );
}

/** The engine hands strings over as they are and everything else as JSON. */
function parseValue(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return text;
  }
}
