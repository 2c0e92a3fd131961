/** The oldest Node that has to get as far as fetching another: what `node` is on Debian 11 and Ubuntu 22.04. */
import { join } from "node:path";
import { cached } from "../../tools/setup/cache.ts";
import { run } from "../../tools/setup/commands.ts";

const version = "12.22.12";

/**
 * Fetches it from the npm registry, once for all checkouts.
 *
 * @returns the path of the program, or why it can't be had.
 */
export async function findOldNode(): Promise<{ readonly node?: string; readonly reason?: string }> {
  const name = `node-${process.platform}-${process.arch}`;
  try {
    const program = join("node_modules", name, "bin", "node");
    const directory = await cached(`${name}-v${version}`, [program], async (draft) => {
      const options = ["--ignore-scripts", "--no-audit", "--no-fund", "--prefix", draft];
      await run("npm", ["install", ...options, `${name}@${version}`], { cwd: draft, seconds: 50 });
    });
    return { node: join(directory, program) };
  } catch (error) {
    return {
      reason: `Node ${version} could not be fetched: ${error instanceof Error ? error.message : String(error)}`,
    };
  }
}
