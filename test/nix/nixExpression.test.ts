/** Nix text, read by Nix. */
import fc from "fast-check";
import { expect, test } from "vitest";
import { NixExpression, NixString, renderNix, type NixValue } from "../../src/nix/nixExpression.ts";
import { evaluate } from "./realNix.ts";

/** Text full of what means something to Nix. */
const text = fc.string({
  unit: fc.constantFrom(
    "$",
    "{",
    "}",
    '"',
    "'",
    "''",
    "\\",
    "\n",
    "\r",
    "\t",
    " ",
    "a",
    "ü",
    "#",
    ";",
    "${",
    "/*",
    "n",
    "\n\n",
  ),
  maxLength: 12,
});
const { value } = fc.letrec<{ value: NixValue }>((tie) => ({
  value: fc.oneof(
    { depthSize: "small", withCrossShrink: true },
    text,
    fc.integer(),
    fc.boolean(),
    fc.constant(null),
    fc.array(tie("value"), { maxLength: 3 }),
    fc.dictionary(fc.oneof(text, fc.constantFrom("if", "a-b", "or", "__x", "1")), tie("value"), {
      maxKeys: 3,
      noNullPrototype: true,
    }),
  ),
}));

test("any data is the same data to Nix", () => {
  const values = fc.sample(value, { numRuns: 300, seed: 1 });
  expect(evaluate(renderNix(values))).toEqual(values);
});

test("several lines keep every character, with and without '' quotes", () => {
  const lines = fc.array(fc.oneof(text, fc.constantFrom("Host x", "  Port 22", "", "   ", "it's", "''", "'$x")), {
    minLength: 2,
    maxLength: 5,
  });
  const values = fc.sample(
    lines.map((parts) => `${parts.join("\n")}\n`),
    { numRuns: 300, seed: 1 },
  );
  expect(evaluate(renderNix({ nested: values }))).toEqual({ nested: values });
  expect(renderNix("Host x\n  Port 22\n", "  ")).toBe("''\n    Host x\n      Port 22\n  ''");
});

test("an expression of the program's own is evaluated, data around it isn't", () => {
  const variable = new NixExpression("x");
  const nix = renderNix({
    short: new NixString(["${x}", variable, '"']),
    long: new NixString(["a ${x}\n", variable, "\n  b\n"]),
    list: [variable, new NixExpression("1 + 1"), -1],
  });
  expect(evaluate(`let x = "X"; in ${nix}`)).toEqual({ short: '${x}X"', long: "a ${x}\nX\n  b\n", list: ["X", 2, -1] });
});

test("a number without a literal is refused", () => {
  expect(() => renderNix(NaN)).toThrow(RangeError);
  expect(() => renderNix(1e21)).toThrow(RangeError);
});
