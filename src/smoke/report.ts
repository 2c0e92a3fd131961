/** The results of smoke tests, for people (a table) and for CI systems (JUnit). */
import { plainText } from "../machineText.ts";
import type { CaseResult, Verdict } from "./verdict.ts";
import { ownValue } from "../record.ts";

/** The cases of one builder, a line each. */
export function renderCases(cases: readonly CaseResult[]): string {
  const width = Math.max(...cases.map(({ name }) => name.length));
  return cases
    .map(({ name, outcome, seconds, detail = "" }) => {
      const time = outcome === "skipped" ? "" : `${seconds.toFixed(1)} s`;
      return `  ${outcome.padEnd(7)} ${time.padStart(7)}  ${name.padEnd(width)}  ${detail}`.trimEnd();
    })
    .join("\n");
}

/** A fleet's verdicts, one block for each builder. */
export function renderVerdicts(verdicts: Readonly<Record<string, Verdict>>): string {
  return Object.entries(verdicts)
    .map(([name, verdict]) => {
      const facts = [
        verdict.verified ? "verified" : "not verified",
        verdict.level,
        ...(verdict.roundTrip === undefined ? [] : [`round trip ${verdict.roundTrip} ms`]),
        ...(verdict.mebibytesPerSecond === undefined ? [] : [`${verdict.mebibytesPerSecond} MiB/s`]),
        ...(verdict.clockOffset === undefined ? [] : [`clock ${verdict.clockOffset} s off`]),
      ];
      return [`${name}: ${facts.join(", ")}`, ...(verdict.cases.length === 0 ? [] : [renderCases(verdict.cases)])].join(
        "\n",
      );
    })
    .join("\n");
}

/** JUnit XML: a suite for each builder. A builder that isn't verified has a failure. */
export function renderJUnit(verdicts: Readonly<Record<string, Verdict>>): string {
  const suites = Object.entries(verdicts).map(([name, { cases }]) => {
    const count = (outcome: CaseResult["outcome"]) => cases.filter((one) => one.outcome === outcome).length;
    const time = cases.reduce((sum, { seconds }) => sum + seconds, 0).toFixed(2);
    const attributes = `name="${xml(name)}" tests="${cases.length}" failures="${count("failed")}" skipped="${count("skipped")}" time="${time}"`;
    return `  <testsuite ${attributes}>\n${cases.map((one) => testCase(name, one)).join("")}  </testsuite>\n`;
  });
  return `<?xml version="1.0" encoding="UTF-8"?>\n<testsuites>\n${suites.join("")}</testsuites>\n`;
}

function testCase(builder: string, { name, outcome, seconds, detail = "" }: CaseResult): string {
  const head = `    <testcase classname="${xml(builder)}" name="${xml(name)}" time="${seconds.toFixed(2)}"`;
  const text = xml(detail);
  if (outcome === "failed") return `${head}><failure message="${text}"/></testcase>\n`;
  if (outcome === "skipped") return `${head}><skipped message="${text}"/></testcase>\n`;
  return text === "" ? `${head}/>\n` : `${head}><system-out>${text}</system-out></testcase>\n`;
}

/** Text for XML 1.0, without the control characters that it can't hold. */
function xml(text: string): string {
  const entities: Readonly<Record<string, string>> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
  return plainText(text)
    .replaceAll(/[^\t\n\r\u0020-\uD7FF\uE000-\uFFFD]/g, "")
    .replaceAll(/[&<>"]/g, (character) => ownValue(entities, character) ?? "")
    .replaceAll("\n", "&#10;");
}
