/**
 * The messages of Pulumi's protocol that a plugin reads and writes, in the wire format of Protocol Buffers 3
 * (https://protobuf.dev/programming-guides/encoding). `@pulumi/pulumi/proto` has all of them, and with `google-protobuf` takes a fifth of
 * the time in which a plugin would be ready; `test/plugins/protobuf.test.ts` holds this against it.
 */
import type { Properties, Property } from "./propertyValue.ts";
import { ownValue } from "../../src/record.ts";

/** Of a field: text, a whole number, a switch, a `google.protobuf.Struct`, several texts, or several messages. */
type Type = "string" | "int" | "bool" | "struct" | "strings" | readonly [Format];

/** The fields of a message: number and type of each. Others that arrive are passed over. */
export type Format = Readonly<Record<string, readonly [number: number, type: Type]>>;

type Value<T> = T extends "string"
  ? string
  : T extends "int"
    ? number
    : T extends "bool"
      ? boolean
      : T extends "struct"
        ? Properties | undefined
        : T extends "strings"
          ? string[]
          : T extends readonly [infer Each extends Format]
            ? Message<Each>[]
            : never;

/** A message that arrived: what was left out is empty, 0, false, or `undefined` for a struct. */
export type Message<F extends Format> = { [Name in keyof F]: Value<F[Name][1]> };

/** Fields that requests about a resource share. */
const about = { urn: [2, "string"] } as const;

/** Those of provider.proto, plugin.proto and engine.proto that are in use. */
export const formats = {
  Empty: {},
  PluginInfo: { version: [1, "string"] },
  PluginAttach: { address: [1, "string"] },
  GetSchemaResponse: { schema: [1, "string"] },
  ConfigureResponse: { acceptSecrets: [1, "bool"], supportsPreview: [2, "bool"], acceptResources: [3, "bool"] },
  CheckRequest: { urn: [1, "string"], news: [3, "struct"] },
  CheckResponse: { inputs: [1, "struct"], failures: [2, [{ property: [1, "string"], reason: [2, "string"] }]] },
  DiffRequest: { ...about, olds: [3, "struct"], news: [4, "struct"], ignoreChanges: [5, "strings"] },
  DiffResponse: {
    replaces: [1, "strings"],
    changes: [4, "int"],
    diffs: [5, "strings"],
    detailedDiff: [6, [{ key: [1, "string"], value: [2, [{ kind: [1, "int"] }]] }]],
    hasDetailedDiff: [7, "bool"],
  },
  CreateRequest: { urn: [1, "string"], properties: [2, "struct"], preview: [4, "bool"] },
  CreateResponse: { id: [1, "string"], properties: [2, "struct"] },
  ReadRequest: { id: [1, "string"], ...about, properties: [3, "struct"], inputs: [4, "struct"] },
  ReadResponse: { id: [1, "string"], properties: [2, "struct"], inputs: [3, "struct"] },
  UpdateRequest: { ...about, olds: [3, "struct"], news: [4, "struct"], preview: [7, "bool"] },
  UpdateResponse: { properties: [1, "struct"] },
  DeleteRequest: { ...about, properties: [3, "struct"] },
  InvokeRequest: { tok: [1, "string"], args: [2, "struct"] },
  InvokeResponse: { return: [1, "struct"] },
  LogRequest: { severity: [1, "int"], message: [2, "string"], urn: [3, "string"], ephemeral: [5, "bool"] },
} as const satisfies Record<string, Format>;

/** `DiffResponse.DiffChanges` */
export const diffChanges = { none: 1, some: 2 } as const;

/** `PropertyDiff.Kind` */
export const diffKinds = { add: 0, addReplace: 1, delete: 2, deleteReplace: 3, update: 4, updateReplace: 5 } as const;

/** `LogSeverity` */
export const logSeverities = { info: 1, warning: 2, error: 3 } as const;

const wire = { varint: 0, eightBytes: 1, bytes: 2, fourBytes: 5 } as const;

/** @param fields Those that are absent are left out, and so are those with the value that absence means. */
export function encode<F extends Format>(format: F, fields: Partial<Message<F>>): Buffer {
  const pieces: Buffer[] = [];
  for (const [name, [number, type]] of Object.entries(format)) {
    const value = ownValue(fields as Record<string, unknown>, name);
    if (value === undefined || value === "" || value === 0 || value === false) continue;
    if (type === "int" || type === "bool") pieces.push(varint(number * 8 + wire.varint), varint(Number(value)));
    else if (type === "string") pieces.push(...sized(number, Buffer.from(value as string)));
    else if (type === "struct") pieces.push(...sized(number, encodeStruct(value as Properties)));
    else if (type === "strings") for (const each of value as string[]) pieces.push(...sized(number, Buffer.from(each)));
    else for (const each of value as object[]) pieces.push(...sized(number, encode(type[0], each)));
  }
  return Buffer.concat(pieces);
}

