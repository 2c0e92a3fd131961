/** What the doctor finds: one sentence each for what, why it matters and the exact fix. */

/** From nothing to do, to builds that fail. */
export const severities = ["ok", "note", "warning", "error"] as const;

/** One of `severities`. */
export type Severity = (typeof severities)[number];

/** Whose view it is: through the fleet's own files, or as this machine's user or root (its Nix daemon) see it. */
export type View = "fleet" | "user" | "root";

/** One finding. */
export interface Finding {
  readonly view: View;
  /** Name of the builder; `undefined`: about this machine. */
  readonly builder?: string;
  /** What was looked at, in two or three words. */
  readonly check: string;
  readonly severity: Severity;
  /** What was found. */
  readonly what: string;
  /** Why it matters. */
  readonly why?: string;
  /** What to do, to the letter. */
  readonly fix?: string;
}

/** 0: nothing wrong, 1: warnings, 2: errors. */
export function exitCode(findings: readonly Finding[]): number {
  if (findings.some(({ severity }) => severity === "error")) return 2;
  return findings.some(({ severity }) => severity === "warning") ? 1 : 0;
}

/** The findings for people: builder by builder, what is wrong in full. */
export function renderFindings(findings: readonly Finding[]): string {
  const places = new Map<string, Finding[]>();
  for (const finding of findings) {
    const place = finding.builder ?? "this machine";
    places.set(place, [...(places.get(place) ?? []), finding]);
  }
  const blocks = [...places].map(([place, its]) => [place, ...its.flatMap(renderFinding)].join("\n"));
  const count = (severity: Severity): number => findings.filter((finding) => finding.severity === severity).length;
  return [...blocks, `${count("error")} errors, ${count("warning")} warnings, ${count("note")} notes`].join("\n\n");
}

function renderFinding({ view, check, severity, what, why, fix }: Finding): string[] {
  const whose = view === "fleet" ? "" : ` (${view})`;
  return [
    `  ${severity.padEnd(7)}  ${check}${whose}: ${what}`,
    ...(why === undefined ? [] : [`           why: ${why}`]),
    ...(fix === undefined ? [] : [`           fix: ${fix}`]),
  ];
}
