/** The inputs of the `command` resources: their types, checked before anything runs, and their defaults. */
import {
  type Properties,
  type Property,
  asAsset,
  isObject,
  isSecret,
  isUnknown,
  plain,
  reveal,
  secret,
} from "../propertyValue.ts";
import type { Checked } from "../serve.ts";
import { ownValue } from "../../../src/record.ts";

export type InputType =
  "string" | "number" | "boolean" | "strings" | "stringMap" | "list" | "logging" | "source" | InputTypes;

/** Type by name; a name ending in `!` is required. */
export interface InputTypes {
  [name: string]: InputType;
}

const LIFE_CYCLE: InputTypes = { triggers: "list", create: "string", update: "string", delete: "string" };

const LOCAL: InputTypes = {
  stdin: "string",
  logging: "logging",
  interpreter: "strings",
  dir: "string",
  environment: "stringMap",
  assetPaths: "strings",
  archivePaths: "strings",
  addPreviousOutputInEnv: "boolean",
};

const HOST: InputTypes = {
  "host!": "string",
  port: "number",
  user: "string",
  password: "string",
  privateKey: "string",
  privateKeyPassword: "string",
  agentSocketPath: "string",
  dialErrorLimit: "number",
  perDialTimeout: "number",
  hostKey: "string",
};

const CONNECTION: InputTypes = { ...HOST, proxy: HOST };

/** Inputs by resource or function, as in the schema of pulumi-command 1.2.1. */
export const INPUT_TYPES = {
  localCommand: { ...LIFE_CYCLE, ...LOCAL },
  localRun: { "command!": "string", ...LOCAL },
  remoteCommand: {
    ...LIFE_CYCLE,
    "connection!": CONNECTION,
    stdin: "string",
    logging: "logging",
    environment: "stringMap",
    addPreviousOutputInEnv: "boolean",
  },
  copyToRemote: { "connection!": CONNECTION, triggers: "list", "source!": "source", "remotePath!": "string" },
} satisfies Record<string, InputTypes>;

/** The names of the inputs. */
export function inputNames(types: InputTypes): string[] {
  return Object.keys(types).map(bare);
}

/** Port 22, user root, 10 failed dials, 15 seconds a dial: the same for a host and for its proxy. */
const CONNECTION_DEFAULTS = { port: 22, user: "root", dialErrorLimit: 10, perDialTimeout: 15 };

/** Marked in themselves, in a connection that is secret as a whole: the genuine plugin compares these marks as well. */
const HOST_SECRETS = ["password", "privateKey", "privateKeyPassword"];

/**
 * Checks inputs against their types, gives a connection its defaults and marks it secret, and its passwords and keys once
 * more. Nothing that isn't known yet is complained about.
 */
export function checkInputs(types: InputTypes, inputs: Properties): Checked {
  const failures = objectFailures("", types, inputs);
  const connection = inputs["connection"];
  if (connection === undefined || failures.length > 0) return { inputs, failures };
  return { inputs: { ...inputs, connection: secret(withConnectionDefaults(reveal(connection) ?? null)) }, failures };
}

function withConnectionDefaults(connection: Property): Property {
  if (!isObject(connection)) return connection;
  const { proxy, ...host } = withHostDefaults(connection);
  if (proxy === undefined) return host;
  const revealed = reveal(proxy);
  if (!isObject(revealed)) return { ...host, proxy };
  const complete = withHostDefaults(revealed);
  return { ...host, proxy: isSecret(proxy) ? secret(complete) : complete };
}

function withHostDefaults(host: Properties): Properties {
  const given = Object.entries(host).filter(([, value]) => value !== null);
  const marked = given.map(([name, value]) => [name, HOST_SECRETS.includes(name) ? secret(value) : value] as const);
  return { ...CONNECTION_DEFAULTS, ...Object.fromEntries(marked) };
}

function objectFailures(path: string, types: InputTypes, values: Properties): Checked["failures"] {
  const at = (name: string) => (path === "" ? name : `${path}.${name}`);
  const known = inputNames(types);
  const unknown = Object.keys(values)
    .filter((name) => !known.includes(name) && !name.startsWith("__"))
    .map((name) => ({ property: at(name), reason: `there is no such input; known are ${known.join(", ")}` }));
  const wrong = Object.entries(types).flatMap(([name, type]) => {
    const value = reveal(ownValue(values, bare(name))) ?? null;
    if (value === null) return name.endsWith("!") ? [{ property: at(bare(name)), reason: "is required" }] : [];
    return failuresOf(at(bare(name)), type, value);
  });
  return [...unknown, ...wrong];
}

function failuresOf(property: string, type: InputType, marked: Property): Checked["failures"] {
  if (isUnknown(reveal(marked))) return [];
  const value = plain(marked);
  if (typeof type === "object") {
    return isObject(value) ? objectFailures(property, type, value) : [{ property, reason: "must be an object" }];
  }
  const { means, accepts } = EXPECTED[type];
  return accepts(value) ? [] : [{ property, reason: `must be ${means}` }];
}

const isString = (value: Property): boolean => typeof value === "string";
const LOGGING = ["stdout", "stderr", "stdoutAndStderr", "none"];

const EXPECTED: Record<Exclude<InputType, object>, { means: string; accepts: (value: Property) => boolean }> = {
  string: { means: "a string", accepts: isString },
  number: { means: "a number", accepts: (value) => typeof value === "number" },
  boolean: { means: "true or false", accepts: (value) => typeof value === "boolean" },
  strings: { means: "a list of strings", accepts: (value) => Array.isArray(value) && value.every(isString) },
  stringMap: {
    means: "an object of strings",
    accepts: (value) => isObject(value) && Object.values(value).every(isString),
  },
  list: { means: "a list", accepts: (value) => Array.isArray(value) },
  logging: {
    means: `one of ${LOGGING.join(", ")}`,
    accepts: (value) => typeof value === "string" && LOGGING.includes(value),
  },
  source: {
    means: "a FileAsset, a StringAsset or a FileArchive; what lies at an address isn't fetched",
    accepts: (value) => {
      const asset = asAsset(value);
      return asset !== undefined && ("path" in asset || ("text" in asset && asset.kind === "asset"));
    },
  },
};

function bare(name: string): string {
  return name.replace("!", "");
}
