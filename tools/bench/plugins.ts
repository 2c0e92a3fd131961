/** How long a substitute of a Pulumi plugin takes until it is ready, against Node alone. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { checkout } from "../launch.mjs";
import { median, time, type Claim } from "./measure.ts";

/** Starts in each round: one takes so short that whatever else the machine does would decide. */
const starts = 7;

/**
 * Measures in `rounds` rounds.
 *
 * @param say Called with a line for each thing measured.
 */
export async function benchPlugins(rounds: number, say: (line: string) => void): Promise<Claim[]> {
  const cache = mkdtempSync(join(tmpdir(), "fleet-bench-"));
  const ready = async (args: readonly string[]): Promise<number> => {
    const env = { ...process.env, NODE_COMPILE_CACHE: cache };
    const child = spawn(process.execPath, args, { env, stdio: ["ignore", "pipe", "inherit"] });
    const milliseconds = await time(() => once(child.stdout, "data"));
    // As the engine ends a plugin: it keeps then what it compiled.
    child.kill("SIGINT");
    if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
    return milliseconds;
  };
  const plugin = (name: string) => [join(checkout, "tools", "plugins", name, "main.ts")];
  const node = ["--eval", "console.log(1); setTimeout(() => undefined, 60_000)"];
  const measured: number[] = [];
  const baseline: number[] = [];
  try {
    // Once uncounted: only then is everything in the compile cache.
    for (const name of ["command", "tls"]) await ready(plugin(name));
    for (let round = 0; round < rounds; round++) {
      const pairs = { plugin: [] as number[], node: [] as number[] };
      for (let start = 0; start < starts; start++) {
        pairs.plugin.push(await ready(plugin(start % 2 === 0 ? "command" : "tls")));
        pairs.node.push(await ready(node));
      }
      measured.push(median(pairs.plugin));
      baseline.push(median(pairs.node));
      say(
        `a substitute is ready: ${median(pairs.plugin).toFixed(0)} ms, Node alone: ${median(pairs.node).toFixed(0)} ms`,
      );
    }
  } finally {
    rmSync(cache, { recursive: true, force: true });
  }
  return [
    {
      claim: "a substitute of a Pulumi plugin is ready, against Node alone",
      measured,
      baseline,
      limit: { atMost: 5 },
    },
  ];
}
