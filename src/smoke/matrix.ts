/** The smoke matrix: systems × features × protocols, and the kinds of builds that break in ways of their own. */
import { oneLine } from "../machineText.ts";
import type { BuildMachine, Protocol } from "../nix/buildMachine.ts";
import type { Built, BuildOptions, NotBuilt, SmokeBuilds } from "./builds.ts";
import {
  bigExpression,
  bigMiB,
  failingExpression,
  fixedOutputExpression,
  inputsExpression,
  logLine,
  pairExpression,
  parseBuiltBy,
  smokeExpression,
  type SmokeDerivation,
} from "./derivation.ts";
import type { CaseResult } from "./verdict.ts";

/** What the matrix found. */
export interface MatrixResult {
  readonly cases: readonly CaseResult[];
  /** Throughput of the large output, builder to client. */
  readonly mebibytesPerSecond: number | undefined;
}

/**
 * Runs the whole matrix on one builder, one case after the other, also after one that failed.
 *
 * @param protocols Those that it has to speak.
 */
export async function runMatrix(
  machine: BuildMachine,
  builds: SmokeBuilds,
  protocols: readonly Protocol[],
): Promise<MatrixResult> {
  const cases: CaseResult[] = [];
  const features = [...machine.supportedFeatures].filter((feature) => !machine.mandatoryFeatures.includes(feature));
  for (const protocol of protocols) {
    for (const system of machine.systems) {
      for (const feature of [undefined, ...features]) {
        const name = `${protocol}, ${system}${feature === undefined ? "" : `, feature ${feature}`}`;
        const options = { protocol, system, features: feature === undefined ? [] : [feature] };
        const built = await builds.run(smokeExpression, options);
        cases.push(judge(name, built, ({ nonce, output }) => parseBuiltBy(output).nonce === nonce));
      }
    }
  }
  const system = machine.systems[0] ?? "";
  const run = (expression: (derivation: SmokeDerivation) => string, options?: Omit<BuildOptions, "system">) =>
    builds.run(expression, { ...options, system });

  const inputs = await run(inputsExpression);
  cases.push(judge("inputs: a file of the client and another build", inputs, isTwice));

  const big = await run(bigExpression);
  const mebibytesPerSecond = throughput(big);
  const measured = mebibytesPerSecond === undefined ? {} : { detail: `${mebibytesPerSecond} MiB/s` };
  cases.push({ ...judge(`large output: ${bigMiB} MiB`, big, () => true), ...measured });

  if (machine.maxJobs < 2) {
    cases.push({ name: "two at once", outcome: "skipped", seconds: 0, detail: "it has one slot (maxJobs)" });
  } else {
    const pair = await run(pairExpression);
    cases.push(judge("two at once", pair, ({ outputs }) => overlap(outputs), "its builds ran one after the other"));
  }
  cases.push(judgeFailure(await run(failingExpression)));
  const fixed = await run(fixedOutputExpression);
  cases.push(judge("fixed output", fixed, ({ nonce, output }) => output === `${nonce}\n`));
  return { cases, mebibytesPerSecond };
}

function judge(
  name: string,
  built: Built | NotBuilt,
  isRight: (built: Built) => boolean,
  otherwise = "its output is not what was asked for",
): CaseResult {
  const { seconds } = built;
  if ("reason" in built) return { name, outcome: "failed", seconds, detail: built.reason };
  return isRight(built)
    ? { name, outcome: "passed", seconds }
    : { name, outcome: "failed", seconds, detail: `${otherwise}: ${oneLine(built.output, 200)}` };
}

/** The failing build is right when it fails for its own reason and its log came back. */
function judgeFailure(built: Built | NotBuilt): CaseResult {
  const name = "failing build: its log comes back";
  const { seconds } = built;
  if (!("reason" in built)) return { name, outcome: "failed", seconds, detail: "it succeeded" };
  return built.log.includes(logLine(built.nonce))
    ? { name, outcome: "passed", seconds }
    : { name, outcome: "failed", seconds, detail: `its log did not come back. ${built.reason}` };
}

function isTwice({ nonce, output }: Built): boolean {
  return output.trim() === `${nonce} ${nonce}`;
}

/** MiB per second of what is left when the time in the build is taken off. */
function throughput(big: Built | NotBuilt): number | undefined {
  if ("reason" in big) return undefined;
  const inBuild = Number(big.output.slice(big.output.lastIndexOf(" "))) / 100;
  return Math.round((bigMiB / Math.max(0.01, big.seconds - inBuild)) * 10) / 10;
}

/** Whether two builds, as `START END`, ran at the same time for a while. */
function overlap(outputs: readonly string[]): boolean {
  const [a, b] = outputs.map((output) => output.trim().split(" ").map(Number));
  const [startA = 0, endA = 0] = a ?? [];
  const [startB = 0, endB = 0] = b ?? [];
  return startA < endB && startB < endA;
}
