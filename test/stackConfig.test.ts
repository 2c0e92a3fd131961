import { execFile } from "node:child_process";
import { chmodSync, existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join, resolve } from "node:path";
import { promisify } from "node:util";
import { afterEach, beforeEach, describe, expect, it } from "vitest";

let project: string;

beforeEach(() => {
  project = mkdtempSync(join(tmpdir(), "fleet-config-"));
});
afterEach(() => {
  rmSync(project, { recursive: true });
});

/** A CLI that notes that it was asked. */
function cli(script: string): void {
  writeFileSync(join(project, "pulumi"), `#!/bin/sh\necho "$*" >asked\n${script}\n`);
  chmodSync(join(project, "pulumi"), 0o755);
}

/** What a script in the project's folder reads. */
async function read(namespace: string, stack = "dev"): Promise<unknown> {
  const module = JSON.stringify(resolve("src/stackConfig.ts"));
  const script = `import { stackConfiguration } from ${module}; console.log(JSON.stringify(await stackConfiguration("${namespace}")));`;
  const { stdout } = await promisify(execFile)(
    process.execPath,
    ["--disable-warning=ExperimentalWarning", "--input-type=module", "-e", script],
    {
      cwd: project,
      env: { ...process.env, PATH: [project, process.env["PATH"]].join(delimiter), FLEET_STACK: stack },
    },
  );
  return JSON.parse(stdout);
}

const asked = () => existsSync(join(project, "asked"));

describe("the configuration as a script reads it", () => {
  const answer = `echo '{"aws:profile":{"value":"work","secret":false},"aws:token":{"secret":true},"hcloud:token":{"value":"t"},"x:aws":{"value":"1"}}'`;

  it.each([
    ["config:\n  aws:profile: work\n"],
    ["config: { 'aws:profile': work }\n"],
    ["environment:\n  - shared\nconfig: {}\n"],
    [undefined],
  ])("is the CLI's, of one namespace, where the stack's file is %j", async (file) => {
    cli(answer);
    if (file !== undefined) writeFileSync(join(project, "Pulumi.dev.yaml"), file);
    expect(await read("aws")).toEqual({ profile: "work" });
    expect(asked()).toBe(true);
  });

  it("is empty without a question where the stack's file has nothing of it", async () => {
    cli(answer);
    writeFileSync(join(project, "Pulumi.dev.yaml"), "config:\n  nix-builder-fleet:aws: { network: {} }\n");
    expect(await read("aws", "someone/nix-builder-fleet/dev")).toEqual({});
    expect(asked()).toBe(false);
  });

  it("is missed in words", async () => {
    cli("echo 'error: incorrect passphrase' >&2; exit 255");
    await expect(read("hcloud")).rejects.toThrow(
      /the configuration of stack 'dev' can't be read for the key hcloud: error: incorrect passphrase/,
    );
  });
});
