import { execFile } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { accessFrom, type AwsAccess } from "../../src/aws/access.ts";
import { credentialsOf } from "../../src/aws/credentials.ts";
import { startSts, type EmulatedSts } from "../support/aws/emulatedSts.ts";

const directory = mkdtempSync(join(tmpdir(), "fleet-credentials-"));
const file = (name: string, content: string): string => {
  writeFileSync(join(directory, name), content);
  return join(directory, name);
};
const role = (name: string) => `arn:aws:iam::123456789012:role/${name}`;
const token = file("token", "a token of the provider's\n");
const config = file(
  "config",
  `[profile ours]\naws_access_key_id = AKIAPROFILE\naws_secret_access_key = s\n
[profile process]\ncredential_process = echo '{"Version":1,"AccessKeyId":"AKIAPROCESS","SecretAccessKey":"s"}'\n`,
);
const variables = { AWS_ACCESS_KEY_ID: "AKIAENV", AWS_SECRET_ACCESS_KEY: "s" };
let sts: EmulatedSts;

beforeAll(async () => {
  sts = await startSts();
});
afterAll(() => {
  sts.close();
  rmSync(directory, { recursive: true });
});
beforeEach(() => {
  sts.calls.length = 0;
  for (const name of ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"])
    vi.stubEnv(name, undefined);
  vi.stubEnv("AWS_CONFIG_FILE", "/dev/null");
  vi.stubEnv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null");
  vi.stubEnv("AWS_EC2_METADATA_DISABLED", "true");
});
afterEach(() => {
  vi.unstubAllEnvs();
});

const values = (more: Readonly<Record<string, unknown>>) => ({
  region: "eu-central-1",
  endpoints: JSON.stringify([{ sts: sts.url }]),
  ...Object.fromEntries(
    Object.entries(more).map(([key, value]) => [key, typeof value === "string" ? value : JSON.stringify(value)]),
  ),
});
const keyOf = async (more: Readonly<Record<string, unknown>>): Promise<string> => {
  const { accessKeyId } = await credentialsOf(accessFrom(values(more)) as AwsAccess)();
  return accessKeyId;
};

describe("the one chain of credentials", () => {
  it("takes keys of the configuration before all else, then its profile, then AWS's variables, then AWS_PROFILE", async () => {
    const profile = { profile: "ours", sharedConfigFiles: [config] };
    for (const [name, value] of Object.entries(variables)) vi.stubEnv(name, value);
    expect(await keyOf({ accessKey: "AKIAOWN", secretKey: "s", ...profile })).toBe("AKIAOWN");
    expect(await keyOf(profile)).toBe("AKIAPROFILE");
    vi.stubEnv("AWS_CONFIG_FILE", config);
    vi.stubEnv("AWS_PROFILE", "process");
    // The SDK by itself prefers the profile here, and the plugin the keys.
    expect(await keyOf({})).toBe("AKIAENV");
    vi.stubEnv("AWS_ACCESS_KEY_ID", undefined);
    expect(await keyOf({})).toBe("AKIAPROCESS");
  });

  it("assumes roles one after the other, each with what the one before gave", async () => {
    const assumeRoles = [{ roleArn: role("hub") }, { roleArn: role("builders"), externalId: "x" }];
    expect(await keyOf({ accessKey: "AKIAOWN", secretKey: "s", assumeRoles })).toBe("ASIA-builders");
    expect(sts.calls).toEqual(["AssumeRole hub by AKIAOWN", "AssumeRole builders by ASIA-hub"]);
  });

  it("asks with a web identity's token unsigned, and assumes further roles with what that gave", async () => {
    const assumeRoleWithWebIdentity = { roleArn: role("ci"), webIdentityTokenFile: token };
    expect(await keyOf({ assumeRoleWithWebIdentity, assumeRoles: [{ roleArn: role("builders") }] })).toBe(
      "ASIA-builders",
    );
    expect(sts.calls).toEqual(["AssumeRoleWithWebIdentity ci by nobody", "AssumeRole builders by ASIA-ci"]);
  });

  it("doesn't go on to anybody else's when the configured profile has none", async () => {
    for (const [name, value] of Object.entries(variables)) vi.stubEnv(name, value);
    await expect(keyOf({ profile: "missing", sharedConfigFiles: [config] })).rejects.toThrow(/profile.*missing/);
  });
});

describe("what the plugin runs for its credentials", () => {
  const run = (more: Readonly<Record<string, unknown>>) =>
    promisify(execFile)(
      process.execPath,
      ["--disable-warning=ExperimentalWarning", resolve("src/aws/credentialProcess.ts")],
      { env: { ...process.env, PULUMI_CONFIG: JSON.stringify(values(more)) } },
    );

  it("prints those of the chain, with their end", async () => {
    const { stdout } = await run({
      accessKey: "AKIAOWN",
      secretKey: "s",
      assumeRoles: [{ roleArn: role("builders") }],
    });
    expect(JSON.parse(stdout)).toEqual({
      Version: 1,
      AccessKeyId: "ASIA-builders",
      SecretAccessKey: "s",
      SessionToken: "t",
      Expiration: "2100-01-01T00:00:00.000Z",
    });
  });

  it("says why there are none", async () => {
    await expect(run({ profile: "missing" })).rejects.toMatchObject({
      stdout: "",
      stderr: expect.stringMatching(/^there are no credentials for AWS \(.*missing/) as unknown,
    });
  });
});
