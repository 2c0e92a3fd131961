import { once } from "node:events";
import { createServer, type Server } from "node:http";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { asking, AwsError, ec2Client } from "../../src/aws/api.ts";
import { findInstances } from "../../src/aws/inventory.ts";

let server: Server;
let requests: number;
/** Status and code of the answer to a request, by its number; `undefined`: what was asked for. */
let refusal: (number: number) => readonly [status: number, code: string] | undefined;

beforeEach(async () => {
  requests = 0;
  server = createServer((_, response) => {
    const [status, code] = refusal(++requests) ?? [200];
    response.writeHead(status, { "content-type": "text/xml" });
    response.end(
      code === undefined
        ? `<DescribeInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><reservationSet/></DescribeInstancesResponse>`
        : `<Response><Errors><Error><Code>${code}</Code><Message>It said so</Message></Error></Errors><RequestID>r</RequestID></Response>`,
    );
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
});
afterEach(() => {
  server.closeAllConnections();
  server.close();
});

function ask(): Promise<unknown> {
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("not listening");
  const endpoints = { ec2: `http://127.0.0.1:${address.port}` };
  const client = ec2Client({ region: "eu-central-1", accessKey: "k", secretKey: "s", endpoints });
  return asking("eu-central-1", () => findInstances(client, []));
}

describe("a request that AWS fails at", () => {
  it.each([500, 502, 503, 504])("with %i is made again, more than a few times", async (status) => {
    refusal = (number) => (number <= 5 ? [status, "Unavailable"] : undefined);
    expect(await ask()).toEqual([]);
    expect(requests).toBe(6);
  });

  it("for lack of capacity is not: another place may have some", async () => {
    refusal = () => [500, "InsufficientInstanceCapacity"];
    await expect(ask()).rejects.toMatchObject({ code: "InsufficientInstanceCapacity" });
    expect(requests).toBe(1);
  });

  it("for good is AWS's fault, and said to be", async () => {
    const failed = Object.assign(new Error("Service unavailable"), {
      name: "Unavailable",
      $metadata: { httpStatusCode: 503 },
    });
    const asked = asking("eu-central-1", () => Promise.reject(failed));
    await expect(asked).rejects.toThrow(AwsError);
    await expect(asked).rejects.toThrow(
      /^AWS itself failed at a request again and again \(503 Unavailable: Service unavailable\): nothing is wrong here/,
    );
  });
});
