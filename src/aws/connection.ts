/** How AWS's SDK connects: through the person's proxy, to the endpoints of the plugin's configuration, as patiently for every service. */
import { readFileSync } from "node:fs";
import { rootCertificates } from "node:tls";
import type { AwsAccess } from "./access.ts";

/**
 * What a client of any service is made with, but its credentials.
 *
 * @param service As in `aws:endpoints`.
 */
export function clientSettings(access: AwsAccess, service: "ec2" | "sts") {
  const { region, useDualstackEndpoint, useFipsEndpoint } = access;
  const endpoint = access.endpoints?.[service];
  const bundle = access.customCaBundle ?? process.env["AWS_CA_BUNDLE"];
  return {
    region,
    // With growing pauses, up to 20 s: about half a minute in all.
    maxAttempts: 10,
    requestHandler: {
      // The SDK's connections use no proxy by themselves, and those of Node before 22.21 and 24.5 none at all.
      httpsAgent: {
        keepAlive: true,
        proxyEnv: process.env,
        ...(bundle && { ca: [...rootCertificates, readFileSync(bundle, "utf8")] }),
      },
      requestTimeout: 60_000,
      connectionTimeout: 10_000,
      throwOnRequestTimeout: true,
    },
    ...(endpoint !== undefined && { endpoint }),
    ...(useDualstackEndpoint !== undefined && { useDualstackEndpoint }),
    ...(useFipsEndpoint !== undefined && { useFipsEndpoint }),
  };
}
