import { describe, expect, it } from "vitest";
import { findOrphans } from "../../src/aws/inventory.ts";
import { tags } from "../../src/aws/tags.ts";
import { answeringClient } from "../support/aws/answeringClient.ts";

const own = { [tags.fleet]: "dev", [tags.stack]: "s1" };

describe("what a killed deployment left", () => {
  it("includes the spot request of its instance, but not that of a builder", async () => {
    const spot = (name: string) => ({ InstanceId: `i-${name}`, SpotInstanceRequestId: `sir-${name}` });
    const client = answeringClient({
      DescribeInstancesCommand: { Reservations: [{ Instances: [spot("builder"), spot("left")] }] },
      DescribeSpotInstanceRequestsCommand: {
        SpotInstanceRequests: [spot("builder"), spot("left"), spot("anothers")],
      },
    });
    const orphans = await findOrphans(client, { tags: own, keep: ["i-builder"] });
    expect(orphans.map(({ kind, id }) => `${kind} ${id}`)).toEqual([
      "instance i-left",
      "spot-instances-request sir-left",
    ]);
  });
});
