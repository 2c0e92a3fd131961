/** What a builder at AWS adds to the program's start: its own modules, against the root of @pulumi/aws. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { execa } from "execa";
import { checkout } from "../launch.mjs";
import type { Claim } from "./measure.ts";

/** Modules of @pulumi/aws that the component imports, with the names it takes from them. */
function imports(): { readonly name: string; readonly module: string }[] {
  const text = readFileSync(join(checkout, "components/machines/aws.ts"), "utf8");
  return [...text.matchAll(/^import \{ (\w+) \} from "(@pulumi\/aws\/[^"]+)";$/gm)].map(
    ([, name = "", module = ""]) => ({ name, module }),
  );
}

/** Has the classes from their own files, as the component does. */
const byFile = (): string =>
  imports()
    .map(({ module }) => `await import(${JSON.stringify(module)});`)
    .join("\n");

/** Has the same classes from the package's root. */
const fromRoot = (): string =>
  [
    `const aws = await import("@pulumi/aws");`,
    ...imports().map(({ name, module }) => `aws.${module.split("/")[2] ?? ""}.${name}.name;`),
  ].join("\n");

/**
 * Loads each in a Node of its own, once a round, without a type check (which would make the root cost many seconds).
 *
 * @param say Called with a line for each thing measured.
 */
export async function benchAwsStart(rounds: number, say: (line: string) => void): Promise<Claim[]> {
  const times: { ours: number[]; root: number[] } = { ours: [], root: [] };
  const memory: { ours: number[]; root: number[] } = { ours: [], root: [] };
  const measure = async (name: "ours" | "root", script: string, counts = true): Promise<void> => {
    const started = performance.now();
    const args = [
      "--disable-warning=ExperimentalWarning",
      "--input-type=module",
      "--eval",
      `${script}\nconsole.log(process.resourceUsage().maxRSS);`,
    ];
    const { stdout } = await execa(process.execPath, args, { cwd: checkout });
    if (!counts) return;
    times[name].push(performance.now() - started);
    memory[name].push(Number(stdout) * 1024);
    say(
      `${name === "ours" ? "@pulumi/aws by file" : "@pulumi/aws"}: ${times[name].at(-1)?.toFixed(0) ?? ""} ms, ${stdout} KiB`,
    );
  };
  // Once uncounted: only then are the files in memory, and in Node's compile cache.
  await measure("ours", byFile(), false);
  await measure("root", fromRoot(), false);
  for (let round = 0; round < rounds; round++) {
    await measure("ours", byFile());
    await measure("root", fromRoot());
  }
  return [
    {
      claim: "loading what AWS needs by file, against the root of @pulumi/aws",
      measured: times.ours,
      baseline: times.root,
      limit: { atMost: 1 },
    },
    {
      claim: "peak memory of the same",
      unit: "bytes",
      measured: memory.ours,
      baseline: memory.root,
      limit: { atMost: 0.95 },
    },
  ];
}
