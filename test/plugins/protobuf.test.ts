/** The messages that the substitutes read and write themselves, against Pulumi's own definitions of them. */
import * as fc from "fast-check";
import emptyProto from "google-protobuf/google/protobuf/empty_pb.js";
import engineProto from "@pulumi/pulumi/proto/engine_pb.js";
import pluginProto from "@pulumi/pulumi/proto/plugin_pb.js";
import providerProto from "@pulumi/pulumi/proto/provider_pb.js";
import { describe, expect, it } from "vitest";
import type { Properties } from "../../tools/plugins/propertyValue.ts";
import {
  decode,
  diffChanges,
  diffKinds,
  encode,
  type Format,
  formats,
  logSeverities,
  type Message,
} from "../../tools/plugins/protobuf.ts";

interface Theirs {
  serializeBinary: () => Uint8Array;
  toObject: () => Record<string, unknown>;
}
type Class = (new () => Theirs) & { deserializeBinary: (bytes: Uint8Array) => Theirs };

function theirs(name: string): Class {
  const all = { ...engineProto, ...pluginProto, ...providerProto, Empty: emptyProto.Empty } as unknown;
  return (all as Record<string, Class>)[name] ?? expect.fail(`${name} is no message of Pulumi's`);
}

const text = fc.string({ unit: "grapheme" });
const struct = fc.letrec<{ value: unknown; struct: unknown }>((tie) => ({
  value: fc.oneof(
    { maxDepth: 4 },
    fc.constant(null),
    fc.boolean(),
    fc.double({ noNaN: true }),
    text,
    fc.array(tie("value"), { maxLength: 3 }),
    tie("struct"),
  ),
  // Pulumi's own code loses a property of that name.
  struct: fc.dictionary(
    text.filter((key) => key !== "__proto__"),
    tie("value"),
    { maxKeys: 3, noNullPrototype: true },
  ),
})).struct as fc.Arbitrary<Properties>;

/** Any message of a format, every field of it in use. */
function anyMessage(format: Format): fc.Arbitrary<Record<string, unknown>> {
  const fields = Object.entries(format).map(([name, [, type]]) => {
    if (typeof type !== "string") {
      // The entries of a map have one value each, and keys of their own.
      if (name === "value") return [name, fc.tuple(anyMessage(type[0]))] as const;
      const selector = (entry: Record<string, unknown>): unknown => entry["key"] ?? entry;
      // Their code has a map's in order.
      const inOrder = (entries: Record<string, unknown>[]) =>
        entries.sort((a, b) => (String(a["key"]) < String(b["key"]) ? -1 : 1));
      const entries = fc.uniqueArray(anyMessage(type[0]), { maxLength: 3, selector });
      return [name, "key" in type[0] ? entries.map(inOrder) : entries] as const;
    }
    const values: Record<typeof type, fc.Arbitrary<unknown>> = {
      string: text,
      int: fc.nat(5),
      bool: fc.boolean(),
      struct,
      strings: fc.array(text, { maxLength: 3 }),
    };
    return [name, values[type]] as const;
  });
  return fc.record(Object.fromEntries(fields));
}

describe.each(Object.entries<Format>(formats))("%s", (name, format) => {
  it("is read by Pulumi's own code as it was written, field by field, and read back from what that writes", () => {
    fc.assert(
      fc.property(anyMessage(format), (message) => {
        const read = theirs(name).deserializeBinary(encode(format, message as Partial<Message<Format>>));
        expect(inOurWords(read, format)).toEqual(message);
        expect(decode(format, Buffer.from(read.serializeBinary()))).toEqual(message);
      }),
      { numRuns: 200 },
    );
  });
});

it("numbers changes and severities as Pulumi does", () => {
  const { DIFF_NONE: none, DIFF_SOME: some } = providerProto.DiffResponse.DiffChanges;
  expect(diffChanges).toEqual({ none, some });
  const kinds = providerProto.PropertyDiff.Kind;
  expect(diffKinds).toEqual({
    add: kinds.ADD,
    addReplace: kinds.ADD_REPLACE,
    delete: kinds.DELETE,
    deleteReplace: kinds.DELETE_REPLACE,
    update: kinds.UPDATE,
    updateReplace: kinds.UPDATE_REPLACE,
  });
  const { INFO: info, WARNING: warning, ERROR: error } = engineProto.LogSeverity;
  expect(logSeverities).toEqual({ info, warning, error });
});

it("passes over what it doesn't know, and refuses what is cut off", () => {
  const request = new providerProto.UpdateRequest().setTimeout(1.5).setName("it").setUrn("urn:pulumi");
  const whole = Buffer.from(request.serializeBinary());
  expect(decode(formats.UpdateRequest, whole)).toMatchObject({ urn: "urn:pulumi", preview: false, olds: undefined });
  expect(() => decode(formats.UpdateRequest, whole.subarray(0, 5))).toThrow(RangeError);
  expect(() => decode(formats.UpdateRequest, whole.subarray(0, -1))).toThrow(RangeError);
  expect(() => decode(formats.UpdateRequest, Buffer.from([1 * 8 + 7]))).toThrow(RangeError);
});

it("keeps a property of a name that every object has", () => {
  const inputs = Object.fromEntries([["__proto__", { a: 1 }]]) as Properties;
  const bytes = encode(formats.InvokeRequest, { args: inputs });
  expect(Object.entries(decode(formats.InvokeRequest, bytes).args ?? {})).toEqual([["__proto__", { a: 1 }]]);
});

/** Their message by our names of the fields: `news` for `getNews`, `failures` for `getFailuresList`. */
function inOurWords(message: Theirs, format: Format): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(format).map(([name, [, type]]) => {
      const getters = message as unknown as Record<string, undefined | (() => unknown)>;
      const getter = (ending: string) => {
        const wanted = `get${name}${ending}`.toLowerCase();
        const found = allNames(message).find((candidate) => candidate.toLowerCase() === wanted);
        return found === undefined ? undefined : getters[found]?.call(message);
      };
      if (type === "struct") return [name, (getter("") as { toJavaScript: () => Properties }).toJavaScript()];
      if (type === "strings") return [name, getter("list")];
      if (typeof type === "string") return [name, getter("")];
      const map = getter("map") as undefined | Map<string, Theirs>;
      const valueFormat = type[0]["value"]?.[1]?.[0];
      if (map === undefined || typeof valueFormat !== "object")
        return [name, (getter("list") as Theirs[]).map((each) => inOurWords(each, type[0]))];
      const entries = [...map.entries()].map(([key]) => [key, map.get(key)] as const);
      return [
        name,
        entries.map(([key, value]) => ({ key, value: value === undefined ? [] : [inOurWords(value, valueFormat)] })),
      ];
    }),
  );
}

function allNames(message: object): string[] {
  return Object.getOwnPropertyNames(Object.getPrototypeOf(message));
}
