/** The one resource of the substitute of the plugin `tls`: a private key. */
import { type Properties, type Property, UNKNOWN, isUnknown, plainObject, reveal, secret } from "../propertyValue.ts";
import { type Checked, type Plugin, type ResourceType, changes } from "../serve.ts";
import { ownValue } from "../../../src/record.ts";

/**
 * Inputs, defaults, outputs and rules of `tls.PrivateKey` are those of terraform-provider-tls 4
 * (`internal/provider/resource_private_key.go`), which the genuine plugin wraps: every change of an input replaces the key,
 * and the three private forms are secret.
 */
const privateKey: ResourceType = {
  check,
  diff: (state, inputs) => changes(INPUTS, withDefaults(state), withDefaults(inputs), () => true),
  create: async (inputs, operation) => {
    const given = withDefaults(inputs);
    if (operation.preview) {
      return { id: "", state: { ...given, ...Object.fromEntries(OUTPUTS.map((name) => [name, UNKNOWN])) } };
    }
    const { generateKey } = await import("./privateKey.ts");
    const { id, ...made } = generateKey(parameters(given));
    const outputs = Object.entries(made).map(([name, value]): [string, Property] => [
      name,
      name.startsWith("private") ? secret(value) : value,
    ]);
    return { id, state: { ...META, ...given, id, ...Object.fromEntries(outputs) } };
  },
  delete: () => Promise.resolve(),
  importError: "A tls.PrivateKey can't be imported: the key is nowhere but in the state of the stack that made it.",
};

export const tlsPlugin: Plugin = {
  name: "tls",
  version: "5.6.1",
  resources: { "tls:index/privateKey:PrivateKey": privateKey },
  functions: {},
};

const ALGORITHMS = ["RSA", "ECDSA", "ED25519"] as const;
const CURVES = ["P224", "P256", "P384", "P521"] as const;
const INPUTS = ["algorithm", "ecdsaCurve", "rsaBits"] as const;
const OUTPUTS = [
  "privateKeyOpenssh",
  "privateKeyPem",
  "privateKeyPemPkcs8",
  "publicKeyFingerprintMd5",
  "publicKeyFingerprintSha256",
  "publicKeyOpenssh",
  "publicKeyPem",
];

/** The version of the resource's schema, without which the genuine plugin would take the state for one of version 0. */
const META = { __meta: JSON.stringify({ schema_version: "1" }) };

/** What a key is made by. */
export interface KeyParameters {
  algorithm: (typeof ALGORITHMS)[number];
  ecdsaCurve: (typeof CURVES)[number];
  rsaBits: number;
}

/** The genuine plugin has values for all three in the state, whatever the algorithm. */
function withDefaults(values: Properties): Properties {
  return {
    algorithm: values["algorithm"] ?? null,
    ecdsaCurve: values["ecdsaCurve"] ?? "P224",
    rsaBits: values["rsaBits"] ?? 2048,
  };
}

function check(inputs: Properties): Checked {
  const failures: Checked["failures"] = [];
  const require = (property: string, allowed: string, accepts: (value: Property) => boolean) => {
    const value = reveal(ownValue(inputs, property)) ?? null;
    if (isUnknown(value) || accepts(value)) return;
    failures.push({ property, reason: `must be ${allowed}, not ${JSON.stringify(value)}` });
  };
  require("algorithm", `one of ${ALGORITHMS.join(", ")}`, (value) => isOneOf(ALGORITHMS, value));
  require("ecdsaCurve", `one of ${CURVES.join(", ")}`, (value) => value === null || isOneOf(CURVES, value));
  require("rsaBits", "a whole number of at least 1024", (value) => value === null || isRsaSize(value));
  for (const name of Object.keys(inputs)) {
    const known: readonly string[] = INPUTS;
    if (!known.includes(name) && !name.startsWith("__")) {
      failures.push({ property: name, reason: `there is no such input; known are ${known.join(", ")}` });
    }
  }
  return { inputs, failures };
}

function parameters(inputs: Properties): KeyParameters {
  const { algorithm, ecdsaCurve, rsaBits } = plainObject(inputs);
  if (!isOneOf(ALGORITHMS, algorithm) || !isOneOf(CURVES, ecdsaCurve) || !isRsaSize(rsaBits)) {
    throw new Error("tls.PrivateKey was created without its inputs having been checked.");
  }
  return { algorithm, ecdsaCurve, rsaBits };
}

function isOneOf<T extends string>(allowed: readonly T[], value: Property | undefined): value is T {
  return allowed.some((item) => item === value);
}

function isRsaSize(value: Property | undefined): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= 1024;
}
