import { DescribeRegionsCommand } from "@aws-sdk/client-ec2";
import { afterEach, expect, it, vi } from "vitest";
import { ec2Client } from "../../src/aws/api.ts";
import { startHttpProxy } from "../support/httpProxy.ts";

afterEach(() => {
  vi.unstubAllEnvs();
});

it("AWS is asked through the person's proxy, as the plugin asks it", async () => {
  const proxy = await startHttpProxy();
  for (const name of ["no_proxy", "NO_PROXY", "HTTPS_PROXY"]) vi.stubEnv(name, undefined);
  vi.stubEnv("https_proxy", proxy.url);
  try {
    const client = ec2Client({ region: "eu-central-1", accessKey: "AKIATEST", secretKey: "test" });
    await expect(client.send(new DescribeRegionsCommand({}))).rejects.toThrow("502 Bad Gateway");
    expect(proxy.asked).toContain("ec2.eu-central-1.amazonaws.com:443");
  } finally {
    proxy.close();
  }
});
