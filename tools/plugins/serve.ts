/**
 * Serves a plugin's resources and functions to the Pulumi engine over gRPC.
 *
 * `@pulumi/pulumi/provider` has a server for this, but its `Provider` interface knows neither previews (so that outputs
 * would be missing instead of unknown), nor detailed differences, nor the engine's log, nor which values are secret.
 */
import { once, setMaxListeners } from "node:events";
import { type AddressInfo, createServer } from "node:net";
import { Client, type Methods, server } from "./grpc.ts";
import { type Difference, type Properties, differences, withoutNulls } from "./propertyValue.ts";
import {
  type Format,
  type Message,
  decode,
  diffChanges,
  diffKinds,
  encode,
  formats,
  logSeverities,
} from "./protobuf.ts";
import { refusalOf } from "../../src/peer.ts";
import { ownValue } from "../../src/record.ts";

/** A plugin: what it is called, and what it serves by type token. */
export interface Plugin {
  name: string;
  /** Of the genuine plugin that this one stands in for. */
  version: string;
  resources: Record<string, ResourceType>;
  functions: Record<string, (args: Properties, operation: Operation) => Promise<Properties>>;
}

/** What the engine may ask of a resource of one type. A rejection's message is shown to the user as it is. */
export interface ResourceType {
  /** The inputs with defaults and marks of secrecy filled in, or what is wrong with them. */
  check: (inputs: Properties) => Checked;
  /** The inputs that differ between the state and what the program says now. */
  diff: (state: Properties, inputs: Properties) => Change[];
  create: (inputs: Properties, operation: Operation) => Promise<{ id: string; state: Properties }>;
  /** Absent where every change replaces the resource. */
  update?: (state: Properties, inputs: Properties, operation: Operation) => Promise<Properties>;
  delete: (state: Properties, operation: Operation) => Promise<void>;
  /** The error where the engine knows no more than an id: `pulumi import`, and `get` in a program. Absent where that is enough. */
  importError?: string;
}

export interface Checked {
  inputs: Properties;
  failures: { property: string; reason: string }[];
}

export interface Change extends Difference {
  /** The input that it is in. */
  input: string;
  replaces: boolean;
}

/** One request of the engine. */
export interface Operation {
  /** The resource's name in the program. */
  name: string;
  /** True where nothing may be done, and only the outputs to expect are asked for. */
  preview: boolean;
  /** Aborts when the engine gives up or is gone. */
  signal: AbortSignal;
  /** Shows a message at the resource. Ephemeral ones (the default) pass through the status column only. */
  log: (severity: "info" | "warning" | "error", message: string, options?: { ephemeral: boolean }) => void;
}

/** Where the inputs named differ, `replaces` says which of them can't be changed in place. */
export function changes(
  names: readonly string[],
  state: Properties,
  inputs: Properties,
  replaces: (name: string) => boolean,
): Change[] {
  return names.flatMap((input) =>
    differences(input, ownValue(state, input), ownValue(inputs, input)).map((found) => ({
      ...found,
      input,
      replaces: replaces(input),
    })),
  );
}

/**
 * Starts serving on a free port of 127.0.0.1 and prints that port, which is how the engine learns it. Ends with the
 * engine. Serves processes of this user only: whoever may ask for a resource may run any command.
 *
 * @param args what the engine calls the plugin with: options, then the address of the engine's own service.
 */
export async function serve(plugin: Plugin, args: readonly string[]): Promise<void> {
  const stopping = new AbortController();
  // Every running command listens to it, and the engine runs as many at once as the user likes.
  setMaxListeners(0, stopping.signal);
  const engine = new Engine(engineAddress(args));
  const port = await listen(plugin, methodsOf(plugin, engine, stopping));
  endWithParent(stopping);
  // How the engine ends a plugin. By itself Node would die of it, without keeping what it compiled for the next time.
  process.once("SIGINT", () => {
    stopping.abort(new Error("cancelled"));
    process.exit();
  });
  process.stdout.write(`${port}\n`);
}

