import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { asking } from "../../src/aws/api.ts";
import { findInstances } from "../../src/aws/inventory.ts";
import { checkPermissions, permissions } from "../../src/aws/permissions.ts";
import { answeringClient } from "../support/aws/answeringClient.ts";

interface Policy {
  readonly Statement: readonly { readonly Sid: string; readonly Effect: string; readonly Action: readonly string[] }[];
}

const refused = ["UnauthorizedOperation", "You are not authorized to perform this operation."] as const;
const passed = ["DryRunOperation", "Request would have succeeded, but DryRun flag is set."] as const;
const all = Object.fromEntries(Object.keys(permissions).map((action) => [`${action}Command`, passed]));

describe("the policy in docs/aws.md", () => {
  const text = /```json\n([\s\S]*?)\n```/.exec(readFileSync("docs/aws.md", "utf8"))?.[1] ?? "{}";
  const { Statement } = JSON.parse(text) as Policy;

  it.each([
    ["Builders", "all"],
    ["OwnNetwork", "own network"],
    ["Spot", "spot"],
  ])("has in its statement %s what is asked for before anything is made", (sid, need) => {
    const actions = Object.entries(permissions).filter(([, [one]]) => one === need);
    expect(Statement.find(({ Sid }) => Sid === sid)).toMatchObject({
      Effect: "Allow",
      Action: actions.map(([action]) => `ec2:${action}`).toSorted(),
    });
  });
});

describe("what EC2 would refuse", () => {
  const check = (refusals: Record<string, readonly [string, string]>, plan: object = {}) =>
    checkPermissions(answeringClient({}, { ...all, ...refusals }), "eu-central-1", {
      ownNetwork: true,
      spot: true,
      start: { MinCount: 1, MaxCount: 1 },
      ...plan,
    });

  it("is nothing where every trial would have succeeded, or failed for another reason", async () => {
    await check({ TerminateInstancesCommand: ["InvalidInstanceID.NotFound", "The instance ID does not exist"] });
  });

  it("is named all at once, with AWS's own words", async () => {
    await expect(check({ CreateVpcCommand: refused, RunInstancesCommand: refused })).rejects.toThrow(
      "the credentials may not do all that this fleet needs: ec2:RunInstances, ec2:CreateVpc are refused; " +
        "docs/aws.md has a policy with what is needed. What AWS says of ec2:RunInstances: You are not authorized",
    );
  });

  it("doesn't matter where this fleet doesn't need it", async () => {
    await check({ CreateVpcCommand: refused }, { ownNetwork: false });
    await check({ CancelSpotInstanceRequestsCommand: refused }, { spot: false });
  });

  it("ends it at once where the credentials themselves are refused", async () => {
    const client = answeringClient({}, { DescribeInstancesCommand: ["ExpiredToken", "The token has expired"] });
    await expect(asking("eu-central-1", () => findInstances(client, []))).rejects.toThrow(
      /AWS refuses the credentials \(ExpiredToken: The token has expired\).*goes on with the next `up`/,
    );
  });

  it("is said later on with the permission, too, whether AWS names it or not", async () => {
    const said = (message: string) =>
      asking("eu-central-1", () =>
        findInstances(answeringClient({}, { DescribeInstancesCommand: ["UnauthorizedOperation", message] }), []),
      );
    await expect(said("You are not authorized.")).rejects.toThrow("the credentials may not do ec2:DescribeInstances;");
    await expect(said("User: x is not authorized to perform: ec2:CreateTags on resource: y")).rejects.toThrow(
      "the credentials may not do ec2:CreateTags;",
    );
  });
});
