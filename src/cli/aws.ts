/** What `npx fleet` does at AWS by itself: proving that nothing is left. The SDK is loaded only for it. */
import { accessFrom, WrongAwsAccess, type AwsAccess } from "../aws/access.ts";
import type { Item } from "../aws/inventory.ts";
import { tags } from "../aws/tags.ts";
import { remainsAdvice } from "./remains.ts";
import { CliError, readConfiguration } from "./stack.ts";

/**
 * How to reach AWS, as the plugin does: by the stack's configuration, else by the environment; `undefined`: neither names a region.
 *
 * @throws CliError for a key that can't be honoured.
 */
export async function findAwsAccess(stack: string): Promise<AwsAccess | undefined> {
  try {
    return accessFrom(await readConfiguration(stack, "aws"));
  } catch (error) {
    throw error instanceof WrongAwsAccess ? new CliError(error.message) : error;
  }
}

/**
 * Asks the API what still carries the fleet's tag, whatever the stack's state says; works without a stack, too.
 *
 * @throws CliError when the API can't be asked.
 */
export async function findAwsRemains(stack: string, access: AwsAccess): Promise<Item[]> {
  const [{ asking, AwsError, ec2Client }, { findTagged }] = await Promise.all([
    import("../aws/api.ts"),
    import("../aws/inventory.ts"),
  ]);
  try {
    return await asking(access.region, () => findTagged(ec2Client(access), { [tags.fleet]: stack }));
  } catch (error) {
    throw error instanceof AwsError ? new CliError(error.message) : error;
  }
}

/** For people. */
export function renderAwsRemains(stack: string, { region }: AwsAccess, left: readonly Item[]): string {
  if (left.length === 0) return `Nothing of fleet ${stack} is left at AWS in ${region}.`;
  const lines = left.map(({ kind, id, name, stack: own }) => {
    return `  ${kind} ${name}${name === id ? "" : ` (${id})`}${own === undefined ? "" : `, stack id ${own}`}`;
  });
  return `Of fleet ${stack} there is still at AWS in ${region}:\n${lines.join("\n")}\n${remainsAdvice}`;
}
