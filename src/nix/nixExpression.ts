/** Plain data as text in the Nix language, with everything escaped that would end a string or start an expression. */
import { ownValue } from "../record.ts";

/** What can be written: data, an expression as it stands, or a string with expressions inside. */
export type NixValue =
  | string
  | number
  | boolean
  | null
  | readonly NixValue[]
  | NixExpression
  | NixString
  | { readonly [name: string]: NixValue };

/** An expression of the program's own, for instance a variable. Never made from data. */
export class NixExpression {
  readonly text: string;
  constructor(text: string) {
    this.text = text;
  }
}

/** A string of literal parts (escaped) and expressions (interpolated). */
export class NixString {
  readonly parts: readonly (string | NixExpression)[];
  constructor(parts: readonly (string | NixExpression)[]) {
    this.parts = parts;
  }
}

/**
 * The value as a Nix expression, laid out like nixfmt's: two spaces, an element or attribute a line.
 *
 * @param indent spaces before every line but the first
 * @throws RangeError for a number that Nix has no literal for
 */
export function renderNix(value: NixValue, indent = ""): string {
  if (value === null) return "null";
  if (typeof value === "string") return renderString([value], indent);
  if (typeof value === "boolean") return String(value);
  if (typeof value === "number") return renderNumber(value);
  if (value instanceof NixExpression) return value.text;
  if (value instanceof NixString) return renderString(value.parts, indent);
  const inner = `${indent}  `;
  if (isList(value)) {
    if (value.length === 0) return "[ ]";
    const elements = value.map((element) => `${inner}${renderElement(element, inner)}\n`);
    return `[\n${elements.join("")}${indent}]`;
  }
  const attributes = Object.entries(value).map(
    ([name, v]) => `${inner}${attributeName(name)} = ${renderNix(v, inner)};\n`,
  );
  return attributes.length === 0 ? "{ }" : `{\n${attributes.join("")}${indent}}`;
}

/** A name as it stands left of `=`: quoted unless it is an identifier. */
function attributeName(name: string): string {
  return /^[a-zA-Z_][a-zA-Z0-9_'-]*$/.test(name) && !keywords.has(name) ? name : renderQuoted([name]);
}

const keywords = new Set(["assert", "else", "if", "in", "inherit", "let", "or", "rec", "then", "with"]);

function isList(value: NixValue): value is readonly NixValue[] {
  return Array.isArray(value);
}

/** Inside a list, anything but a simple value needs parentheses. */
function renderElement(element: NixValue, indent: string): string {
  const text = renderNix(element, indent);
  return element instanceof NixExpression || (typeof element === "number" && element < 0) ? `(${text})` : text;
}

function renderNumber(value: number): string {
  if (Number.isSafeInteger(value)) return String(value);
  throw new RangeError(`Nix has no literal for ${value} here: only whole numbers are written.`);
}

type Parts = readonly (string | NixExpression)[];

/** Several lines stand between '' quotes where that keeps every character, anything else between ". */
function renderString(parts: Parts, indent: string): string {
  const text = parts.map((part) => (typeof part === "string" ? part : "x")).join("");
  const lines = text.split("\n");
  // Nix takes the indentation that all lines share away, so one line must have none.
  const keepsIndentation = lines.some((line) => /^\S/.test(line));
  return lines.length > 2 && text.endsWith("\n") && keepsIndentation && !/[\r\t]|^ +$|''|'\$/m.test(text)
    ? renderIndented(parts, `${indent}  `, indent)
    : renderQuoted(parts);
}

function renderQuoted(parts: Parts): string {
  const escapes: Readonly<Record<string, string>> = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };
  const text = parts.map((part) =>
    typeof part === "string"
      ? part.replace(/["\\$\n\r\t]/g, (character) => ownValue(escapes, character) ?? `\\${character}`)
      : `\${${part.text}}`,
  );
  return `"${text.join("")}"`;
}

function renderIndented(parts: Parts, inner: string, outer: string): string {
  const text = parts
    .map((part) => (typeof part === "string" ? part.replaceAll("$", "''$") : `\${${part.text}}`))
    .join("");
  return `''\n${text.replace(/^(?=.)/gm, inner)}${outer}''`;
}
