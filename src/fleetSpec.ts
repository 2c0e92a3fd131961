/** What a fleet is, as plain data: the schema of the configuration, and the FleetSpec that alone decides what exists. */
import { createHash } from "node:crypto";
import { isIP } from "node:net";
import * as z from "zod";
import { awsBuilderFields, awsSchema, wrongAwsBuilder } from "./aws/schema.ts";
import type { AwsBuilderFields, AwsFleetSpec } from "./aws/schema.ts";
import { defaultBuildLimits, type BuildLimits } from "./bootstrap/defaults.ts";
import {
  accessSchema,
  expiresSchema,
  hcloudBuilderFields,
  hcloudSchema,
  outsideZone,
  placementGroupSize,
  wrongCandidate,
} from "./hcloud/schema.ts";
import type { AccessSpec, HcloudBuilderFields, HcloudFleetSpec } from "./hcloud/schema.ts";
import {
  checkAlias,
  checkFeature,
  checkHostName,
  checkPath,
  checkSshUser,
  checkSystem,
  largestNumber,
  protocols,
  type BuildMachine,
  type Protocol,
} from "./nix/buildMachine.ts";
import { cachix, checkCache, garnix, type Cache } from "./nix/caches.ts";
import { defaultDirectory } from "./nix/forms.ts";
import { oneLine } from "./machineText.ts";
import { InvalidValue } from "./nix/invalidValue.ts";
import { nixbuildNet } from "./nix/nixbuildNet.ts";
import { profileNames, type Profile } from "./nix/profiles.ts";
import { allowedWords } from "./schemaWords.ts";
import { checkClientKey, checkHostKey } from "./ssh/hostKey.ts";
import { smokeLevels, type SmokeLevel } from "./smoke/verdict.ts";
import { systems, type System } from "./nix/system.ts";
import { oldestForUntrustedRows, trustLevels, type Trust } from "./nix/trust.ts";
import { isAtLeast } from "./nix/version.ts";

/** Where machines come from: one file in `components/machines` for each. */
export const providers = ["local", "existing", "hcloud", "aws"] as const;

/** Port of a local builder's sshd, on a loopback address of its own. */
const localPort = 2222;

const name = z
  .string()
  .regex(/^[a-z]([a-z0-9-]{0,30}[a-z0-9])?$/, "1 to 32 of a-z, 0-9 and '-', a letter first, no '-' last");

const features = z.array(checked(checkFeature), "a list such as [kvm, big-parallel]").default([]);

const port = z.int("a whole number").min(1, "1 to 65535").max(65535, "1 to 65535");

const atLeastOne = z.int("a whole number of at least 1").min(1, "a whole number of at least 1");

const numberForNix = atLeastOne.max(largestNumber, `at most ${largestNumber}`);

const absolutePath = checked(checkPath);

const everyBuilder = {
  name,
  system: z.enum(systems, `one of ${systems.join(", ")}`),
  maxJobs: numberForNix.optional(),
  speedFactor: numberForNix.optional(),
  supportedFeatures: features,
  mandatoryFeatures: features,
  protocol: z.enum(protocols, "ssh-ng or ssh").default("ssh-ng"),
};

const seconds = z
  .int("a whole number of seconds, 0 for no limit")
  .min(0, "0 or more")
  .max(largestNumber, `at most ${largestNumber}`);

/** A builder whose Nix the fleet configures. */
const ownBuilder = {
  ...everyBuilder,
  timeout: seconds.default(defaultBuildLimits.timeout),
  maxSilentTime: seconds.default(defaultBuildLimits.maxSilentTime),
};

const localBuilder = z.strictObject({
  ...ownBuilder,
  provider: z.literal("local"),
  count: atLeastOne.max(64, "at most 64").default(1),
  address: z
    .string()
    .refine((text) => isIP(text) === 4 && text.startsWith("127."), "an IPv4 loopback address, for instance 127.0.0.5")
    .optional(),
  port: port.default(localPort),
});

const existingBuilder = z.strictObject({
  ...everyBuilder,
  provider: z.literal("existing"),
  address: checked(checkHostName),
  port: port.default(22),
  user: checked(checkSshUser).default("nix-builder"),
  hostKey: checked(
    checkHostKey,
    "the host's public key line, 'ssh-ed25519 AAAA…', whole, as /etc/ssh/ssh_host_ed25519_key.pub on the host has it",
  ),
  sshKey: absolutePath.optional(),
});

const localSystems = z.array(checked(checkSystem), "a list of Nix systems such as [x86_64-linux]");

