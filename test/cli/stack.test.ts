import { expect, it } from "vitest";
import { CliError, parseKeys } from "../../src/cli/stack.ts";

const whole = { clientPrivateKey: "k", clientPrivateKeys: {}, adminPrivateKey: "a" };

it("names the outputs that a stack of another version lacks, with what to do", () => {
  expect(parseKeys("dev", whole)).toMatchObject({ ...whole, clientSigningKey: "" });
  const read = () => parseKeys("dev", { ...whole, clientPrivateKeys: null, adminPrivateKey: undefined });
  expect(read).toThrow(CliError);
  expect(read).toThrow(
    /^the outputs of stack 'dev' have no clientPrivateKeys, adminPrivateKey: another version .*; run `npm start`/,
  );
});
