import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { asOneMessage, oneLine, plainJson, plainText, quoted } from "../src/machineText.ts";
import { forbidden, hostileText } from "./support/hostileText.ts";

describe("plain text", () => {
  it.each([
    ["colours", "\x1b[1;31mred\x1b[0m", "red"],
    ["a title", "\x1b]0;you\x07x", "x"],
    ["a link", "\x1b]8;;http://evil.example\x1b\\text\x1b]8;;\x1b\\", "text"],
    ["what goes to the clipboard", "\x1b]52;c;cm0gLXJm\x1b\\x", "x"],
    ["a device string", "\x1bPq#0\x1b\\x", "x"],
    ["a reset", "\x1bcx", "x"],
    ["the same in C1", "\x9b2Jx\x9d0;t\x9cy", "xy"],
    ["the beginning of a sequence without its end", "\x1b]0;open\nnext", "0;open\nnext"],
    ["a line that overwrites itself", "arm: failed\rarm: verified", "arm: failed\narm: verified"],
    ["line ends of Windows", "a\r\nb\r\r\n", "a\nb\n"],
    ["backspaces", "a\b\bb", "a\uFFFDb"],
    ["directions", "user\u202e\u2066 # admin", "user\uFFFD # admin"],
    ["what can't be seen", "a\u200bb\u00adc\ufe0fd\u3164e\u{e0041}f", "a\uFFFDb\uFFFDc\uFFFDd\uFFFDe\uFFFDf"],
    ["other ends of lines", "a\u2028b\u2029c\u0085d\vf\fg", "a\uFFFDb\uFFFDc\uFFFDd\uFFFDf\uFFFDg"],
    ["what is unfit before an end of line", "a\u202e\n\x07\tb", "a\uFFFD\n\uFFFD\tb"],
    ["half a character", "a\ud83d", "a\uFFFD"],
    ["tabs, letters and signs", "\tä 漢字 é → 😀\n", "\tä 漢字 é → 😀\n"],
  ])("of %s", (_, text, plain) => {
    expect(plainText(text)).toBe(plain);
  });

  it("has nothing unfit in it whatever came, and stays as it is when made again", () => {
    fc.assert(
      fc.property(hostileText, (text) => {
        for (const made of [plainText(text), oneLine(text), quoted(text), asOneMessage(text), plainJson({ text })]) {
          expect(forbidden(made)).toEqual([]);
          expect(plainText(made)).toBe(made);
        }
        expect(oneLine(text)).not.toContain("\n");
      }),
      { numRuns: 2000 },
    );
  });

  it.each(["\x1b[", "\x1b]", "\x9b", "\x9d", "\x1b]8;;", "\x1b[1;", "\x1b(", "\u202e", "\r", " "])(
    "of a megabyte of %j takes no longer than others",
    (part) => {
      const text = part.repeat(2 ** 20 / part.length);
      const started = performance.now();
      plainText(text);
      oneLine(text);
      quoted(text);
      expect(performance.now() - started).toBeLessThan(2000);
    },
  );
});

describe("a quotation", () => {
  it("marks each line, so that none passes for one of this program's", () => {
    expect(quoted("error: x\n\n   2.3 s  arm: verified\n")).toBe("  | error: x\n  |    2.3 s  arm: verified");
  });

  it("is the end of a long text, and of a long line the beginning", () => {
    const text = Array.from({ length: 1e5 }, (_, line) => `${line}`).join("\n");
    expect(quoted(text, 2)).toBe("  | 99998\n  | 99999");
    expect(quoted("y".repeat(1e6)).length).toBeLessThan(500);
    expect(oneLine(`${"x".repeat(1e6)}\nb`)).toMatch(/^x{400}… \(\d+ more characters\)$/);
  });

  it("in a sentence is one line", () => {
    expect(oneLine(" a\n  b\r\nc ")).toBe("a b c");
  });

  it("of a message keeps its first line and marks the others, once", () => {
    expect(asOneMessage("error: no\nb\n  | c")).toBe("error: no\n  | b\n  | c");
  });
});

it("JSON says the same data in characters that are fit to be printed", () => {
  fc.assert(
    fc.property(fc.dictionary(hostileText, hostileText), (data) => {
      expect(JSON.parse(plainJson(data, 2))).toEqual(data);
    }),
  );
});
