/** Timing for benchmarks: wall times of commands in turn, compared round by round. */

/** A claim: one duration, or amount of memory, is at most (or at least) so many times another, measured in the same run. */
export interface Claim {
  readonly claim: string;
  /** Default: milliseconds. */
  readonly unit?: "bytes";
  /** One a round. */
  readonly measured: readonly number[];
  /** One a round. */
  readonly baseline: readonly number[];
  /** Bound of the ratio, see `judge`. */
  readonly limit: { readonly atMost: number } | { readonly atLeast: number };
}

/** Wall time of `work`, in milliseconds. */
export async function time(work: () => Promise<unknown>): Promise<number> {
  const started = performance.now();
  await work();
  return performance.now() - started;
}

/** The middle one, or the mean of the two in the middle. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length / 2;
  return ((sorted[Math.floor(middle)] ?? Number.NaN) + (sorted[Math.ceil(middle) - 1] ?? Number.NaN)) / 2;
}

/**
 * The ratio of a claim, and whether it holds: the median of measured / baseline of each round. The two of a round follow one another, and
 * so have the same machine, whose speed changes from one round to the next where others share it.
 */
export function judge({ measured, baseline, limit }: Claim): { readonly ratio: number; readonly holds: boolean } {
  const ratio = median(measured.map((value, round) => value / (baseline[round] ?? Number.NaN)));
  return { ratio, holds: "atMost" in limit ? ratio <= limit.atMost : ratio >= limit.atLeast };
}