const profile = z.enum(profileNames, `one of ${profileNames.join(", ")}`);

const trust = z.enum(trustLevels, `one of ${trustLevels.join(", ")}`);

const client = z.strictObject({
  name,
  publicKey: checked(
    checkClientKey,
    "a public key line, 'ssh-ed25519 AAAA…', whole, as id_ed25519.pub has it",
  ).optional(),
  profile: profile.optional(),
  localSystems: localSystems.optional(),
  trust: trust.optional(),
});

const service = z.union(
  [
    z.literal("garnix"),
    z.strictObject({ cachix: z.string(), publicKey: z.string().optional() }),
    z.strictObject({ url: z.string(), publicKey: z.string() }),
    z.strictObject({ "nixbuild.net": z.strictObject({ sshKey: absolutePath, speedFactor: numberForNix.optional() }) }),
  ],
  "garnix, { cachix: NAME }, { url: URL, publicKey: KEY }, or { nixbuild.net: { sshKey: PATH } }",
);

const hcloudBuilder = z.strictObject({
  ...ownBuilder,
  provider: z.literal("hcloud"),
  count: atLeastOne.max(64, "at most 64").default(1),
  ...hcloudBuilderFields,
});

const awsBuilder = z.strictObject({
  ...ownBuilder,
  provider: z.literal("aws"),
  count: atLeastOne.max(64, "at most 64").default(1),
  ...awsBuilderFields,
});

const exampleBuilder = "{ name: x86, provider: local, system: x86_64-linux }";

/** The schema of the configuration values; the keys are those of `Pulumi.<stack>.yaml`. */
export const configurationSchema = z.strictObject({
  builders: z
    .array(
      z.discriminatedUnion("provider", [localBuilder, existingBuilder, hcloudBuilder, awsBuilder], {
        error: ({ code }: z.core.$ZodRawIssue) =>
          code === "invalid_type"
            ? `keys with values, for instance ${exampleBuilder}`
            : `one of ${providers.join(", ")}`,
      }),
      `a list of builders, for instance [${exampleBuilder}]`,
    )
    .min(1, `at least one builder, for instance ${exampleBuilder}`),
  clientDirectory: absolutePath.default(defaultDirectory),
  profile: profile.optional(),
  localSystems: localSystems.default([]),
  trust: trust.optional(),
  clients: z.array(client, "a list of clients, for instance [{ name: ci }]").default([]),
  services: z.array(service, "a list of services, for instance [garnix]").default([]),
  smoke: z.enum(smokeLevels, `one of ${smokeLevels.join(", ")}`).default("quick"),
  smokeTimeout: atLeastOne.max(86_400, "at most 86400, a day").default(120),
  access: accessSchema.optional(),
  expires: expiresSchema.optional(),
  hcloud: hcloudSchema.prefault({}),
  aws: awsSchema.prefault({}),
});

/** The configuration after defaults. */
export type Configuration = z.infer<typeof configurationSchema>;

/** What all providers' builders have in common. */
interface BuilderSpecBase {
  /** Name within the fleet, unique; the resource name. */
  readonly name: string;
  /** What clients call it: `<fleet>-<name>`. */
  readonly alias: string;
  readonly system: System;
  /** `undefined`: from its measured size, see `src/bootstrap/defaults.ts`; 1 where the fleet can't measure. */
  readonly maxJobs: number | undefined;
  readonly speedFactor: number | undefined;
  readonly supportedFeatures: readonly string[];
  readonly mandatoryFeatures: readonly string[];
  readonly protocol: Protocol;
}

/** A builder that is an sshd and a Nix store of its own on this machine. */
export interface LocalBuilderSpec extends BuilderSpecBase, BuildLimits {
  readonly provider: "local";
  /** IPv4 loopback address that its sshd listens on. */
  readonly address: string;
  readonly port: number;
}

/** A builder on a host that the person already has. */
export interface ExistingBuilderSpec extends BuilderSpecBase {
  readonly provider: "existing";
  readonly address: string;
  readonly port: number;
  readonly user: string;
  /** OpenSSH public host key line, without comment. */
  readonly hostKey: string;
  /** Path of the private key that the host accepts; `undefined`: the fleet's client key. */
  readonly sshKey: string | undefined;
}

/** A builder that is a server of Hetzner Cloud. */
export interface HcloudBuilderSpec extends BuilderSpecBase, BuildLimits, HcloudBuilderFields {
  readonly provider: "hcloud";
}

