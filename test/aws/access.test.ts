import { describe, expect, it } from "vitest";
import { accessFrom, WrongAwsAccess } from "../../src/aws/access.ts";

const none = {};
const region = { region: "eu-central-1" };

describe("the plugin's configuration", () => {
  it("counts before the environment, as for the plugin", () => {
    expect(accessFrom(region, { AWS_REGION: "us-east-1" })).toEqual({ region: "eu-central-1" });
    expect(accessFrom(none, { AWS_REGION: "us-east-1" })).toEqual({ region: "us-east-1" });
    expect(accessFrom(none, { AWS_DEFAULT_REGION: "us-west-2" })).toEqual({ region: "us-west-2" });
    expect(accessFrom({ region: "" }, {})).toBeUndefined();
  });

  it("may have structure, which the engine hands over as JSON", () => {
    const roleArn = "arn:aws:iam::123456789012:role/builders";
    const values = {
      ...region,
      accessKey: "12345",
      secretKey: "67890",
      assumeRoles: JSON.stringify([{ roleArn, duration: "1h30m" }]),
      endpoints: JSON.stringify([{ ec2: "http://127.0.0.1:1" }, { sts: "http://127.0.0.1:2" }]),
      useFipsEndpoint: "true",
      defaultTags: JSON.stringify({ tags: { Owner: "me" } }),
      maxRetries: "3",
    };
    expect(accessFrom(values, {})).toEqual({
      region: "eu-central-1",
      accessKey: "12345",
      secretKey: "67890",
      assumeRoles: [{ roleArn, duration: 5400 }],
      endpoints: { ec2: "http://127.0.0.1:1", sts: "http://127.0.0.1:2" },
      useFipsEndpoint: true,
      defaultTags: { tags: { Owner: "me" } },
      plugin: { maxRetries: 3 },
    });
  });

  it.each([
    [{ httpsProxy: "http://p" }, /^aws:httpsProxy: the fleet's own calls to AWS can't honour it; set HTTPS_PROXY/],
    [{ insecure: "true" }, /^aws:insecure: the fleet's own calls.*aws:customCaBundle/],
    [{ sharedConfigFiles: '["a", "b"]' }, /^aws:sharedConfigFiles: .*a list of one file/],
    [{ assumeRoles: '[{"roleArn": "builders"}]' }, /^aws:assumeRoles\[0\]\.roleArn: .*the ARN of a role/],
    [{ assumeRoles: '[{"roleArm": "x"}]' }, /^aws:assumeRoles\[0\]: unknown key 'roleArm'/m],
    [{ assumeRoleWithWebIdentity: '{"roleArn": "arn:aws:iam::123456789012:role/x"}' }, /either a webIdentityToken or/],
    [{ endpoints: '[{"ec2": "here"}]' }, /^aws:endpoints\[0\]\.ec2: .*a URL/],
    [{ accessKey: "AKIA" }, /^aws:secretKey: missing, while there is aws:accessKey/],
    [{ acessKey: "AKIA" }, /^aws: unknown key 'acessKey'/],
    [{ region: "Frankfurt" }, /^aws:region: .*a region such as eu-central-1/],
  ])("is refused in one sentence: %j", (values, message) => {
    expect(() => accessFrom({ ...region, ...values }, {})).toThrow(WrongAwsAccess);
    expect(() => accessFrom({ ...region, ...values }, {})).toThrow(message);
  });

  it("is not shown when it is refused: it may be a secret", () => {
    expect(() => accessFrom({ ...region, assumeRoleWithWebIdentity: '{"webIdentityToken": 7654321}' }, {})).not.toThrow(
      /7654321/,
    );
  });
});
