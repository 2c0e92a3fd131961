/**
 * The EC2 API: moto answers, and behind its instances are real hosts. What moto lacks is added on the way: instances have
 * addresses of this machine, spot instances have requests, the console has text, and there can be faults.
 */
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { setTimeout as delay } from "node:timers/promises";
import { currentRelease, oldestRelease } from "../../../src/nixosRelease.ts";
import { findMoto } from "../../../tools/setup/moto.ts";
import { ownValue } from "../../../src/record.ts";
import { Host } from "../hcloud/host.ts";
import { instanceHost, type Metadata } from "./instance.ts";

/**
 * A request as faults see it: `Action`, the parameters as the query protocol has them, and as `caller` the access key that signed it, empty
 * where none did.
 */
export type Ec2Request = Readonly<Record<string, string>>;

/** What the API answers instead of doing what was asked. */
export interface Refusal {
  readonly code: string;
  readonly message?: string;
  /** Default: 400. */
  readonly status?: number;
}

/** Decides about a request; `undefined`: it is answered as usual. */
export type Fault = (request: Ec2Request) => Refusal | undefined;

/** Releases of NixOS that have images here; those of the second are newer. */
export const releases = [oldestRelease, currentRelease] as const;

/** Networks of all emulated clouds of this process, none twice. */
let nextNetwork = 0;

/** Actions of STS that nobody signs: https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html. */
const unsigned = new Set(["AssumeRoleWithWebIdentity"]);

const instances = (filter: string) => ["DescribeInstances", filter, "instanceId"] as const;

/** Action → what there must be none of, as question, filter and element of the answer, and the parameter that names what is deleted. */
const dependents: Readonly<
  Record<string, readonly [readonly (readonly [action: string, filter: string, element: string])[], id: string]>
> = {
  DeleteVpc: [
    [
      instances("vpc-id"),
      ["DescribeSubnets", "vpc-id", "subnetId"],
      ["DescribeInternetGateways", "attachment.vpc-id", "internetGatewayId"],
      ["DescribeSecurityGroups", "vpc-id", "groupName"],
    ],
    "VpcId",
  ],
  DeleteSubnet: [[instances("subnet-id")], "SubnetId"],
  DeleteSecurityGroup: [[instances("instance.group-id")], "GroupId"],
};

/** An emulated region, eu-central-1, of an account of its own: EC2 and STS. */
export class EmulatedEc2 {
  readonly region = "eu-central-1";
  /** Asked in order about every request. */
  readonly faults: Fault[] = [];
  /** Whether a request is carried out and then never answered: whoever asked is killed before it knows. */
  unanswered: (request: Ec2Request) => boolean = () => false;
  /** Regions that the account hasn't enabled. They know nobody. */
  readonly disabledRegions = new Set<string>();
  /** Access keys that were deactivated. */
  readonly deactivated = new Set<string>();
  /** All requests so far. */
  readonly requests: Ec2Request[] = [];
  /** What is wrong with the instances that start from now on. */
  bootFault: Metadata["fault"];
  /** A range of this machine's loopback addresses for one VPC. */
  readonly ipRange = `127.${10 + (process.pid % 9)}.${((Math.floor(process.pid / 9) * 5 + nextNetwork++) % 60) * 4}.0/22`;
  readonly #directory = mkdtempSync(join(tmpdir(), "fleet-ec2-"));
  readonly #server: Server;
  readonly #hosts = new Map<string, Host>();
  /** Public address as moto has it → an address of this machine. */
  readonly #addresses = new Map<string, string>();
  readonly #publicKeys = new Map<string, string>();
  /** Instance id → id of its spot request. */
  readonly #spot = new Map<string, string>();
  #moto: { readonly process: ChildProcess; readonly url: string } | undefined;

  private constructor() {
    this.#server = createServer((request, response) => void this.#answer(request, response));
  }