/** A builder that is an EC2 instance. */
export interface AwsBuilderSpec extends BuilderSpecBase, BuildLimits, AwsBuilderFields {
  readonly provider: "aws";
}

/** One builder of the fleet. */
export type BuilderSpec = LocalBuilderSpec | ExistingBuilderSpec | HcloudBuilderSpec | AwsBuilderSpec;

/** Somebody who builds through the fleet with a key of their own. */
export interface ClientSpec {
  /** Unique in the fleet. */
  readonly name: string;
  /** OpenSSH public key line, without comment; `undefined`: a key pair is made. */
  readonly publicKey: string | undefined;
  /** Where it differs from the fleet's. */
  readonly profile: Profile | undefined;
  readonly localSystems: readonly string[];
  /** What builders take from it. */
  readonly trust: Trust;
}

/** A whole fleet. */
export interface FleetSpec {
  /** The fleet's name: that of the stack. */
  readonly fleet: string;
  readonly builders: readonly BuilderSpec[];
  /** Where clients keep the emitted files; paths in the stack's outputs point there. */
  readonly clientDirectory: string;
  /** What clients leave to the fleet; `undefined`: their own `max-jobs` stays as it is. */
  readonly profile: Profile | undefined;
  /** Systems that clients build for themselves under the profile `local-first`. */
  readonly localSystems: readonly string[];
  /** What builders take from the client whose key everybody can have from the outputs. */
  readonly trust: Trust;
  /** Clients with keys of their own, beside the one whose key everybody can have from the outputs. */
  readonly clients: readonly ClientSpec[];
  /** Binary caches that clients use beside the fleet. */
  readonly caches: readonly Cache[];
  /** Builders of services, as ordinary rows beside the fleet's own; the fleet neither makes nor tests them. */
  readonly serviceBuilders: readonly BuildMachine[];
  /** Sessions that every builder's sshd allows on one connection; `undefined`: not known of all, so sshd's default of 10 holds. */
  readonly maxSessions: number | undefined;
  /** How much the smoke test proves of each builder. */
  readonly smoke: SmokeLevel;
  /** Seconds that a builder may take until it answers and has built the smoke test. */
  readonly smokeTimeout: number;
  /** Who may reach cloud builders; `undefined`: there are none. */
  readonly access: AccessSpec | undefined;
  /** Day after which the fleet should be gone, `2026-12-31`, for labels; `undefined`: it stays. */
  readonly expires: string | undefined;
  /** What all builders at Hetzner share. */
  readonly hcloud: HcloudFleetSpec;
  /** What all builders at AWS share. */
  readonly aws: AwsFleetSpec;
}

/** The person's own mistake in the configuration: the message is all they need. */
export class ConfigurationError extends Error {
  override readonly name = "ConfigurationError";
}

/**
 * Configuration values → the fleet they describe.
 *
 * @param fleet The fleet's name (the stack's).
 * @param values What stands in the configuration, by key without the project's prefix.
 * @param place What tells this checkout from others on the machine: local builders of two must not share an address.
 * @param localNix Version of this machine's Nix; asked for only where it decides something.
 * @throws ConfigurationError naming every wrong key, its value and what is allowed.
 */
export function parseFleetSpec(
  fleet: string,
  values: Readonly<Record<string, unknown>>,
  place: string,
  localNix: () => string | undefined = () => undefined,
): FleetSpec {
  const parsed = configurationSchema.safeParse(values, { error: allowedWords });
  if (!parsed.success) {
    throw new ConfigurationError(parsed.error.issues.map((issue) => describeIssue(issue, values)).join("\n"));
  }
  const fleetName = hostNamePart(fleet);
  const builders = parsed.data.builders.flatMap((builder) => expand(fleetName, place, builder));
  const services = checkServices(parsed.data.services);
  refuseDuplicates(builders);
  refuseWrongNames(builders, services.serviceBuilders);
  refuseUnreachable(builders, parsed.data);
  refuseWhatJoinsNothing(builders, parsed.data.hcloud);
  const level = parsed.data.trust ?? defaultTrust(builders, localNix);
  refuseLegacyProtocol(builders, [level, ...parsed.data.clients.flatMap(({ trust }) => trust ?? [])]);
  return {
    fleet,
    builders,
    clientDirectory: parsed.data.clientDirectory,
    profile: parsed.data.profile,
    localSystems: parsed.data.localSystems,
    trust: level,
    clients: checkClients(parsed.data, level),
    ...services,
    // Every builder that the fleet makes has `MaxSessions 100`.
    maxSessions: builders.some(({ provider }) => provider === "existing") ? undefined : 100,
    smoke: parsed.data.smoke,
    smokeTimeout: parsed.data.smokeTimeout,
    access: parsed.data.access,
    expires: parsed.data.expires,
    hcloud: parsed.data.hcloud,
    aws: parsed.data.aws,
  };
}

