/** What `npx fleet` does at AWS by itself: proving that nothing is left. The SDK is loaded only for it. */
import { accessVariables, type AwsAccess } from "../aws/access.ts";
import type { Item } from "../aws/inventory.ts";
import { tags } from "../aws/tags.ts";
import { remainsAdvice } from "./remains.ts";
import { CliError, runPulumi } from "./stack.ts";

/** How to reach AWS, from the environment or else the stack's configuration; `undefined`: neither names a region. */
export async function findAwsAccess(stack: string): Promise<AwsAccess | undefined> {
  const env = process.env;
  const named = env[accessVariables.region] || env["AWS_DEFAULT_REGION"];
  if (named) return { region: named };
  const result = await runPulumi(stack, "config", "--json", "--show-secrets");
  if (result.failed) return undefined;
  const config = JSON.parse(result.stdout) as Record<string, { value?: string } | undefined>;
  const value = (key: string): string | undefined => config[`aws:${key}`]?.value;
  const region = value("region");
  if (region === undefined) return undefined;
  const others = (["profile", "accessKey", "secretKey", "token"] as const).flatMap((key) => {
    const found = value(key);
    return found === undefined ? [] : [[key, found] as const];
  });
  return { region, ...Object.fromEntries(others) };
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
