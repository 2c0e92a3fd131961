/**
 * Text that came from a machine: a builder, its console, a cloud's API. Whoever wrote it may mean harm, so none of it may move a
 * person's cursor, hide something, or pass for a line of this program's own.
 *
 * `runProgram` (process.ts) makes text plain where it comes in, and `say`, `complain` and `sayJson` (terminal.ts) once more where it
 * goes out. A message that quotes a machine does so by `oneLine` or `quoted`.
 */

/** Characters of one line that are shown. */
const longestLine = 400;

/** Stands for what was taken out, so that a person sees that something was there. */
const placeholder = "\uFFFD";

/**
 * Sequences for terminals (ECMA-48): control sequences such as colours, strings with their end such as titles and links, and other
 * escapes. Node's `stripVTControlCharacters` takes quadratic time over text that a machine can send, minutes for a megabyte; here no two
 * attempts to match look at the same characters.
 */
const sequences =
  // eslint-disable-next-line no-control-regex -- that is what they are
  /(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x00-\x08\x0a-\x1f\x7f-\x9f]*(?:\x07|\x9c|\x1b\\)|\x1b[ -/]*[0-~]/g;

/**
 * What has no place on a terminal but line end and tab: control characters (C0, DEL, C1), invisible ones (bidirectional overrides, zero
 * width, fillers, variation selectors, tags), separators of lines and paragraphs, private ones and halves of surrogate pairs.
 */
const unfit =
  // eslint-disable-next-line no-control-regex -- that is what they are
  /[\x00-\x08\x0b-\x1f\x7f-\x9f\p{Cf}\p{Zl}\p{Zp}\p{Co}\p{Cs}\p{Default_Ignorable_Code_Point}]+/gu;

/**
 * Text without anything but what can be seen, line ends and tabs. Colours and other sequences for terminals vanish; what else is
 * unfit becomes `\uFFFD`. A carriage return, by which a line overwrites itself, becomes a line end: both texts are seen.
 */
export function plainText(text: string): string {
  return text
    .replaceAll(/\r+\n?/g, "\n")
    .replaceAll(sequences, "")
    .replaceAll(unfit, placeholder);
}

/**
 * Text as part of a sentence: one line, plain.
 *
 * @param most Characters; what is beyond is left out, and said to be.
 */
export function oneLine(text: string, most: number = longestLine): string {
  // What is beyond twice the limit isn't looked at: blanks are all that can be lost.
  return shorten(
    plainText(text.slice(0, 4 * most))
      .replaceAll(/\s+/g, " ")
      .trim(),
    most,
    text.length > 4 * most ? text.length : 0,
  );
}

/**
 * The last lines of a text, each behind a mark: whatever they say, they are not this program's.
 *
 * @param lines How many at most.
 */
export function quoted(text: string, lines = 15): string {
  // From the end, as the reason stands there.
  const end = text.length > 8 * lines * longestLine ? text.slice(-8 * lines * longestLine) : text;
  return plainText(end)
    .split("\n")
    .map((line) => line.trimEnd())
    .filter((line) => line !== "")
    .slice(-lines)
    .map((line) => `${quotationMark}${shorten(line, longestLine)}`)
    .join("\n");
}

/** Stands before each line of a machine's. */
export const quotationMark = "  | ";

/** A message of several lines as it is shown among lines of other origin: all but the first are marked. */
export function asOneMessage(message: string): string {
  const [first = "", ...rest] = plainText(message).split("\n");
  return [first, ...rest.map((line) => (line.startsWith(quotationMark) ? line : `${quotationMark}${line}`))].join("\n");
}

/** JSON that says the same as `JSON.stringify`'s, in characters that are fit for a terminal. */
export function plainJson(value: unknown, indentation = 0): string {
  return JSON.stringify(value, null, indentation).replaceAll(unfit, (characters) =>
    Array.from({ length: characters.length }, (_, index) => {
      return `\\u${characters.charCodeAt(index).toString(16).padStart(4, "0")}`;
    }).join(""),
  );
}

/**
 * Text whose lines are cut where they are longer than a person reads.
 *
 * @param most Characters of a line, of up to three bytes each. Default: 4000.
 */
export function cutLines(text: string, most = 4000): string {
  return text
    .split("\n")
    .map((line) => shorten(line, most))
    .join("\n");
}

function shorten(text: string, most: number, whole = 0): string {
  const length = Math.max(text.length, whole);
  if (length <= most) return text;
  // Not in the middle of a pair.
  const kept = text.slice(0, most).replace(/[\uD800-\uDBFF]$/, "");
  return `${kept}… (${length - kept.length} more characters)`;
}
