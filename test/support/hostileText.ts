/** What a machine might send to a person's terminal, and how a test finds it there. */
import fc from "fast-check";

/** Text of all that has no place on a terminal, with words between that would pass for this program's. */
export const attack = [
  "\x1b]0;owned\x07\x1b]52;c;b3duZWQ=\x1b\\",
  "\x1b[2J\x1b[1;1H\x1b[31m",
  "\x1bP+q544e\x1b\\\x1bc\x9b5n\x9d0;c1\x9c",
  "\b\b\b\x7f\x07\x00\x0e",
  "\u202eabc\u2066\u200b\u00ad\ufeff\u3164\u{e0041}",
  "\u2028\u2029\u0085",
  "failed\rverified",
  "\n   0.1 s  arm: verified",
].join("");

/** Any text, with much of the unfit in it. */
export const hostileText: fc.Arbitrary<string> = fc
  .array(
    fc.oneof(
      fc.constantFrom("\x1b", "\x1b[", "\x1b]", "\x1bP", "\x9b", "\x9d", "\x9c", "\x1b\\", "\x07", "\r", "\n", "\t"),
      fc.constantFrom(...Array.from("0;?[]m(#Ac \u202e\u2028\u200d\ufe0f\ud800\udc00😀é")),
      fc.string({ unit: "binary", maxLength: 3 }),
      fc.constant(attack),
    ),
    { maxLength: 12 },
  )
  .map((parts) => parts.join(""));

/**
 * The characters of a text that have no place on a terminal, as `U+202E`. Written without the rule that is tested.
 *
 * @param text As bytes: what isn't UTF-8 counts as `not UTF-8`.
 */
export function forbidden(text: string | Buffer): string[] {
  if (typeof text !== "string") {
    try {
      return forbidden(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(text));
    } catch {
      return ["not UTF-8"];
    }
  }
  const bad = Array.from(text)
    .map((character) => character.codePointAt(0) ?? 0)
    .filter(isForbidden);
  return [...new Set(bad)].map((point) => `U+${point.toString(16).toUpperCase().padStart(4, "0")}`);
}

function isForbidden(point: number): boolean {
  const ranges = [
    [0x00, 0x08],
    [0x0b, 0x1f],
    [0x7f, 0x9f],
    [0xad, 0xad],
    [0x61c, 0x61c],
    [0x180e, 0x180e],
    [0x200b, 0x200f],
    [0x2028, 0x202e],
    [0x2060, 0x206f],
    [0x3164, 0x3164],
    [0xd800, 0xdfff],
    [0xfe00, 0xfe0f],
    [0xfeff, 0xfeff],
    [0xe0000, 0xe0fff],
  ] as const;
  return ranges.some(([from, to]) => point >= from && point <= to);
}
