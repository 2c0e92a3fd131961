import { expect, it } from "vitest";
import { judge } from "../../tools/bench/measure.ts";

const claim = { claim: "twice as long", limit: { atMost: 2.5 } };

it("compares within each round, as the machine may be slower in the next", () => {
  // The ratio of the medians would be 3: 6 of the second round, 2 of the first.
  const { ratio, holds } = judge({ ...claim, measured: [4, 6, 9], baseline: [2, 3, 1] });
  expect(ratio).toBe(2);
  expect(holds).toBe(true);
});

it("doesn't hold where a round is missing", () => {
  expect(judge({ ...claim, measured: [4, 6], baseline: [2] }).holds).toBe(false);
});