/** Listens, and passes on what this user's processes have to say. */
async function listen(plugin: Plugin, methods: Methods): Promise<number> {
  const accept = server(methods);
  const uid = process.geteuid?.() ?? NaN;
  const told = new Set<string>();
  const listener = createServer((socket) => {
    const refusal = refusalOf(socket, uid);
    if (refusal === undefined) {
      accept(socket);
      return;
    }
    const from = `${socket.remoteAddress ?? "an unknown address"}:${socket.remotePort ?? "?"}`;
    socket.destroy();
    // Whoever tries again and again must not fill the terminal.
    if (told.has(refusal)) return;
    told.add(refusal);
    console.error(
      `The substitute of the Pulumi plugin "${plugin.name}" refused a connection from ${from}: ${refusal}, ` +
        `and user ${uid} alone is served.`,
    );
  });
  listener.listen(0, "127.0.0.1");
  await once(listener, "listening");
  return (listener.address() as AddressInfo).port;
}

function methodsOf(plugin: Plugin, engine: Engine, stopping: AbortController): Methods {
  const operation = (urn: string, preview: boolean): Operation => ({
    name: nameOf(urn),
    preview,
    signal: stopping.signal,
    log: (severity, message, options) => {
      engine.log(urn, severity, message, options?.ephemeral ?? true);
    },
  });
  const resource = (urn: string): ResourceType => {
    const type = typeOf(urn);
    const served = ownValue(plugin.resources, type);
    if (!served) throw new Error(notServed(plugin, type, plugin.resources));
    return served;
  };
  /** Answers once the log has been delivered, so that no line appears after the resource is done. */
  const method = <Req extends Format, Res extends Format>(
    request: Req,
    response: Res,
    respond: (request: Message<Req>) => Partial<Message<Res>> | Promise<Partial<Message<Res>>>,
  ) => {
    return async (bytes: Buffer): Promise<Buffer> => {
      try {
        return encode(response, await respond(decode(request, bytes)));
      } finally {
        await engine.delivered();
      }
    };
  };
  const { Empty } = formats;
  const methods: Methods = {
    GetPluginInfo: method(Empty, formats.PluginInfo, () => ({ version: plugin.version })),
    GetSchema: method(Empty, formats.GetSchemaResponse, () => ({
      schema: JSON.stringify({ name: plugin.name, version: plugin.version }),
    })),
    Attach: method(formats.PluginAttach, Empty, ({ address }) => {
      engine.address = address;
      return {};
    }),
    CheckConfig: method(formats.CheckRequest, formats.CheckResponse, ({ news }) => ({ inputs: news })),
    DiffConfig: method(Empty, formats.DiffResponse, () => ({ changes: diffChanges.none })),
    Configure: method(Empty, formats.ConfigureResponse, () => ({ acceptSecrets: true, supportsPreview: true })),
    Cancel: method(Empty, Empty, () => {
      stopping.abort(new Error("cancelled"));
      return {};
    }),
    Check: method(formats.CheckRequest, formats.CheckResponse, ({ urn, news }) =>
      resource(urn).check(properties(news)),
    ),
    Diff: method(formats.DiffRequest, formats.DiffResponse, ({ urn, olds, news, ignoreChanges }) => {
      const found = resource(urn).diff(properties(olds), properties(news));
      return diffResponse(found.filter(({ input }) => !ignoreChanges.includes(input)));
    }),
    Create: method(formats.CreateRequest, formats.CreateResponse, async ({ urn, properties: inputs, preview }) => {
      const { id, state } = await resource(urn).create(properties(inputs), operation(urn, preview));
      return { id, properties: state };
    }),
    Update: method(formats.UpdateRequest, formats.UpdateResponse, async ({ urn, olds, news, preview }) => {
      const { update } = resource(urn);
      if (!update) throw new Error(`${typeOf(urn)} can't be changed in place, only replaced.`);
      return { properties: await update(properties(olds), properties(news), operation(urn, preview)) };
    }),
    // What these resources did can't be looked up: the state stands for it, as with the genuine plugins.
    Read: method(formats.ReadRequest, formats.ReadResponse, ({ urn, id, properties: state, inputs }) => {
      const { importError } = resource(urn);
      const isImport = Object.keys(properties(state)).length === 0;
      if (isImport && importError !== undefined) throw new Error(importError);
      return { id, properties: state, inputs };
    }),
    Delete: method(formats.DeleteRequest, Empty, async ({ urn, properties: state }) => {
      await resource(urn).delete(properties(state), operation(urn, false));
      return {};
    }),
    Invoke: method(formats.InvokeRequest, formats.InvokeResponse, async ({ tok, args }) => {
      const run = ownValue(plugin.functions, tok);
      if (!run) throw new Error(notServed(plugin, tok, plugin.functions));
      return { return: await run(properties(args), operation("", false)) };
    }),
  };
  return Object.fromEntries(
    Object.entries(methods).map(([name, answer]) => [`/pulumirpc.ResourceProvider/${name}`, answer]),
  );
}