/** @throws RangeError where the bytes are no such message. */
export function decode<F extends Format>(format: F, bytes: Buffer): Message<F> {
  const fields = fieldsOf(bytes);
  const message = Object.entries(format).map(([name, [number, type]]) => {
    const values = fields.filter((field) => field.number === number).map(({ value }) => value);
    return [name, fieldValue(type, values)] as const;
  });
  return Object.fromEntries(message) as Message<F>;
}

/** @param values All that came for the field. Where one is expected, the last one counts. */
function fieldValue(type: Type, values: readonly (number | Buffer)[]): unknown {
  const buffers = values.filter((value) => typeof value !== "number");
  if (typeof type !== "string") return buffers.map((value) => decode(type[0], value));
  if (type === "strings") return buffers.map(String);
  if (type === "int" || type === "bool") {
    const number = Number(values.at(-1) ?? 0);
    return type === "int" ? number : number !== 0;
  }
  const last = buffers.at(-1);
  if (type === "string") return last?.toString() ?? "";
  return last && decodeStruct(last);
}

/** Numbers of the fields in `Value` of google/protobuf/struct.proto; lists and structs have all theirs in field 1. */
const kinds = { null: 1, number: 2, string: 3, bool: 4, struct: 5, list: 6 } as const;

function encodeStruct(properties: Properties): Buffer {
  return Buffer.concat(
    Object.entries(properties).flatMap(([key, value]) =>
      sized(1, Buffer.concat([...sized(1, Buffer.from(key)), ...sized(2, encodeValue(value))])),
    ),
  );
}

function encodeValue(value: Property): Buffer {
  if (value === null) return Buffer.from([kinds.null * 8 + wire.varint, 0]);
  if (typeof value === "boolean") return Buffer.from([kinds.bool * 8 + wire.varint, Number(value)]);
  if (typeof value === "number") {
    const bytes = Buffer.alloc(9, kinds.number * 8 + wire.eightBytes);
    bytes.writeDoubleLE(value, 1);
    return bytes;
  }
  if (typeof value === "string") return Buffer.concat(sized(kinds.string, Buffer.from(value)));
  const inner = Array.isArray(value)
    ? Buffer.concat(value.flatMap((each) => sized(1, encodeValue(each))))
    : encodeStruct(value);
  return Buffer.concat(sized(Array.isArray(value) ? kinds.list : kinds.struct, inner));
}

function decodeStruct(bytes: Buffer): Properties {
  const entries: [string, Property][] = [];
  for (const { value: entry } of fieldsOf(bytes)) {
    let key = "";
    let property: Property = null;
    if (typeof entry === "number") continue;
    for (const { number, value } of fieldsOf(entry)) {
      if (typeof value === "number") continue;
      if (number === 1) key = value.toString();
      else property = decodeValue(value);
    }
    entries.push([key, property]);
  }
  return Object.fromEntries(entries);
}

function decodeValue(bytes: Buffer): Property {
  let property: Property = null;
  for (const { number, value } of fieldsOf(bytes)) {
    if (typeof value === "number") property = number === kinds.bool ? value !== 0 : null;
    else if (number === kinds.number) property = value.readDoubleLE();
    else if (number === kinds.string) property = value.toString();
    else if (number === kinds.struct) property = decodeStruct(value);
    else if (number === kinds.list)
      property = fieldsOf(value).map(({ value: each }) => (typeof each === "number" ? null : decodeValue(each)));
  }
  return property;
}

/** In the order in which they came. What has a varint is a number, anything else its bytes. */
function fieldsOf(bytes: Buffer): { number: number; value: number | Buffer }[] {
  const found: { number: number; value: number | Buffer }[] = [];
  let at = 0;
  const number = (): number => {
    for (let value = 0, factor = 1; ; factor *= 128) {
      const byte = bytes.readUInt8(at++);
      value += (byte % 128) * factor;
      if (byte < 128) return value;
    }
  };
  const take = (length: number): Buffer => {
    if (at + length > bytes.length) throw new RangeError("a message of the engine ends in the middle of a field");
    return bytes.subarray(at, (at += length));
  };
  while (at < bytes.length) {
    const tag = number();
    const type = tag % 8;
    const field = Math.floor(tag / 8);
    if (type === wire.varint) found.push({ number: field, value: number() });
    else if (type === wire.bytes) found.push({ number: field, value: take(number()) });
    else if (type === wire.eightBytes || type === wire.fourBytes)
      found.push({ number: field, value: take(type === wire.eightBytes ? 8 : 4) });
    else throw new RangeError(`a message of the engine has a field of the unknown type ${type}`);
  }
  return found;
}

function sized(number: number, bytes: Buffer): Buffer[] {
  return [varint(number * 8 + wire.bytes), varint(bytes.length), bytes];
}

/** @param value Not negative. */
function varint(value: number): Buffer {
  const bytes: number[] = [];
  for (let rest = value; ; rest = Math.floor(rest / 128)) {
    if (rest < 128) return Buffer.from([...bytes, rest]);
    bytes.push((rest % 128) + 128);
  }
}
