/** The passphrase of a checkout's own state: lost, empty, unreadable, wrong; with the real CLI, in a checkout of its own. */
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { ensurePassphrase } from "../../tools/passphrase.ts";
import { setUp } from "../../tools/setup/index.ts";
import { cleanEnvironment, copyOfCheckout, runInCheckout } from "../support/checkoutCopy.ts";

describe("where nothing is encrypted yet", () => {
  let directory: string;
  beforeAll(() => {
    directory = mkdtempSync(join(tmpdir(), "passphrase-"));
    mkdirSync(join(directory, ".fleet"));
  });
  afterAll(() => {
    rmSync(directory, { recursive: true, force: true });
  });
  const path = () => join(directory, ".fleet", "passphrase");
  afterEach(() => {
    rmSync(path(), { recursive: true, force: true });
  });

  it("is made anew, also in the place of an empty one, and a salt that no value needs goes", async () => {
    writeFileSync(path(), "");
    const file = join(directory, "Pulumi.dev.yaml");
    writeFileSync(file, "encryptionsalt: v1:old\nconfig: {}\n");
    await ensurePassphrase(directory, "dev");
    expect(readFileSync(path(), "utf8")).toMatch(/^[\w-]{40,}$/);
    expect(readFileSync(file, "utf8")).toBe("config: {}\n");
  });

  it("is not made where the stack's file has values that are encrypted, and is for another stack", async () => {
    const file = join(directory, "Pulumi.prod.yaml");
    writeFileSync(file, "encryptionsalt: v1:old\nconfig:\n  hcloud:token:\n    secure: v1:x\n");
    await expect(ensurePassphrase(directory, "prod")).rejects.toThrow(
      `${path()} is missing, and with it the only key to the \`secure:\` values in Pulumi.prod.yaml`,
    );
    expect(existsSync(path())).toBe(false);
    await ensurePassphrase(directory, "dev");
    expect(existsSync(path())).toBe(true);
  });

  it("is closed to others where they could read it", async () => {
    writeFileSync(path(), "secret", { mode: 0o644 });
    chmodSync(path(), 0o644);
    await ensurePassphrase(directory, "dev");
    expect(statSync(path()).mode & 0o777).toBe(0o600);
  });

  it("is not made in the place of what can't be read", async () => {
    mkdirSync(path());
    await expect(ensurePassphrase(directory, "dev")).rejects.toThrow(/can't be read .*set PULUMI_CONFIG_PASSPHRASE\.$/);
  });
});

describe("where a stack is encrypted", () => {
  const folder = mkdtempSync(join(tmpdir(), "fleet-passphrase-"));
  const checkout = copyOfCheckout(join(folder, "checkout"));
  const path = join(checkout, ".fleet", "passphrase");
  let env: NodeJS.ProcessEnv;

  const run = (script: string, words: readonly string[], more: NodeJS.ProcessEnv = {}) =>
    runInCheckout(checkout, { ...env, ...more }, [join(checkout, script), ...words]);
  const pulumi = (...words: string[]) => run("tools/run.mjs", ["pulumi", ...words]);

  beforeAll(async () => {
    env = { ...cleanEnvironment((await setUp()).env), PULUMI_HOME: join(folder, "pulumi") };
    for (const stack of ["dev", "prod"]) {
      const { exitCode, output } = await pulumi("stack", "init", stack, "--no-select");
      expect(exitCode, output).toBe(0);
    }
  });
  afterAll(() => {
    rmSync(folder, { recursive: true, force: true });
  });

  const saidOfLoss = (what: string) => `${path} is ${what}, and with it the only key to the state of dev, prod: `;

  it.each([
    ["npm start", "tools/run.mjs", ["start"]],
    ["npm run pulumi -- up", "tools/run.mjs", ["pulumi", "up", "--yes"]],
    ["npm run pulumi -- destroy", "tools/run.mjs", ["pulumi", "destroy", "--yes"]],
    ["npx fleet status", "tools/fleet.mjs", ["status"]],
  ])("%s refuses to go on without it, makes none, and goes on with it", async (_, script, words) => {
    renameSync(path, `${path}.copy`);
    try {
      const { exitCode, output } = await run(script, words);
      expect(exitCode, output).toBe(1);
      expect(output).toContain(saidOfLoss("missing"));
      expect(output).not.toContain("    at ");
      expect(existsSync(path)).toBe(false);
      writeFileSync(path, "");
      expect((await run(script, words)).output).toContain(saidOfLoss("empty"));
    } finally {
      renameSync(`${path}.copy`, path);
    }
  });

  it("is taken from PULUMI_CONFIG_PASSPHRASE, the first way out", async () => {
    const passphrase = readFileSync(path, "utf8");
    renameSync(path, `${path}.copy`);
    try {
      const words = ["pulumi", "config", "set", "--secret", "hcloud:token", "x", "--stack", "dev"];
      const { exitCode, output } = await run("tools/run.mjs", words, { PULUMI_CONFIG_PASSPHRASE: passphrase });
      expect(exitCode, output).toBe(0);
    } finally {
      renameSync(`${path}.copy`, path);
    }
    expect((await pulumi("config", "get", "hcloud:token", "--stack", "dev")).output.trim()).toBe("x");
    await pulumi("config", "rm", "hcloud:token", "--stack", "dev");
  });

  it.each([
    ["npm start", "tools/run.mjs", ["start"]],
    ["npm run pulumi -- preview", "tools/run.mjs", ["pulumi", "preview"]],
  ])("%s says of a wrong one whose it is, and what to do", async (_, script, words) => {
    const { exitCode, output } = await run(script, words, { PULUMI_CONFIG_PASSPHRASE: "wrong" });
    expect(exitCode).not.toBe(0);
    expect(output).toContain(
      "The passphrase in PULUMI_CONFIG_PASSPHRASE is not the one that stack dev is encrypted with: put the right one there",
    );
  });

  it("is no longer needed when the stacks were given up by the commands that are named", async () => {
    rmSync(path);
    const { output } = await run("tools/run.mjs", ["start"]);
    const commands = [...output.matchAll(/`npm run pulumi -- (stack rm [^`]*)`/g)].map(([, words = ""]) =>
      words.split(" "),
    );
    expect(commands).toHaveLength(2);
    for (const words of commands) {
      const removed = await pulumi(...words);
      expect(removed.exitCode, removed.output).toBe(0);
    }
    expect(existsSync(join(checkout, "Pulumi.dev.yaml"))).toBe(true);
    const again = await pulumi("stack", "init", "dev", "--no-select");
    expect(again.exitCode, again.output).toBe(0);
    expect(readFileSync(path, "utf8")).toMatch(/^[\w-]{40,}$/);
  });
});
