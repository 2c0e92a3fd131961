/**
 * What plugin.ini has the plugin run for its credentials. It prints them in the form of
 * https://docs.aws.amazon.com/sdkref/latest/guide/feature-process-credentials.html.
 *
 * The engine gives a plugin's process today's configuration of its own namespace in PULUMI_CONFIG, at `destroy` as well.
 */
import { runScript } from "../script.ts";
import { sayJson } from "../terminal.ts";
import { accessFrom, noRegion } from "./access.ts";
import { asking } from "./api.ts";
import { credentialsOf } from "./credentials.ts";

await runScript(async () => {
  const values = JSON.parse(process.env["PULUMI_CONFIG"] ?? "{}") as Record<string, string>;
  const access = accessFrom(values);
  if (access === undefined) throw new Error(noRegion);
  const { accessKeyId, secretAccessKey, sessionToken, expiration } = await asking(access.region, credentialsOf(access));
  sayJson(
    {
      Version: 1,
      AccessKeyId: accessKeyId,
      SecretAccessKey: secretAccessKey,
      ...(sessionToken !== undefined && { SessionToken: sessionToken }),
      ...(expiration !== undefined && { Expiration: expiration.toISOString() }),
    },
    0,
  );
});