/** The engine's own service, of which a plugin uses the log. Messages arrive in the order in which they were given. */
class Engine {
  #client: Client | undefined;
  #lastSent: Promise<void> = Promise.resolve();

  constructor(address: string | undefined) {
    this.address = address;
  }

  set address(address: string | undefined) {
    this.#client = address === undefined ? undefined : new Client(address);
  }

  log(urn: string, severity: "info" | "warning" | "error", message: string, ephemeral: boolean): void {
    const client = this.#client;
    if (client === undefined) return;
    const request = encode(formats.LogRequest, { severity: logSeverities[severity], message, urn, ephemeral });
    // A line that can't be delivered is no reason to fail the resource that it is about.
    this.#lastSent = this.#lastSent.then(() => client.call("/pulumirpc.Engine/Log", request));
  }

  /** Resolves when every message given so far has been delivered. */
  delivered(): Promise<void> {
    return this.#lastSent;
  }
}

/** Go sends options first (`-v=9`, `--logtostderr`, `--tracing ADDRESS`); `@pulumi/pulumi/provider` reads them so too. */
function engineAddress(args: readonly string[]): string | undefined {
  return args.find((arg, index) => !arg.startsWith("-") && args[index - 1] !== "--tracing");
}

/** An engine that was killed sends nothing any more: then whatever the plugin is running has to end, and so has it. */
function endWithParent(stopping: AbortController): void {
  const parent = process.ppid;
  setInterval(() => {
    if (process.ppid === parent) return;
    stopping.abort(new Error("cancelled"));
    process.exit(1);
  }, 1000).unref();
}

function diffResponse(found: readonly Change[]): Partial<Message<typeof formats.DiffResponse>> {
  return {
    changes: found.length === 0 ? diffChanges.none : diffChanges.some,
    diffs: inputsOf(found),
    replaces: inputsOf(found.filter(({ replaces }) => replaces)),
    hasDetailedDiff: true,
    detailedDiff: found.map(({ path, kind, replaces }) => ({
      key: path,
      value: [{ kind: diffKinds[replaces ? (`${kind}Replace` as const) : kind] }],
    })),
  };
}

function inputsOf(changes: readonly Change[]): string[] {
  return [...new Set(changes.map(({ input }) => input))];
}

function properties(struct: Properties | undefined): Properties {
  return withoutNulls(struct ?? {});
}

/** urn:pulumi:STACK::PROJECT::PARENT_TYPE$TYPE::NAME */
function typeOf(urn: string): string {
  return (urn.split("::")[2] ?? "").split("$").at(-1) ?? "";
}

function nameOf(urn: string): string {
  return urn.split("::").slice(3).join("::");
}

function notServed(plugin: Plugin, token: string, served: Record<string, unknown>): string {
  return (
    `This substitute of the Pulumi plugin "${plugin.name}" doesn't serve ${token}, only ${Object.keys(served).join(", ")}. ` +
    `Install the genuine plugin: pulumi plugin install resource ${plugin.name} ${plugin.version}`
  );
}
