/**
 * Property values as they travel between the Pulumi engine and a plugin: JSON in which secrets, unknowns and assets are
 * marked by signatures. The signatures are those of `@pulumi/pulumi/runtime/rpc` and of Pulumi's Go SDK
 * (`resource/plugin/rpc.go`); they are repeated here because importing that module costs a plugin half of its start-up.
 */
import { ownValue } from "../../src/record.ts";

/** A value of an input or output, in the form of the wire. */
export type Property = null | boolean | number | string | Property[] | Properties;

/** The inputs or the state of a resource. */
export interface Properties {
  [name: string]: Property;
}

/** An asset or archive of the wire, reduced to what a plugin works with. */
export type Asset = ({ path: string } | { text: string } | { uri: string }) & {
  kind: "asset" | "archive";
  hash?: string;
};

/** What a value is called that isn't known before the resource is made. */
export const UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9";

const SIGNATURE = "4dabf18193072939515e22adb298388d";
const SECRET = "1b47061264138c4ac30d75fd1eb44270";
const KIND_OF_SIGNATURE: Record<string, Asset["kind"]> = {
  c44067f5952c0a294b673a41bacd8c17: "asset",
  "0def7320c3a5731c473e5ecbe6d01bc7": "archive",
};
const SIGNATURE_OF_KIND = {
  asset: "c44067f5952c0a294b673a41bacd8c17",
  archive: "0def7320c3a5731c473e5ecbe6d01bc7",
} as const;
const UNKNOWNS = new Set([
  UNKNOWN,
  "1c4a061d-8072-4f0a-a4cb-0ff528b18fe7",
  "3eeb2bf0-c639-47a8-9e75-3b44932eb421",
  "6a19a0b0-7e62-4c92-b797-7f8e31da9cc2",
  "030794c1-ac77-496b-92df-f27374a8bd58",
  "e48ece36-62e2-4504-bad9-02848725956a",
  "dd056dcd-154b-4c76-9bd3-c8f88648b5ff",
]);

