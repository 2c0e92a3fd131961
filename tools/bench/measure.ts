/** Timing for benchmarks: wall times of commands in turn, compared by the ratio of their medians. */

/** A claim: one duration, or amount of memory, is at most (or at least) so many times another, measured in the same run. */
export interface Claim {
  readonly claim: string;
  /** Default: milliseconds. */
  readonly unit?: "bytes";
  /** One a round. */
  readonly measured: readonly number[];
  /** One a round. */
  readonly baseline: readonly number[];
  /** Bound of median(measured) / median(baseline). */
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

/** The ratio of a claim's medians, and whether it holds. */
export function judge({ measured, baseline, limit }: Claim): { readonly ratio: number; readonly holds: boolean } {
  const ratio = median(measured) / median(baseline);
  return { ratio, holds: "atMost" in limit ? ratio <= limit.atMost : ratio >= limit.atLeast };
}
