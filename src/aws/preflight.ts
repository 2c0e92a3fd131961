/** All that is asked of AWS before anything is made: who asks, what there is, and what would be refused. */
import { GetCallerIdentityCommand, STSClient } from "@aws-sdk/client-sts";
import type { AwsBuilderSpec, FleetSpec } from "../fleetSpec.ts";
import type { AwsAccess } from "./access.ts";
import { asking, AwsError, ec2Client, isRefusal } from "./api.ts";
import { clientSettings } from "./connection.ts";
import { credentialsOf, sessionEnd } from "./credentials.ts";
import { lookUp, type AwsLookup } from "./lookup.ts";
import { NotAtAws, originOf } from "./origin.ts";
import { checkPermissions } from "./permissions.ts";
import { startOf } from "./placement.ts";
import { tags } from "./tags.ts";

/** A session that can't be renewed has to last so long at least, in minutes. */
const shortest = 10;

/**
 * Looks at AWS as `lookUp` does. Where an instance is to be made, it also asks whether all that this takes is allowed.
 *
 * @throws NotAtAws for what the configuration asks for in vain.
 * @throws AwsError where the API refuses or can't be reached, with what is missing.
 */
export async function lookAtAws(access: AwsAccess, spec: FleetSpec): Promise<AwsLookup> {
  const { region } = access;
  const end = sessionEnd(access);
  if (end !== undefined && end.getTime() < Date.now() + shortest * 60_000) {
    throw new NotAtAws(
      `the session of the credentials in the environment ends at ${end.toISOString()} (AWS_CREDENTIAL_EXPIRATION), and a deployment may ` +
        "outlast it; renew them first",
    );
  }
  await checkAccount(access);
  const ec2 = ec2Client(access);
  const lookup = await lookUp(ec2, spec, region).catch(async (error: unknown) => {
    if (!(error instanceof AwsError) || !isRefusal(error.code) || !(await countElsewhere(access))) throw error;
    throw new AwsError(
      error.code,
      `the account has not enabled the region ${region}: AWS refuses credentials there (${error.code}) that it takes elsewhere; ` +
        "enable it in the console under Account, AWS Regions, or choose another aws:region",
      error,
    );
  });
  const builders = spec.builders.filter((builder) => builder.provider === "aws");
  const missing = builders.find(({ name }) => !lookup.instances.some(({ builder }) => builder === name));
  if (missing !== undefined) {
    await checkPermissions(ec2, region, {
      ownNetwork: !("subnetIds" in spec.aws.network),
      spot: builders.some(({ spot }) => spot),
      start: trialStart(access, spec, missing, lookup),
    });
  }
  return lookup;
}

function trialStart(access: AwsAccess, spec: FleetSpec, builder: AwsBuilderSpec, lookup: AwsLookup) {
  const { image } = originOf(lookup, builder, "");
  const { network } = spec.aws;
  const own = {
    [tags.fleet]: spec.fleet,
    [tags.stack]: "trial",
    [tags.expires]: spec.expires ?? "never",
    [tags.builder]: builder.name,
    [tags.generation]: lookup.nextGeneration,
  };
  const { spot, disk, publicAddress, nestedVirtualization } = builder;
  const wanted = { alias: builder.alias, tags: own, imageId: image, spot, disk, publicAddress, nestedVirtualization };
  return startOf(
    { ...wanted, groupId: "sg-00000000" },
    {
      instanceType: builder.candidates[0] ?? "",
      subnetId: "subnetIds" in network ? (network.subnetIds[0] ?? "") : "subnet-00000000",
    },
    "/dev/xvda",
    access.defaultTags?.tags ?? {},
  );
}

/** The plugin asks the same before it does anything, but only when it is to make something. */
async function checkAccount(access: AwsAccess): Promise<void> {
  const { allowedAccountIds: allowed, forbiddenAccountIds: forbidden, region } = access;
  if (allowed === undefined && forbidden === undefined) return;
  const account = await asking(region, () => accountOf(access));
  if (allowed?.includes(account) === false) {
    throw new NotAtAws(`aws:allowedAccountIds: the credentials are of account ${account}, which is not among them`);
  }
  if (forbidden?.includes(account) === true) {
    throw new NotAtAws(`aws:forbiddenAccountIds: the credentials are of account ${account}, which is one of them`);
  }
}

async function accountOf(access: AwsAccess): Promise<string> {
  const client = new STSClient({ ...clientSettings(access, "sts"), credentials: credentialsOf(access) });
  const { Account = "" } = await client.send(new GetCallerIdentityCommand({}));
  return Account;
}

/**
 * Whether credentials that a region refuses are good in the one that every account has: a region that isn't enabled knows nobody.
 * Source: https://docs.aws.amazon.com/accounts/latest/reference/manage-acct-regions.html.
 */
async function countElsewhere(access: AwsAccess): Promise<boolean> {
  if (access.region === "us-east-1" || /^(cn|us-gov|us-iso\w*|eu-isoe)-/.test(access.region)) return false;
  return accountOf({ ...access, region: "us-east-1" }).then(
    () => true,
    () => false,
  );
}
