/** `npm run bench [-- --rounds N]`: what the README claims about time, as ratios measured in one run. */
import { parseArgs } from "node:util";
import Table from "cli-table3";
import { benchAwsStart } from "./bench/aws.ts";
import { benchDeployments } from "./bench/deployments.ts";
import { benchDistance } from "./bench/distance.ts";
import { benchHetzner } from "./bench/hetzner.ts";
import { benchPlugins } from "./bench/plugins.ts";
import { judge, median, type Claim } from "./bench/measure.ts";

const { values } = parseArgs({
  options: { rounds: { type: "string", default: "3" }, help: { type: "boolean", short: "h" } },
});
const rounds = Number(values.rounds);

if (values.help === true || !Number.isInteger(rounds) || rounds < 1) {
  console.log(
    "usage: npm run bench [-- --rounds N]\n\nMeasures each claim in N rounds (default 3): the times are medians, the ratio is the median of the rounds' ratios. Exits with 1 if one does not hold.",
  );
  process.exitCode = values.help === true ? 0 : 2;
} else {
  await bench();
}

async function bench(): Promise<void> {
  const say = (line: string): void => {
    console.error(line);
  };
  const claims = [
    ...(await benchAwsStart(rounds, say)),
    ...(await benchPlugins(rounds, say)),
    ...(await benchDistance(rounds, say)),
    ...(await benchDeployments(rounds, say)),
    ...(await benchHetzner(rounds, say)),
  ];
  const table = new Table({
    head: ["CLAIM", "MEASURED", "BASELINE", "RATIO", "LIMIT", "HOLDS"],
    style: { head: [], border: [] },
  });
  for (const claim of claims) {
    const { ratio, holds } = judge(claim);
    const limit = "atMost" in claim.limit ? `≤ ${claim.limit.atMost}` : `≥ ${claim.limit.atLeast}`;
    table.push([
      claim.claim,
      amount(claim, claim.measured),
      amount(claim, claim.baseline),
      ratio.toFixed(2),
      limit,
      holds ? "yes" : "no",
    ]);
    if (!holds) process.exitCode = 1;
  }
  console.log(table.toString());
}

function amount({ unit }: Claim, values: readonly number[]): string {
  return unit === "bytes" ? `${(median(values) / 2 ** 20).toFixed(0)} MiB` : seconds(values);
}

function seconds(milliseconds: readonly number[]): string {
  return `${(median(milliseconds) / 1000).toFixed(2)} s`;
}
