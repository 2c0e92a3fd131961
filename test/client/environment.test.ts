/** A client's environment, as real Nix takes it. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { execa } from "execa";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { clientEnvironment } from "../../src/client/environment.ts";
import { asksForLocalBuilds } from "../../src/cli/nix.ts";

let clientDirectory: string;
beforeAll(() => {
  clientDirectory = mkdtempSync(`${tmpdir()}/environment-`);
  writeFileSync(`${clientDirectory}/nix.conf`, "substituters =\n");
});
afterAll(() => {
  rmSync(clientDirectory, { recursive: true });
});

const derivation = (name: string) =>
  `derivation { name = "${name}"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo > $out" ]; }`;

describe("on the machine's own store, where root runs Nix without build users", async () => {
  const { exitCode } = await execa("getent", ["group", "nixbld"], { reject: false });
  const reason = "needs root, and a machine without the group nixbld";
  const skipped = process.getuid?.() !== 0 || exitCode === 0;

  const nix = (program: string, words: readonly string[], localBuilds = false) =>
    execa(program, words, {
      all: true,
      reject: false,
      env: clientEnvironment({ clientDirectory, store: undefined, localBuilds }),
    });

  it("Nix warns of no missing group", async ({ skip }) => {
    skip(skipped, reason);
    const evaluated = await nix("nix-instantiate", ["-E", derivation("quiet")]);
    expect(evaluated).toMatchObject({ exitCode: 0, all: expect.stringContaining("-quiet.drv") as string });
    expect(evaluated.all).not.toContain("nixbld");
    const queried = await nix("nix-store", ["--query", "--outputs", evaluated.stdout]);
    expect(queried).toMatchObject({ exitCode: 0, stderr: "" });
  });

  it("nothing is built as root where a person asks for builds on this machine", async ({ skip }) => {
    skip(skipped, reason);
    const words = ["-E", derivation(`here-${String(Date.now())}`), "--no-out-link", "--max-jobs", "1"];
    const built = await nix("nix-build", words, asksForLocalBuilds(words));
    expect(built.all).toContain("the group 'nixbld' specified in 'build-users-group' does not exist");
    expect(built.exitCode).not.toBe(0);
  });
});

it.each<[string[], boolean]>([
  [["x.nix", "-A", "jobs"], false],
  [["x.nix", "-j4"], true],
  [["x.nix", "-j", "4"], true],
  [["build", ".#x", "--max-jobs", "auto"], true],
  [["x.nix", "--option", "max-jobs", "2"], true],
])("%j ask for builds on this machine: %s", (words, expected) => {
  expect(asksForLocalBuilds(words)).toBe(expected);
});
