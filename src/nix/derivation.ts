/** Reads `.drv` files, as far as it matters for where they are built. The format is the same in all versions of Nix. */
import { InvalidValue } from "./invalidValue.ts";
import type { Requirements } from "./scheduling.ts";
import { ownValue } from "../record.ts";

type Term = string | readonly Term[];

/**
 * What a derivation requires of its builder.
 *
 * @param text Content of the `.drv` file: `Derive([outputs],[inputs],[sources],"system","builder",[args],[environment])`.
 * @throws InvalidValue if it isn't that.
 */
export function parseRequirements(text: string): Requirements {
  const [outputs, , , system, , , environment] = parse(text);
  if (typeof system !== "string" || !Array.isArray(environment) || !Array.isArray(outputs)) throw malformed(text);
  const variables = new Map(
    environment.flatMap((pair: Term) => {
      const [name, value] = Array.isArray(pair) ? (pair as readonly Term[]) : [];
      return typeof name === "string" && typeof value === "string" ? [[name, value] as const] : [];
    }),
  );
  const attributes = structured(variables.get("__json"));
  const features = attributes
    ? words(attributes["requiredSystemFeatures"])
    : (variables.get("requiredSystemFeatures") ?? "").split(/\s+/).filter(Boolean);
  // Without a path and a hash, the output's content decides its path: that is a feature of its own.
  const floating = outputs.some((output: Term) => Array.isArray(output) && output[1] === "" && output[3] === "");
  return {
    system,
    requiredFeatures: [...new Set([...features, ...(floating ? ["ca-derivations"] : [])])],
    preferLocal: attributes ? attributes["preferLocalBuild"] === true : variables.get("preferLocalBuild") === "1",
  };
}

/** One output of a derivation. */
export interface DerivationOutput {
  readonly name: string;
  /** Store path; empty where the content decides it. */
  readonly path: string;
  /** Whether the content's hash is known or decides the path, so that anybody can check it. */
  readonly isContentAddressed: boolean;
}

/**
 * The outputs of a derivation.
 *
 * @param text As for `parseRequirements`; only its beginning is read.
 * @throws InvalidValue if it isn't that.
 */
export function parseOutputs(text: string): DerivationOutput[] {
  const [, list] = /^Derive\(\[(.*?)\],\[/s.exec(text) ?? [];
  if (list === undefined) throw malformed(text);
  return [...list.matchAll(/\("([^"]*)","([^"]*)","([^"]*)","([^"]*)"\)/g)].map(
    ([, name = "", path = "", algorithm = "", hash = ""]) => {
      return { name, path, isContentAddressed: algorithm !== "" || hash !== "" };
    },
  );
}

/** `__structuredAttrs`: all attributes as one JSON text. */
function structured(json: string | undefined): Readonly<Record<string, unknown>> | undefined {
  return json === undefined ? undefined : (JSON.parse(json) as Record<string, unknown>);
}

function words(value: unknown): string[] {
  return Array.isArray(value) ? value.filter((word) => typeof word === "string") : [];
}

/** Lists `[…]` and tuples `(…)` as arrays, strings with their escapes undone. */
function parse(text: string): readonly Term[] {
  const tokens = text.match(/"(?:[^"\\]|\\.)*"|[[\](),]/gs) ?? [];
  const stack: Term[][] = [[]];
  for (const token of tokens) {
    if (token === "[" || token === "(") {
      stack.push([]);
    } else if (token === "]" || token === ")") {
      const done = stack.pop();
      if (done === undefined || stack.length === 0) throw malformed(text);
      stack.at(-1)?.push(done);
    } else if (token !== ",") {
      stack.at(-1)?.push(unescape(token.slice(1, -1)));
    }
  }
  const whole = stack[0]?.[0];
  if (!text.startsWith("Derive(") || typeof whole !== "object") throw malformed(text);
  return whole;
}

function unescape(text: string): string {
  const special: Readonly<Record<string, string>> = { n: "\n", r: "\r", t: "\t" };
  return text.replaceAll(/\\(.)/gs, (_, character: string) => ownValue(special, character) ?? character);
}

function malformed(text: string): InvalidValue {
  return new InvalidValue("derivation", text.slice(0, 40), "the content of a .drv file: Derive(…)");
}