  static async start(): Promise<EmulatedEc2> {
    const ec2 = new EmulatedEc2();
    ec2.#server.listen(0, "127.0.0.1");
    await once(ec2.#server, "listening");
    ec2.#moto = await startMoto(ec2.#directory);
    return ec2;
  }

  get endpoint(): string {
    const address = this.#server.address();
    if (address === null || typeof address === "string") throw new Error("not listening");
    return `http://127.0.0.1:${address.port}`;
  }

  /** Environment of whoever works with it. */
  get env(): Readonly<Record<string, string>> {
    return {
      AWS_ENDPOINT_URL: this.endpoint,
      AWS_REGION: this.region,
      AWS_ACCESS_KEY_ID: "AKIATEST",
      AWS_SECRET_ACCESS_KEY: "test",
      AWS_MAX_ATTEMPTS: "4",
      AWS_EC2_METADATA_DISABLED: "true",
      AWS_CONFIG_FILE: "/dev/null",
      AWS_SHARED_CREDENTIALS_FILE: "/dev/null",
    };
  }

  /** What an instance's boot script and services said. */
  log(instance: string): string {
    return this.#hosts.get(instance)?.log ?? "";
  }

  /** Ids of the instances that have a host; those of reservations, and those without user data, have none. */
  get running(): string[] {
    return [...this.#hosts.keys()];
  }

  /** AWS takes an instance away, as it may with spot instances. */
  async interrupt(instance: string): Promise<void> {
    await this.#forward(
      new URLSearchParams({ Action: "TerminateInstances", "InstanceId.1": instance, Version: "2016-11-15" }),
    );
  }

  async stop(): Promise<void> {
    await Promise.all([...this.#hosts.values()].map((host) => host.stop()));
    this.#moto?.process.kill("SIGKILL");
    this.#server.closeAllConnections();
    this.#server.close();
    rmSync(this.#directory, { recursive: true, force: true });
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    try {
      const body = new URLSearchParams(await text(request));
      const [, caller = "", region = ""] =
        /Credential=([^/]+)\/\d+\/([^/]+)/.exec(request.headers.authorization ?? "") ?? [];
      const parameters: Ec2Request = { ...Object.fromEntries(body), caller };
      this.requests.push(parameters);
      const refusal =
        (this.deactivated.has(caller) || this.disabledRegions.has(region) ? unknownCaller(body) : undefined) ??
        this.faults.map((fault) => fault(parameters)).find((one) => one !== undefined);
      const [status, content] =
        refusal === undefined ? await this.#obey(body, request) : [refusal.status ?? 400, errorXml(refusal, body)];
      if (this.unanswered(parameters)) return;
      response.writeHead(status, { "content-type": "text/xml" }).end(content);
    } catch (error) {
      response.writeHead(500).end(errorXml({ code: "InternalError", message: String(error) }));
    }
  }

  /** As EC2 where moto is less strict. */
  async #obey(body: URLSearchParams, request: IncomingMessage): Promise<[number, string]> {
    // https://docs.aws.amazon.com/AWSEC2/latest/APIReference/CommonParameters.html
    if (body.get("DryRun") === "true") {
      return [
        412,
        errorXml({ code: "DryRunOperation", message: "Request would have succeeded, but DryRun flag is set." }),
      ];
    }
    const refusal = await this.#dependents(body);
    return refusal === undefined ? this.#forward(body, request) : [400, errorXml(refusal)];
  }

  /**
   * Nothing is deleted that something is in: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
   * (DependencyViolation), https://docs.aws.amazon.com/vpc/latest/userguide/delete-vpc.html, …/subnet-deleting.html,
   * …/deleting-security-groups.html.
   */
  async #dependents(body: URLSearchParams): Promise<Refusal | undefined> {
    const [filters, id] = ownValue(dependents, body.get("Action") ?? "") ?? [[], ""];
    for (const [Action, name, element] of filters) {
      const asked = new URLSearchParams({ Action, Version: "2016-11-15" });
      asked.set("Filter.1.Name", name);
      asked.set("Filter.1.Value.1", body.get(id) ?? "");
      if (Action === "DescribeInstances") {
        asked.set("Filter.2.Name", "instance-state-name");
        for (const [index, state] of ["pending", "running", "shutting-down", "stopping", "stopped"].entries())
          asked.set(`Filter.2.Value.${index + 1}`, state);
      }
      const [, xml] = await this.#forward(asked);
      if (new RegExp(`<${element}>(?!default<)`).test(xml)) {
        return {
          code: "DependencyViolation",
          message: `${body.get(id) ?? ""} has dependencies and cannot be deleted.`,
        };
      }
    }
    return undefined;
  }

  /** Has moto do it, then makes it so on this machine. */
  async #forward(body: URLSearchParams, request?: IncomingMessage): Promise<[number, string]> {
    if (this.#moto === undefined) throw new Error("moto does not run");
    const action = body.get("Action");
    if (action === "GetConsoleOutput") return [200, this.#console(body.get("InstanceId") ?? "")];
    if (action === "CancelSpotInstanceRequests") {
      const id = body.get("SpotInstanceRequestId.1") ?? "";
      const item = `<item><spotInstanceRequestId>${id}</spotInstanceRequestId><state>cancelled</state></item>`;
      return [200, answerXml(action, `<spotInstanceRequestSet>${item}</spotInstanceRequestSet>`)];
    }
    if (action === "DescribeSpotInstanceRequests") return [200, this.#spotRequests(body)];
    const signed =
      request?.headers.authorization ??
      `AWS4-HMAC-SHA256 Credential=AKIATEST/20260101/${this.region}/ec2/aws4_request, SignedHeaders=host, Signature=0`;
    const answer = await fetch(`${this.#moto.url}${request?.url ?? "/"}`, {
      method: "POST",
      headers: {
        ...(!unsigned.has(action ?? "") && { authorization: signed }),
        "content-type": "application/x-www-form-urlencoded",
      },
      body: body.toString(),
    });
    const xml = await answer.text();
    if (!answer.ok) {
      // What moto itself stumbles over it says in HTML; EC2 would say so in its own words, and be asked again.
      if (!/^\s*<(!doctype )?html/i.test(xml)) return [answer.status, xml];
      return [500, errorXml({ code: "InternalError", message: `${action ?? ""} failed` })];
    }
    if (action === "ImportKeyPair") {
      const material = Buffer.from(body.get("PublicKeyMaterial") ?? "", "base64").toString();
      this.#publicKeys.set(body.get("KeyName") ?? "", material);
    }
    if (action === "RunInstances") await this.#run(body, xml);
    if (action === "TerminateInstances") {
      for (const [key, id] of body) if (key.startsWith("InstanceId.")) await this.#end(id);
    }
    return [answer.status, this.#onThisMachine(action, xml)];
  }

  async #run(body: URLSearchParams, xml: string): Promise<void> {
    const id = first(xml, "instanceId");
    const [, described] = await this.#forward(
      new URLSearchParams({ Action: "DescribeInstances", "InstanceId.1": id, Version: "2016-11-15" }),
    );
    const publicAddress = /<ipAddress>([\d.]+)</.exec(described)?.[1];
    if (publicAddress !== undefined) this.#addresses.set(publicAddress, first(described, "privateIpAddress"));
    if (body.get("InstanceMarketOptions.MarketType") === "spot") this.#spot.set(id, `sir-${id.slice(-8)}`);
    // Without user data it is a test's own.
    if ([...body.values()].includes("nix-builder-fleet.role") || !body.has("UserData")) return;
    const options = instanceHost({
      userData: Buffer.from(body.get("UserData") ?? "", "base64").toString(),
      publicKey: this.#publicKeys.get(body.get("KeyName") ?? "") ?? "",
      address: first(xml, "privateIpAddress"),
      hostName: id,
      arm: /^[a-z]+\d+g/.test(body.get("InstanceType") ?? ""),
      fault: this.bootFault,
    });
    this.#hosts.set(id, new Host(options));
  }

  async #end(id: string): Promise<void> {
    const host = this.#hosts.get(id);
    this.#hosts.delete(id);
    this.#spot.delete(id);
    await host?.stop();
  }

  /** Public addresses become the private ones, which this machine has; spot instances are known as such. */
  #onThisMachine(action: string | null, xml: string): string {
    for (const [publicAddress, address] of this.#addresses) xml = xml.replaceAll(publicAddress, address);
    if (action !== "DescribeInstances") return xml;
    for (const [id, request] of this.#spot) {
      xml = xml.replaceAll(
        `<instanceId>${id}</instanceId>`,
        `$&<spotInstanceRequestId>${request}</spotInstanceRequestId>`,
      );
    }
    return xml;
  }

  #console(id: string): string {
    const host = this.#hosts.get(id);
    const file = host === undefined ? "" : join(host.directory, "console");
    const output = existsSync(file) ? readFileSync(file).toString("base64") : "";
    return answerXml("GetConsoleOutput", `<instanceId>${id}</instanceId><output>${output}</output>`);
  }

  #spotRequests(body: URLSearchParams): string {
    const wanted = [...body].filter(([key]) => key.startsWith("SpotInstanceRequestId.")).map(([, id]) => id);
    const items = [...this.#spot]
      .filter(([, id]) => wanted.length === 0 || wanted.includes(id))
      .map(
        ([instance, id]) =>
          `<item><spotInstanceRequestId>${id}</spotInstanceRequestId><type>one-time</type><state>active</state>` +
          `<status><code>fulfilled</code></status><instanceId>${instance}</instanceId>` +
          "<instanceInterruptionBehavior>terminate</instanceInterruptionBehavior></item>",
      );
    return answerXml(
      "DescribeSpotInstanceRequests",
      `<spotInstanceRequestSet>${items.join("")}</spotInstanceRequestSet>`,
    );
  }
}

/** The text of the first element of this name. */
function first(xml: string, element: string): string {
  const found = new RegExp(`<${element}>([^<]*)<`).exec(xml)?.[1];
  if (found === undefined) throw new Error(`no ${element} in ${xml}`);
  return found;
}

function answerXml(action: string, content: string): string {
  const name = `${action}Response`;
  return `<${name} xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>r</requestId>${content}</${name}>`;
}

/**
 * EC2 and STS say it in different words: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html,
 * https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html.
 */
function unknownCaller(body: URLSearchParams): Refusal {
  return isSts(body)
    ? { code: "InvalidClientTokenId", message: "The security token included in the request is invalid.", status: 403 }
    : { code: "AuthFailure", message: "AWS was not able to validate the provided access credentials", status: 401 };
}

function isSts(body: URLSearchParams): boolean {
  return body.get("Version") === "2011-06-15";
}

function errorXml({ code, message }: Refusal, body = new URLSearchParams()): string {
  if (isSts(body)) {
    return `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>${code}</Code><Message>${message ?? code}</Message></Error><RequestId>r</RequestId></ErrorResponse>`;
  }
  return `<?xml version="1.0" encoding="UTF-8"?><Response><Errors><Error><Code>${code}</Code><Message>${message ?? code}</Message></Error></Errors><RequestID>r</RequestID></Response>`;
}

/** Starts moto with NixOS's images; it dies with this process. */
async function startMoto(directory: string): Promise<{ process: ChildProcess; url: string }> {
  const { python, path } = await findMoto();
  const images = releases.flatMap((release, index) =>
    ["x86_64", "arm64"].map((architecture) => ({
      ami_id: `ami-${architecture === "arm64" ? "a" : "b"}000000000000${index}000`,
      name: `nixos/${release}.1234.abcdef-${architecture === "arm64" ? "aarch64" : "x86_64"}-linux`,
      owner_id: "427812963091",
      architecture,
      description: "NixOS",
      public: true,
      state: "available",
      virtualization_type: "hvm",
      hypervisor: "xen",
      image_type: "machine",
      root_device_type: "ebs",
      root_device_name: "/dev/xvda",
      creation_date: `2026-0${index + 1}-01T00:00:00.000Z`,
    })),
  );
  const file = join(directory, "amis.json");
  writeFileSync(file, JSON.stringify(images));
  const args = ["--pdeathsig", "KILL", python, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"];
  const moto = spawn("setpriv", args, {
    env: { PATH: process.env["PATH"], PYTHONPATH: path, MOTO_AMIS_PATH: file },
    stdio: ["ignore", "ignore", "pipe"],
  });
  let said = "";
  const url = await new Promise<string>((resolve, reject) => {
    moto.stderr.on("data", (chunk: Buffer) => {
      said += String(chunk);
      const found = /Running on (http:\/\/127\.0\.0\.1:\d+)/.exec(said)?.[1];
      if (found !== undefined) resolve(found);
    });
    moto.once("exit", () => {
      reject(new Error(`moto did not start: ${said}`));
    });
    void delay(60_000, undefined, { ref: false }).then(() => {
      reject(new Error(`moto did not start in a minute: ${said}`));
    });
  });
  return { process: moto, url };
}