/**
 * The safest level that works: `signed`. Local builders run this machine's own Nix, and where that is too old for rows of `builders` below
 * `full`, a fleet of them alone has `full`: they reach nothing of the person's.
 */
function defaultTrust(builders: readonly BuilderSpec[], localNix: () => string | undefined): Trust {
  if (!builders.every(({ provider }) => provider === "local")) return "signed";
  const nix = localNix();
  return nix === undefined || isAtLeast(nix, oldestForUntrustedRows) ? "signed" : "full";
}

/** Over `ssh` Nix builds for trusted users alone. */
function refuseLegacyProtocol(builders: readonly BuilderSpec[], levels: readonly Trust[]): void {
  const level = levels.find((one) => one !== "full");
  const first = builders.find(({ provider, protocol }) => provider !== "existing" && protocol === "ssh");
  if (level === undefined || first === undefined) return;
  throw new ConfigurationError(
    `builders: '${first.name}' has protocol: ssh, over which Nix builds for trusted users alone, and there are clients at trust: ${level}; ` +
      "remove the protocol (ssh-ng is the default), or set trust: full",
  );
}

/** The stack's name as the first part of an alias: at most 30 of a-z, 0-9 and '-', a letter first. */
export function hostNamePart(stack: string): string {
  const plain = stack
    .toLowerCase()
    .replaceAll(/[^a-z0-9]+/g, "-")
    .slice(0, 30);
  return /^[a-z]/.test(plain) ? plain.replace(/-$/, "") : `fleet-${plain}`.slice(0, 30).replace(/-$/, "");
}

/** One entry of the configuration → its builders: `x86`, `x86-2`, `x86-3` …, so that a changed count renames none. */
function expand(fleet: string, place: string, builder: Configuration["builders"][number]): BuilderSpec[] {
  if (builder.provider === "existing") {
    const { user, sshKey, hostKey, ...rest } = builder;
    return [
      {
        ...rest,
        maxJobs: rest.maxJobs,
        speedFactor: rest.speedFactor,
        alias: `${fleet}-${rest.name}`,
        user,
        sshKey,
        hostKey,
      },
    ];
  }
  const { count, ...rest } = builder;
  if (rest.provider === "hcloud") {
    const wrong = rest.candidates.map((candidate) => wrongCandidate(candidate, rest.system)).find(Boolean);
    if (wrong !== undefined) throw new ConfigurationError(`builders: '${rest.name}': ${wrong}`);
    return counted(fleet, rest.name, count).map((names) => ({
      ...rest,
      maxJobs: rest.maxJobs,
      speedFactor: rest.speedFactor,
      ...names,
    }));
  }
  if (rest.provider === "aws") {
    const wrong = wrongAwsBuilder({ ...rest, ami: rest.ami }, rest.system);
    if (wrong !== undefined) throw new ConfigurationError(`builders: '${rest.name}': ${wrong}`);
    return counted(fleet, rest.name, count).map((names) => ({
      ...rest,
      ami: rest.ami,
      maxJobs: rest.maxJobs,
      speedFactor: rest.speedFactor,
      ...names,
    }));
  }
  return counted(fleet, rest.name, count).map(({ name, alias }, index) => {
    const address = index === 0 && rest.address !== undefined ? rest.address : loopbackAddress(`${place} ${alias}`);
    return { ...rest, maxJobs: rest.maxJobs, speedFactor: rest.speedFactor, name, alias, address };
  });
}

function counted(fleet: string, first: string, count: number): { name: string; alias: string }[] {
  return Array.from({ length: count }, (_, index) => {
    const builderName = index === 0 ? first : `${first}-${index + 1}`;
    return { name: builderName, alias: `${fleet}-${builderName}` };
  });
}

/** A loopback address of 127.64.0.0/10 that depends on the builder alone, so that others come and go without moving it. */
function loopbackAddress(builder: string): string {
  const digest = createHash("sha256").update(builder).digest();
  return `127.${64 + (digest.readUInt8(0) % 64)}.${digest.readUInt8(1)}.${1 + (digest.readUInt8(2) % 254)}`;
}

