import { resolve } from "node:path";
import { execa } from "execa";
import { expect, it } from "vitest";

const fleet = (...words: string[]) => fleetIn({}, ...words);
const fleetIn = async (env: Record<string, string>, ...words: string[]) => {
  const main = resolve(import.meta.dirname, "../../src/cli/main.ts");
  const { exitCode, stdout, stderr } = await execa(process.execPath, [main, ...words], {
    env,
    reject: false,
    stdin: "ignore",
    timeout: 15_000,
  });
  return { exitCode, stdout, stderr };
};

it.each([
  [["build", "hello.nix", "--remote-store", "x86"], "fleet: put --remote-store before the arguments: fleet build"],
  [["nix", "build", ".#x", "--stack=prod"], "fleet: put --stack before the arguments: fleet nix --stack … build"],
])("says where an option of its own belongs: %j", async (words, said) => {
  const { exitCode, stderr } = await fleet(...words);
  expect(exitCode).toBe(1);
  expect(stderr).toContain(said);
});

it("answers an option that it doesn't know with the option, and not with everything that it knows", async () => {
  const { exitCode, stderr } = await fleet("status", "--nope");
  expect(exitCode).not.toBe(0);
  expect(stderr).toContain("unknown option '--nope'");
  expect(stderr).toContain("npx fleet COMMAND --help");
  expect(stderr).not.toContain("Usage:");
});

it.each([
  ["says on which stack it works under sudo, where the person's selection is not root's", [], true],
  ["says nothing of it where the stack is named", ["--stack", "dev"], false],
])("%s", async (_, words, said) => {
  const env = { SUDO_USER: "alice", PULUMI_STACK: "", PULUMI_BACKEND_URL: "file:///nonexistent" };
  const { stderr } = await fleetIn(env, "status", ...words);
  expect(stderr).toContain("fleet: the outputs of stack 'dev' can't be read");
  expect(/fleet: working on stack 'dev' in .* under sudo .*--stack NAME/.test(stderr)).toBe(said);
});
