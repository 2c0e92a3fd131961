import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { describe, expect, it } from "vitest";

const checkout = resolve(import.meta.dirname, "../..");

/** Every module that Node loads for the program with this configuration, run against no engine. */
function modulesOf(builders: readonly object[], more: object = {}): string[] {
  const directory = mkdtempSync(join(tmpdir(), "fleet-modules-"));
  try {
    const log = join(directory, "modules");
    // CommonJS and ES modules both come by here.
    const hooks = `
      import { registerHooks } from "node:module";
      import { appendFileSync } from "node:fs";
      registerHooks({ load: (url, context, next) => { appendFileSync(${JSON.stringify(log)}, url + "\\n"); return next(url, context); } });`;
    writeFileSync(join(directory, "hooks.mjs"), hooks);
    const mocks = `
      import * as pulumi from ${JSON.stringify(join(checkout, "node_modules/@pulumi/pulumi/index.js"))};
      await pulumi.runtime.setMocks({
        newResource: ({ name, inputs }) => ({ id: name, state: { ...inputs, publicKeyOpenssh: "ssh-ed25519 AAAA", privateKeyOpenssh: "" } }),
        call: () => ({}),
      }, "nix-builder-fleet", "dev", false, "organization");
      await import(${JSON.stringify(join(checkout, "src/index.ts"))}).catch((error) => { console.log(String(error)); });
      process.exit(0);`;
    writeFileSync(join(directory, "main.mjs"), mocks);
    const config = { builders, ...more };
    // The SDK ends it with an error, because it ends in the middle of a deployment; what was loaded is what counts.
    spawnSync(
      process.execPath,
      ["--disable-warning=ExperimentalWarning", "--import", join(directory, "hooks.mjs"), join(directory, "main.mjs")],
      {
        env: {
          PATH: process.env["PATH"],
          PULUMI_CONFIG: JSON.stringify(
            Object.fromEntries(
              Object.entries(config).map(([key, value]) => [`nix-builder-fleet:${key}`, JSON.stringify(value)]),
            ),
          ),
          HCLOUD_TOKEN: "t",
          AWS_REGION: "eu-central-1",
          AWS_ACCESS_KEY_ID: "k",
          AWS_SECRET_ACCESS_KEY: "s",
          // Nobody listens there.
          AWS_ENDPOINT_URL: "http://127.0.0.1:9",
        },
        timeout: 60_000,
        stdio: ["ignore", "pipe", "pipe"],
      },
    );
    return readFileSync(log, "utf8").split("\n");
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

const existing = {
  name: "own",
  provider: "existing",
  system: "x86_64-linux",
  address: "127.0.0.9",
  hostKey: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPIQCZc54poJ8vqawd8TraNryQeJnvH1eLpIDgbiqymM",
};
const access = { allowedCidrs: ["127.0.0.0/8"] };
const clouds = /node_modules\/(@pulumi\/(aws|hcloud)|@aws-sdk|@smithy)\//;

describe("what the program loads", { timeout: 60_000 }, () => {
  it("has nothing of a cloud in it when the fleet uses none", () => {
    const modules = modulesOf([existing]);
    expect(modules.some((url) => url.endsWith("components/builderFleet.ts"))).toBe(true);
    expect(modules.some((url) => url.includes("@pulumi/command/"))).toBe(true);
    expect(modules.filter((url) => clouds.test(url))).toEqual([]);
  });

  it("has of Hetzner's package what a fleet there needs, and nothing of AWS", () => {
    const hetzner = { name: "h", provider: "hcloud", system: "aarch64-linux", candidates: ["cax11@fsn1"] };
    const loaded = modulesOf([hetzner], { access }).filter((url) => clouds.test(url));
    expect(loaded.some((url) => url.includes("@pulumi/hcloud/"))).toBe(true);
    expect(loaded.filter((url) => /\/@(pulumi\/aws|aws-sdk)\//.test(url))).toEqual([]);
  });
});

describe("@pulumi/aws", () => {
  it("is loaded by file: a few of its thousand modules", () => {
    const directory = mkdtempSync(join(tmpdir(), "fleet-modules-"));
    const script = `
      import { registerHooks } from "node:module";
      let count = 0;
      registerHooks({ load: (url, context, next) => { if (url.includes("/@pulumi/aws/")) count++; return next(url, context); } });
      await import(${JSON.stringify(join(checkout, "components/machines/aws.ts"))});
      console.log(count);`;
    writeFileSync(join(directory, "count.mjs"), script);
    const count = execFileSync(process.execPath, [join(directory, "count.mjs")], { encoding: "utf8" });
    rmSync(directory, { recursive: true });
    expect(Number(count)).toBeGreaterThan(10);
    expect(Number(count)).toBeLessThan(60);
  });
});