function checkClients(configuration: Configuration, fleetTrust: Trust): ClientSpec[] {
  const { clients, localSystems: fleetSystems } = configuration;
  const names = new Set<string>();
  for (const { name: clientName } of clients) {
    if (names.has(clientName)) {
      throw new ConfigurationError(`clients: two clients are named '${clientName}'; rename one`);
    }
    names.add(clientName);
  }
  const specs = clients.map((entry) => ({
    name: entry.name,
    publicKey: entry.publicKey,
    profile: entry.profile ?? configuration.profile,
    localSystems: entry.localSystems ?? fleetSystems,
    trust: entry.trust ?? fleetTrust,
  }));
  refuseSharedKeys(specs);
  for (const entry of [{ ...configuration, name: undefined }, ...specs]) {
    if (entry.profile === "local-first" && entry.localSystems.length === 0) {
      const where = entry.name === undefined ? "profile" : `client '${entry.name}'`;
      throw new ConfigurationError(
        `${where}: local-first needs localSystems, the systems that the client builds itself, for instance [x86_64-linux]`,
      );
    }
  }
  return specs;
}

/** A builder knows a client by its key alone. */
function refuseSharedKeys(clients: readonly ClientSpec[]): void {
  for (const client of clients) {
    const other = clients.find(({ publicKey }) => publicKey !== undefined && publicKey === client.publicKey);
    if (other !== undefined && other.trust !== client.trust) {
      throw new ConfigurationError(
        `clients: '${other.name}' (trust: ${other.trust}) and '${client.name}' (trust: ${client.trust}) have the same publicKey, and builders ` +
          "tell clients apart by it; give each a key of its own, or both the same level",
      );
    }
  }
}

function checkServices(services: Configuration["services"]): Pick<FleetSpec, "caches" | "serviceBuilders"> {
  try {
    const caches = services.flatMap((entry) => {
      if (entry === "garnix") return [garnix];
      if ("cachix" in entry) return [cachix(entry.cachix, entry.publicKey)];
      return "url" in entry ? [checkCache(entry)] : [];
    });
    const serviceBuilders = services.flatMap((entry) => {
      if (typeof entry === "string" || !("nixbuild.net" in entry)) return [];
      const { sshKey, speedFactor } = entry["nixbuild.net"];
      return [nixbuildNet({ sshKey, ...(speedFactor !== undefined && { speedFactor }) })];
    });
    return { caches, serviceBuilders };
  } catch (error) {
    if (error instanceof InvalidValue) throw new ConfigurationError(`services: ${error.message}`);
    throw error;
  }
}

function refuseDuplicates(builders: readonly BuilderSpec[]): void {
  const names = new Set<string>();
  const sockets = new Map<string, string>();
  for (const builder of builders) {
    if (names.has(builder.name)) {
      throw new ConfigurationError(
        `builders: two builders are named '${builder.name}' (with count: 2, a builder 'x' makes 'x' and 'x-2'); rename one`,
      );
    }
    names.add(builder.name);
    if (builder.provider === "hcloud" || builder.provider === "aws") continue;
    const socket = `${builder.address}:${builder.port}`;
    const other = sockets.get(socket);
    if (other !== undefined) {
      throw new ConfigurationError(
        `builders: '${other}' and '${builder.name}' are both at ${socket}, and Nix would count one host's slots twice; ` +
          "give each an address or port of its own",
      );
    }
    sockets.set(socket, builder.name);
  }
}

/** What clients call a builder must be a host name, and no builder's address may be what another one is called. */
function refuseWrongNames(builders: readonly BuilderSpec[], serviceBuilders: readonly BuildMachine[]): void {
  if (serviceBuilders.length > 1) throw new ConfigurationError("services: nixbuild.net stands there twice; remove one");
  const aliases = new Set([...builders, ...serviceBuilders].map(({ alias }) => alias));
  for (const builder of builders) {
    try {
      checkAlias(builder.alias);
    } catch (error) {
      if (!(error instanceof InvalidValue)) throw error;
      throw new ConfigurationError(
        `builders: clients would call '${builder.name}' ${builder.alias}, and that is no host name of at most 63 characters; give it a shorter name`,
      );
    }
    if (builder.provider === "existing" && builder.address !== builder.alias && aliases.has(builder.address)) {
      throw new ConfigurationError(
        `builders: the address of '${builder.name}' is ${builder.address}, but so clients call another builder, whose host key would ` +
          "count for both; write its full DNS name or its IP address",
      );
    }
  }
}

