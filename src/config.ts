/** The only reader of the stack's configuration. */
import * as pulumi from "@pulumi/pulumi";
import { parseFleetSpec, type FleetSpec } from "./fleetSpec.ts";

/**
 * The fleet that the stack's configuration describes.
 *
 * @param place What tells this checkout from others on the machine.
 * @throws ConfigurationError naming the key, its value and what is allowed; also for a key that does not exist.
 */
export function readFleetSpec(place: string): FleetSpec {
  const prefix = `${pulumi.getProject()}:`;
  const values = Object.entries(pulumi.runtime.allConfig())
    .filter(([key]) => key.startsWith(prefix))
    .map(([key, text]) => [key.slice(prefix.length), parseValue(text)] as const);
  return parseFleetSpec(pulumi.getStack(), Object.fromEntries(values), place);
}

/** The engine hands strings over as they are and everything else as JSON. */
function parseValue(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return text;
  }
}
