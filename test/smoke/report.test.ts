/** Verdicts for people and for CI systems. */
import { expect, it } from "vitest";
import { renderJUnit, renderVerdicts } from "../../src/smoke/report.ts";
import type { Verdict } from "../../src/smoke/verdict.ts";

const verdicts: Record<string, Verdict> = {
  x86: {
    verified: true,
    alias: "t-x86",
    level: "full",
    seconds: 0.4,
    roundTrip: 0.3,
    mebibytesPerSecond: 66,
    cases: [
      { name: "builds", outcome: "passed", seconds: 0.4 },
      { name: "refuses root", outcome: "skipped", seconds: 0, detail: "it is root" },
      { name: "refuses a shell", outcome: "failed", seconds: 0.1, detail: 'it answered: "<uid=0 & more>"\u0007' },
    ],
  },
  arm: { verified: false, alias: "t-arm", level: "off", seconds: 0, cases: [] },
};

it("JUnit counts each builder's cases, and holds what XML can't", () => {
  expect(renderJUnit(verdicts)).toMatchInlineSnapshot(`
    "<?xml version="1.0" encoding="UTF-8"?>
    <testsuites>
      <testsuite name="x86" tests="3" failures="1" skipped="1" time="0.50">
        <testcase classname="x86" name="builds" time="0.40"/>
        <testcase classname="x86" name="refuses root" time="0.00"><skipped message="it is root"/></testcase>
        <testcase classname="x86" name="refuses a shell" time="0.10"><failure message="it answered: &quot;&lt;uid=0 &amp; more&gt;&quot;�"/></testcase>
      </testsuite>
      <testsuite name="arm" tests="0" failures="0" skipped="0" time="0.00">
      </testsuite>
    </testsuites>
    "
  `);
});

it("the table shows every case, and whether a builder is verified", () => {
  expect(renderVerdicts(verdicts)).toMatchInlineSnapshot(`
    "x86: verified, full, round trip 0.3 ms, 66 MiB/s
      passed    0.4 s  builds
      skipped          refuses root     it is root
      failed    0.1 s  refuses a shell  it answered: "<uid=0 & more>"
    arm: not verified, off"
  `);
});
