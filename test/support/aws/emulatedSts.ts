/** STS as far as a chain of credentials needs it: each role gives keys that have its name. */
import { once } from "node:events";
import { createServer } from "node:http";
import { text } from "node:stream/consumers";

/** A running one. */
export interface EmulatedSts {
  readonly url: string;
  /** `Action role by caller`, in order; `nobody`: it wasn't signed. */
  readonly calls: string[];
  readonly close: () => void;
}

export async function startSts(): Promise<EmulatedSts> {
  const calls: string[] = [];
  const server = createServer((request, response) => {
    void text(request).then((body) => {
      const asked = new URLSearchParams(body);
      const action = asked.get("Action") ?? "";
      const role = asked.get("RoleArn")?.split("/").at(-1) ?? "";
      const caller = /Credential=([^/]+)/.exec(request.headers.authorization ?? "")?.[1] ?? "nobody";
      calls.push(`${action} ${role} by ${caller}`);
      response.writeHead(200, { "content-type": "text/xml" });
      response.end(
        `<${action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><${action}Result><Credentials>` +
          `<AccessKeyId>ASIA-${role}</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>` +
          `<Expiration>2100-01-01T00:00:00Z</Expiration></Credentials></${action}Result></${action}Response>`,
      );
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("not listening");
  return {
    url: `http://127.0.0.1:${address.port}`,
    calls,
    close: () => {
      server.closeAllConnections();
      server.close();
    },
  };
}
