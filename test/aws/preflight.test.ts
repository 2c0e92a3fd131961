import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { accessFrom, type AwsAccess } from "../../src/aws/access.ts";
import { sessionEnd } from "../../src/aws/credentials.ts";
import { lookAtAws } from "../../src/aws/preflight.ts";
import { parseFleetSpec } from "../../src/fleetSpec.ts";

const spec = parseFleetSpec(
  "dev",
  {
    builders: [{ name: "x86", provider: "aws", system: "x86_64-linux", candidates: ["c7i.large"] }],
    access: { allowedCidrs: ["203.0.113.7/32"] },
  },
  "/checkout",
);
/** Nobody listens there. */
const values = { region: "eu-central-1", endpoints: '[{"ec2":"http://127.0.0.1:9","sts":"http://127.0.0.1:9"}]' };
const inMinutes = (minutes: number) => new Date(Date.now() + minutes * 60_000).toISOString();

beforeEach(() => {
  vi.stubEnv("AWS_ACCESS_KEY_ID", "ASIATEST");
  vi.stubEnv("AWS_SECRET_ACCESS_KEY", "s");
  vi.stubEnv("AWS_SESSION_TOKEN", "t");
});
afterEach(() => {
  vi.unstubAllEnvs();
});

describe("a session of the environment", () => {
  it.each([-5, 5])("that ends in %i minutes is refused before AWS is asked", async (minutes) => {
    vi.stubEnv("AWS_CREDENTIAL_EXPIRATION", inMinutes(minutes));
    await expect(lookAtAws(accessFrom(values) as AwsAccess, spec)).rejects.toThrow(
      /^the session of the credentials in the environment ends at .*renew them/,
    );
  });

  it("is none of its business where the configuration has keys, or it has no end", () => {
    vi.stubEnv("AWS_CREDENTIAL_EXPIRATION", inMinutes(5));
    expect(sessionEnd(accessFrom({ ...values, accessKey: "k", secretKey: "s" }) as AwsAccess)).toBeUndefined();
    vi.stubEnv("AWS_CREDENTIAL_EXPIRATION", "");
    expect(sessionEnd(accessFrom(values) as AwsAccess)).toBeUndefined();
  });
});
