/** What a schema allows, in words for a person. zod's own words name types of JavaScript; none of them reach anybody. */
import type * as z from "zod";

/**
 * For `safeParse(values, { error: allowedWords })`: what is allowed where a schema has no words for this kind of mistake.
 *
 * A value of another type is refused in the words in which the schema's checks refuse a wrong one: whoever writes 86 for a name needs to
 * know what a name is, not that it is a string.
 */
export function allowedWords(issue: z.core.$ZodRawIssue): string {
  if (issue.code === "unrecognized_keys") return keysOf(issue.inst as z.core.$ZodType | undefined);
  const checks = (issue.inst as Partial<z.core.$ZodType> | undefined)?._zod?.def.checks ?? [];
  for (const check of checks) {
    // Each check says by its type that it knows its own issues only; those that are given words say the same of all.
    const words = (check._zod.def.error as z.core.$ZodErrorMap | undefined)?.(issue);
    if (typeof words === "string") return words;
  }
  return issue.code === "invalid_type" ? (typesInWords.get(issue.expected) ?? otherwise) : otherwise;
}

/** Of a map: the keys that may be in it. */
function keysOf(schema: z.core.$ZodType | undefined): string {
  const def = (schema as z.core.$ZodTypes | undefined)?._zod.def;
  return def?.type === "object" ? Object.keys(def.shape).join(", ") : otherwise;
}

const otherwise = "another value: docs/configuration.md says which";

const typesInWords = new Map<string, string>([
  ["string", "text"],
  ["number", "a number"],
  ["int", "a whole number"],
  ["boolean", "true or false"],
  ["array", "a list, [A, B]"],
  ["object", "keys with values, { KEY: VALUE }"],
  ["record", "keys with values, { KEY: VALUE }"],
]);
