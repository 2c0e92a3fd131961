/**
 * What a fleet may ask of EC2: one list, which docs/aws.md has as a policy, and which is asked for before anything is made. A test holds it
 * against the calls of whole deployments, the plugin's included.
 */
import * as sdk from "@aws-sdk/client-ec2";
import { AwsError, asking } from "./api.ts";

/** A fleet as far as it decides what is asked. */
export interface Plan {
  readonly ownNetwork: boolean;
  readonly spot: boolean;
  /** The start of an instance. */
  readonly start: sdk.RunInstancesCommandInput;
}

/** Who needs an action: every fleet, one with a network of its own, one with spot instances. */
type Need = "all" | "own network" | "spot";

/** Input of a trial call, which is answered and not carried out. */
type Trial = object | ((plan: Plan) => object);

/** Ids that nobody has: EC2 looks at permissions before it looks for things. */
const none = {
  group: { GroupId: "sg-00000000" },
  instance: { InstanceIds: ["i-00000000"] },
  vpc: { VpcId: "vpc-00000000" },
  subnet: { SubnetId: "subnet-00000000" },
  table: { RouteTableId: "rtb-00000000" },
  gateway: { InternetGatewayId: "igw-00000000" },
  volume: { VolumeId: "vol-00000000" },
  destination: { DestinationCidrBlock: "0.0.0.0/0" },
  association: { AssociationId: "rtbassoc-00000000" },
  tags: { Resources: ["vpc-00000000"], Tags: [{ Key: "nix-builder-fleet.trial", Value: "" }] },
  rule: { IpPermissions: [{ IpProtocol: "tcp", FromPort: 22, ToPort: 22, IpRanges: [{ CidrIp: "192.0.2.1/32" }] }] },
};
const key = Buffer.from("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPIQCZc54poJ8vqawd8TraNryQeJnvH1eLpIDgbiqymM").toString(
  "base64",
);

/** Action → who needs it, and its trial. The service in front is EC2. */
export const permissions: Readonly<Record<string, readonly [Need, Trial]>> = {
  RunInstances: ["all", ({ start }: Plan) => start],
  TerminateInstances: ["all", none.instance],
  CreateTags: ["all", none.tags],
  DeleteTags: ["all", none.tags],
  DeleteVolume: ["all", none.volume],
  GetConsoleOutput: ["all", { InstanceId: "i-00000000" }],
  ModifyInstanceAttribute: ["all", { InstanceId: "i-00000000", DisableApiTermination: { Value: false } }],
  ImportKeyPair: ["all", { KeyName: "nix-builder-fleet-trial", PublicKeyMaterial: key }],
  DeleteKeyPair: ["all", { KeyName: "nix-builder-fleet-trial" }],
  CreateSecurityGroup: ["all", { ...none.vpc, GroupName: "nix-builder-fleet-trial", Description: "trial" }],
  DeleteSecurityGroup: ["all", none.group],
  AuthorizeSecurityGroupIngress: ["all", { ...none.group, ...none.rule }],
  AuthorizeSecurityGroupEgress: ["all", { ...none.group, ...none.rule }],
  RevokeSecurityGroupIngress: ["all", { ...none.group, ...none.rule }],
  RevokeSecurityGroupEgress: ["all", { ...none.group, ...none.rule }],
  DescribeImages: ["all", {}],
  DescribeInstances: ["all", {}],
  DescribeInstanceAttribute: ["all", { InstanceId: "i-00000000", Attribute: "disableApiTermination" }],
  DescribeInstanceTypeOfferings: ["all", {}],
  DescribeInstanceTypes: ["all", {}],
  DescribeInternetGateways: ["all", {}],
  DescribeKeyPairs: ["all", {}],
  DescribeNetworkInterfaces: ["all", {}],
  DescribeRouteTables: ["all", {}],
  DescribeSecurityGroupRules: ["all", {}],
  DescribeSecurityGroups: ["all", {}],
  DescribeSubnets: ["all", {}],
  DescribeTags: ["all", {}],
  DescribeVolumes: ["all", {}],
  DescribeVpcs: ["all", {}],
  CreateVpc: ["own network", { CidrBlock: "10.65.0.0/16" }],
  DeleteVpc: ["own network", none.vpc],
  DescribeVpcAttribute: ["own network", { ...none.vpc, Attribute: "enableDnsSupport" }],
  DescribeNetworkAcls: ["own network", {}],
  CreateSubnet: ["own network", { ...none.vpc, CidrBlock: "10.65.0.0/18" }],
  DeleteSubnet: ["own network", none.subnet],
  CreateInternetGateway: ["own network", {}],
  AttachInternetGateway: ["own network", { ...none.vpc, ...none.gateway }],
  DetachInternetGateway: ["own network", { ...none.vpc, ...none.gateway }],
  DeleteInternetGateway: ["own network", none.gateway],
  CreateRouteTable: ["own network", none.vpc],
  DeleteRouteTable: ["own network", none.table],
  CreateRoute: ["own network", { ...none.table, ...none.destination, GatewayId: "igw-00000000" }],
  DeleteRoute: ["own network", { ...none.table, ...none.destination }],
  AssociateRouteTable: ["own network", { ...none.table, ...none.subnet }],
  DisassociateRouteTable: ["own network", none.association],
  DescribeSpotInstanceRequests: ["spot", {}],
  CancelSpotInstanceRequests: ["spot", { SpotInstanceRequestIds: ["sir-00000000"] }],
};

/**
 * Asks EC2 which of the actions that a fleet needs it would refuse, by calls that change nothing (`DryRun`).
 *
 * @throws AwsError naming the permissions that are missing, all at once.
 */
export async function checkPermissions(ec2: sdk.EC2Client, region: string, plan: Plan): Promise<void> {
  const needs: readonly Need[] = [
    "all",
    ...(plan.ownNetwork ? (["own network"] as const) : []),
    ...(plan.spot ? (["spot"] as const) : []),
  ];
  const refused = await Promise.all(
    Object.entries(permissions)
      .filter(([, [need]]) => needs.includes(need))
      .map(([action, [, trial]]) =>
        refusalOf(ec2, region, action, typeof trial === "function" ? (trial as (plan: Plan) => object)(plan) : trial),
      ),
  );
  const missing = refused.filter((one) => one !== undefined);
  const [first] = missing;
  if (first === undefined) return;
  throw new AwsError(
    first.error.code,
    `the credentials may not do all that this fleet needs: ${missing.map(({ action }) => `ec2:${action}`).join(", ")} ` +
      `${missing.length === 1 ? "is" : "are"} refused; docs/aws.md has a policy with what is needed. ` +
      `What AWS says of ec2:${first.action}: ${first.error.said}`,
    first.error,
  );
}

async function refusalOf(
  ec2: sdk.EC2Client,
  region: string,
  action: string,
  trial: object,
): Promise<{ readonly action: string; readonly error: AwsError } | undefined> {
  const Command = Reflect.get(sdk, `${action}Command`) as new (input: object) => sdk.DescribeInstancesCommand;
  try {
    await asking(region, () => ec2.send(new Command({ ...trial, DryRun: true })));
    return undefined;
  } catch (error) {
    if (!(error instanceof AwsError)) throw error;
    return error.code === "UnauthorizedOperation" ? { action, error } : undefined;
  }
}