/** Whether the value is an object, which includes a marked one. */
export function isObject(value: Property | undefined): value is Properties {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Whether the value itself stands for one that isn't known yet. */
export function isUnknown(value: Property | undefined): boolean {
  return typeof value === "string" && UNKNOWNS.has(value);
}

/** Whether the value itself, not merely a part of it, is marked secret. */
export function isSecret(value: Property | undefined): value is Properties {
  return isObject(value) && value[SIGNATURE] === SECRET;
}

/** The value marked secret; one that is secret already stays as it is. */
export function secret(value: Property): Property {
  return isSecret(value) ? value : { [SIGNATURE]: SECRET, value };
}

/** The value without the mark on itself. Marks further in stay. */
export function reveal(value: Property | undefined): Property | undefined {
  return isSecret(value) ? reveal(value["value"]) : value;
}

/** The value without any mark of secrecy, at whatever depth. */
export function plain(value: Property): Property {
  const revealed = reveal(value) ?? null;
  if (Array.isArray(revealed)) return revealed.map(plain);
  return isObject(revealed) ? plainObject(revealed) : revealed;
}

/** `plain` for the inputs or the state of a resource. */
export function plainObject(properties: Properties): Properties {
  return Object.fromEntries(Object.entries(properties).map(([name, value]) => [name, plain(value)]));
}

/** Without what is null in objects, at whatever depth, as the genuine plugins take what they are sent. Lists keep theirs. */
export function withoutNulls(properties: Properties): Properties {
  const given = Object.entries(properties).filter(([, value]) => value !== null);
  return Object.fromEntries(given.map(([name, value]) => [name, withoutNullsWithin(value)]));
}

function withoutNullsWithin(value: Property): Property {
  if (Array.isArray(value)) return value.map(withoutNullsWithin);
  if (!isObject(value)) return value;
  return isSecret(value) ? { ...value, value: withoutNullsWithin(value["value"] ?? null) } : withoutNulls(value);
}

/** The asset or archive that a plain value describes, undefined where it describes none. */
export function asAsset(value: Property | undefined): Asset | undefined {
  const marked = reveal(value);
  if (!isObject(marked)) return undefined;
  const { [SIGNATURE]: signature, hash, path, text, uri } = plainObject(marked);
  const kind = typeof signature === "string" ? ownValue(KIND_OF_SIGNATURE, signature) : undefined;
  if (kind === undefined) return undefined;
  const common = { kind, ...(typeof hash === "string" && { hash }) };
  if (typeof path === "string" && path !== "") return { ...common, path };
  if (typeof uri === "string" && uri !== "") return { ...common, uri };
  // An empty text is sent without it.
  return typeof text === "string" ? { ...common, text } : { ...common, text: "" };
}

/** A file as an asset of the wire. `hash` is the SHA-256 of its content, in hexadecimal. */
export function fileAsset(path: string, hash: string): Properties {
  return { [SIGNATURE]: SIGNATURE_OF_KIND.asset, hash, path };
}

/** Several assets, by their path inside the archive, as an archive of the wire. */
export function assetArchive(assets: Properties, hash: string): Properties {
  return { [SIGNATURE]: SIGNATURE_OF_KIND.archive, hash, assets };
}

/**
 * Whether a resource with the old value has to change to have the new one. Assets are equal when their hashes are, as in
 * Pulumi's Go SDK. A value that becomes secret differs; one that is no longer marked doesn't, because the old value of an
 * output named in `additionalSecretOutputs` is always marked, and would else differ for ever.
 */
export function isSame(old: Property | undefined, now: Property | undefined): boolean {
  if (isSecret(now) && !isSecret(old)) return false;
  const [before, after] = [reveal(old) ?? null, reveal(now) ?? null];
  if (Array.isArray(before) && Array.isArray(after)) {
    return before.length === after.length && before.every((item, index) => isSame(item, after[index]));
  }
  if (!isObject(before) || !isObject(after)) return before === after;
  const [oldAsset, newAsset] = [asAsset(before), asAsset(after)];
  if (oldAsset?.hash !== undefined && newAsset?.hash !== undefined) {
    return oldAsset.kind === newAsset.kind && oldAsset.hash === newAsset.hash;
  }
  // A secret object keeps its secret as a whole: marks further in may differ.
  const within = isSecret(old) ? plainObject : (properties: Properties) => properties;
  const [left, right] = [within(before), within(after)];
  return [...new Set([...Object.keys(left), ...Object.keys(right)])].every((name) =>
    isSame(ownValue(left, name), ownValue(right, name)),
  );
}

/** A part of a value that differs from what it was. */
export interface Difference {
  /** In Pulumi's notation: `environment.FOO`, `environment["with-hyphen"]`, `triggers[0]`. */
  path: string;
  kind: "add" | "delete" | "update";
}

/**
 * Where a value differs, by `isSame`, from the old one: the smallest parts of lists and objects. A secret or an asset has no
 * parts.
 *
 * @param path of the values themselves; those of their parts begin with it.
 */
export function differences(path: string, old: Property | undefined, now: Property | undefined): Difference[] {
  if (isSame(old, now)) return [];
  const parts = partsOf(old, now).flatMap(([part, before, after]) => differences(`${path}${part}`, before, after));
  if (parts.length > 0) return parts;
  return [{ path, kind: (old ?? null) === null ? "add" : (now ?? null) === null ? "delete" : "update" }];
}

/** The continuation of the path, the old part and the new one, where both values have parts. */
function partsOf(
  old: Property | undefined,
  now: Property | undefined,
): [string, Property | undefined, Property | undefined][] {
  if (Array.isArray(old) && Array.isArray(now)) {
    return Array.from({ length: Math.max(old.length, now.length) }, (_, index) => [
      `[${index}]`,
      old[index],
      now[index],
    ]);
  }
  if (!isObject(old) || !isObject(now) || Object.hasOwn(old, SIGNATURE) || Object.hasOwn(now, SIGNATURE)) return [];
  return [...new Set([...Object.keys(old), ...Object.keys(now)])].map((name) => [
    /^\w+$/.test(name) ? `.${name}` : `["${name.replaceAll('"', '\\"')}"]`,
    ownValue(old, name),
    ownValue(now, name),
  ]);
}