/** A server joins no network of another zone, and no full group; Hetzner says so when it has been made. */
function refuseWhatJoinsNothing(builders: readonly BuilderSpec[], hcloud: HcloudFleetSpec): void {
  const servers = builders.filter((builder) => builder.provider === "hcloud");
  if (hcloud.spread && servers.length > placementGroupSize) {
    throw new ConfigurationError(
      `hcloud.spread: a placement group holds ${placementGroupSize} servers, and there are ${servers.length} builders at Hetzner; set spread: false, or have fewer of them`,
    );
  }
  for (const builder of servers) {
    const wrong = builder.candidates.map((candidate) => outsideZone(candidate, hcloud)).find(Boolean);
    if (wrong !== undefined) throw new ConfigurationError(`builders: '${builder.name}': ${wrong}`);
  }
}

/** Who may connect to a machine in a cloud has to be said, and it needs some address. */
function refuseUnreachable(builders: readonly BuilderSpec[], { access, aws }: Configuration): void {
  const first = builders.find(({ provider }) => provider === "hcloud" || provider === "aws");
  if (first !== undefined && access === undefined) {
    throw new ConfigurationError(
      `access: missing; builder '${first.name}' is in a cloud, and who may reach its SSH port has to be said: ` +
        "access: { allowedCidrs: [203.0.113.7/32] } for your own address, or [0.0.0.0/0, '::/0'] for everybody's",
    );
  }
  // `private_net_only_server`: https://docs.hetzner.cloud/reference/cloud#firewall-actions-apply-to-resources.
  const unreachable = builders.find((builder) => builder.provider === "hcloud" && !builder.ipv4 && !builder.ipv6);
  if (unreachable !== undefined) {
    throw new ConfigurationError(
      `builders: '${unreachable.name}' has neither ipv4 nor ipv6: Hetzner applies no firewall to such a server, and the fleet's own network has no way out, ` +
        "so that neither NixOS nor a package could be fetched; allow ipv6, which costs nothing",
    );
  }
  const confined = builders.find(
    (builder) => builder.provider === "aws" && !builder.publicAddress && !("subnetIds" in aws.network),
  );
  if (confined !== undefined) {
    throw new ConfigurationError(
      `builders: '${confined.name}' has no public address, and nothing leads out of the fleet's own network without one; ` +
        "remove publicAddress: false, or set aws.network: { subnetIds: [subnet-…] } to subnets with a NAT gateway that you can reach",
    );
  }
}

/**
 * Text that the model's own check accepts, in the form that the check brings it into: what is rendered later is refused here.
 *
 * @param allowed What may stand there; default: the check's own words.
 */
function checked(check: (text: string) => string, allowed?: string) {
  return z.string({ error: () => allowed ?? wordsOf(check) }).transform((text, context) => {
    const refused = refusalBy(check, text);
    if (typeof refused === "string") return refused;
    context.addIssue({ code: "custom", message: allowed ?? refused.allowed, input: text });
    return z.NEVER;
  });
}

/** What a check allows: it has the same words for whatever it refuses, and nothing is allowed to be empty. */
function wordsOf(check: (text: string) => string): string {
  const refused = refusalBy(check, "");
  return typeof refused === "string" ? "text" : refused.allowed;
}

function refusalBy(check: (text: string) => string, text: string): string | InvalidValue {
  try {
    return check(text);
  } catch (error) {
    if (error instanceof InvalidValue) return error;
    throw error;
  }
}

/** One sentence for one issue: key, value, what is allowed. */
function describeIssue(issue: z.core.$ZodIssue, values: Readonly<Record<string, unknown>>): string {
  const path = issue.path.map((part) => (typeof part === "number" ? `[${part}]` : `.${String(part)}`)).join("");
  const key = path.replace(/^\./, "");
  const where = key === "" ? "configuration" : key;
  if (issue.code === "unrecognized_keys") {
    const unknown = oneLine(issue.keys.map((name) => `'${name}'`).join(", "));
    return `${where}: unknown key ${unknown}; remove it or fix its spelling: allowed are ${issue.message}`;
  }
  const value = issue.path.reduce<unknown>(
    (outer, part) => (typeof outer === "object" && outer !== null ? Reflect.get(outer, part) : undefined),
    values,
  );
  if (value === undefined) return `${where}: missing; allowed is ${issue.message}`;
  if (value === null) return `${where}: has no value; allowed is ${issue.message}`;
  return `${where}: ${oneLine(JSON.stringify(value))} is not allowed; allowed is ${issue.message}`;
}
