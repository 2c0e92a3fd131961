/**
 * Serves a plugin's resources and functions to the Pulumi engine over gRPC.
 *
 * `@pulumi/pulumi/provider` has a server for this, but its `Provider` interface knows neither previews (so that outputs
 * would be missing instead of unknown), nor detailed differences, nor the engine's log, nor which values are secret; this
 * one stands on the same package's protocol (`@pulumi/pulumi/proto`).
 */
import { once, setMaxListeners } from "node:events";
import { type AddressInfo, createServer } from "node:net";
import * as grpc from "@grpc/grpc-js";
import structProto from "google-protobuf/google/protobuf/struct_pb.js";
import emptyProto from "google-protobuf/google/protobuf/empty_pb.js";
import engineServices from "@pulumi/pulumi/proto/engine_grpc_pb.js";
import engineProto from "@pulumi/pulumi/proto/engine_pb.js";
import pluginProto from "@pulumi/pulumi/proto/plugin_pb.js";
import providerServices from "@pulumi/pulumi/proto/provider_grpc_pb.js";
import providerProto from "@pulumi/pulumi/proto/provider_pb.js";
import { type Difference, type Properties, differences, withoutNulls } from "./propertyValue.ts";
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
  const server = new grpc.Server(CHANNEL_OPTIONS);
  server.addService(providerServices.ResourceProviderService, implementation(plugin, engine, stopping));
  const port = await listen(server, plugin);
  endWithParent(stopping);
  // How the engine ends a plugin. By itself Node would die of it, without keeping what it compiled for the next time.
  process.once("SIGINT", () => {
    stopping.abort(new Error("cancelled"));
    process.exit();
  });
  process.stdout.write(`${port}\n`);
}

/** Listens for the server, and passes on what this user's processes have to say. */
async function listen(server: grpc.Server, plugin: Plugin): Promise<number> {
  const injector = server.createConnectionInjector(grpc.ServerCredentials.createInsecure());
  const uid = process.geteuid?.() ?? NaN;
  const told = new Set<string>();
  const listener = createServer((socket) => {
    const refusal = refusalOf(socket, uid);
    if (refusal === undefined) {
      injector.injectConnection(socket);
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

type Request<T> = grpc.ServerUnaryCall<T, unknown>;
type Reply<T> = grpc.sendUnaryData<T>;
type Proto = typeof providerProto;
type Message<Name extends keyof Proto> = Proto[Name] extends new () => infer T ? T : never;

/** As in Pulumi's Go SDK (`rpcutil.GrpcChannelOptions`): state may be large. */
const CHANNEL_OPTIONS = {
  "grpc.max_receive_message_length": 400 * 1024 * 1024,
  "grpc.max_send_message_length": 400 * 1024 * 1024,
};

function implementation(plugin: Plugin, engine: Engine, stopping: AbortController): grpc.UntypedServiceImplementation {
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
  const answer = <Req, Res>(respond: (request: Req) => Res | Promise<Res>) => {
    return (call: Request<Req>, callback: Reply<Res>): void => {
      const run = async (): Promise<Res> => respond(call.request);
      run()
        .finally(() => engine.delivered())
        .then(
          (response) => {
            callback(null, response);
          },
          (error: unknown) => {
            callback({ code: grpc.status.UNKNOWN, details: error instanceof Error ? error.message : String(error) });
          },
        );
    };
  };

  return {
    getPluginInfo: answer(() => new pluginProto.PluginInfo().setVersion(plugin.version)),
    getSchema: answer(() =>
      new providerProto.GetSchemaResponse().setSchema(JSON.stringify({ name: plugin.name, version: plugin.version })),
    ),
    attach: answer((request: { getAddress: () => string }) => {
      engine.address = request.getAddress();
      return new emptyProto.Empty();
    }),
    checkConfig: answer((request: Message<"CheckRequest">) =>
      new providerProto.CheckResponse().setInputs(request.getNews()),
    ),
    diffConfig: answer(() =>
      new providerProto.DiffResponse().setChanges(providerProto.DiffResponse.DiffChanges.DIFF_NONE),
    ),
    configure: answer(() =>
      new providerProto.ConfigureResponse().setAcceptsecrets(true).setSupportspreview(true).setAcceptresources(false),
    ),
    cancel: answer(() => {
      stopping.abort(new Error("cancelled"));
      return new emptyProto.Empty();
    }),
    check: answer((request: Message<"CheckRequest">) => {
      const { inputs, failures } = resource(request.getUrn()).check(properties(request.getNews()));
      return new providerProto.CheckResponse()
        .setInputs(struct(inputs))
        .setFailuresList(
          failures.map(({ property, reason }) =>
            new providerProto.CheckFailure().setProperty(property).setReason(reason),
          ),
        );
    }),
    diff: answer((request: Message<"DiffRequest">) => {
      const found = resource(request.getUrn()).diff(properties(request.getOlds()), properties(request.getNews()));
      return diffResponse(found.filter(({ input }) => !request.getIgnorechangesList().includes(input)));
    }),
    create: answer(async (request: Message<"CreateRequest">) => {
      const { id, state } = await resource(request.getUrn()).create(
        properties(request.getProperties()),
        operation(request.getUrn(), request.getPreview()),
      );
      return new providerProto.CreateResponse().setId(id).setProperties(struct(state));
    }),
    update: answer(async (request: Message<"UpdateRequest">) => {
      const { update } = resource(request.getUrn());
      if (!update) throw new Error(`${typeOf(request.getUrn())} can't be changed in place, only replaced.`);
      const state = await update(
        properties(request.getOlds()),
        properties(request.getNews()),
        operation(request.getUrn(), request.getPreview()),
      );
      return new providerProto.UpdateResponse().setProperties(struct(state));
    }),
    // What these resources did can't be looked up: the state stands for it, as with the genuine plugins.
    read: answer((request: Message<"ReadRequest">) => {
      const { importError } = resource(request.getUrn());
      const isImport = Object.keys(properties(request.getProperties())).length === 0;
      if (isImport && importError !== undefined) throw new Error(importError);
      return new providerProto.ReadResponse()
        .setId(request.getId())
        .setProperties(request.getProperties())
        .setInputs(request.getInputs());
    }),
    delete: answer(async (request: Message<"DeleteRequest">) => {
      await resource(request.getUrn()).delete(properties(request.getProperties()), operation(request.getUrn(), false));
      return new emptyProto.Empty();
    }),
    invoke: answer(async (request: Message<"InvokeRequest">) => {
      const run = ownValue(plugin.functions, request.getTok());
      if (!run) throw new Error(notServed(plugin, request.getTok(), plugin.functions));
      const result = await run(properties(request.getArgs()), operation("", false));
      return new providerProto.InvokeResponse().setReturn(struct(result));
    }),
  };
}

/** The engine's own service, of which a plugin uses the log. Messages arrive in the order in which they were given. */
class Engine {
  address: string | undefined;
  #client: InstanceType<typeof engineServices.EngineClient> | undefined;
  #lastSent: Promise<void> = Promise.resolve();

  constructor(address: string | undefined) {
    this.address = address;
  }

  log(urn: string, severity: "info" | "warning" | "error", message: string, ephemeral: boolean): void {
    if (this.address === undefined) return;
    this.#client ??= new engineServices.EngineClient(this.address, grpc.credentials.createInsecure(), CHANNEL_OPTIONS);
    const client = this.#client;
    const { INFO, WARNING, ERROR } = engineProto.LogSeverity;
    const request = new engineProto.LogRequest()
      .setSeverity({ info: INFO, warning: WARNING, error: ERROR }[severity])
      .setMessage(message)
      .setUrn(urn)
      .setEphemeral(ephemeral);
    this.#lastSent = this.#lastSent.then(
      () =>
        new Promise((resolve) => {
          // A line that can't be delivered is no reason to fail the resource that it is about.
          client.log(request, () => {
            resolve();
          });
        }),
    );
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

function diffResponse(found: readonly Change[]): Message<"DiffResponse"> {
  const { DIFF_NONE, DIFF_SOME } = providerProto.DiffResponse.DiffChanges;
  const kinds = providerProto.PropertyDiff.Kind;
  const response = new providerProto.DiffResponse()
    .setChanges(found.length === 0 ? DIFF_NONE : DIFF_SOME)
    .setDiffsList(inputsOf(found))
    .setReplacesList(inputsOf(found.filter(({ replaces }) => replaces)))
    .setHasdetaileddiff(true);
  for (const { path, kind, replaces } of found) {
    const code = {
      add: replaces ? kinds.ADD_REPLACE : kinds.ADD,
      delete: replaces ? kinds.DELETE_REPLACE : kinds.DELETE,
      update: replaces ? kinds.UPDATE_REPLACE : kinds.UPDATE,
    }[kind];
    response.getDetaileddiffMap().set(path, new providerProto.PropertyDiff().setKind(code));
  }
  return response;
}

function inputsOf(changes: readonly Change[]): string[] {
  return [...new Set(changes.map(({ input }) => input))];
}

function properties(message: { toJavaScript: () => Properties } | undefined): Properties {
  return withoutNulls(message?.toJavaScript() ?? {});
}

function struct(values: Properties): InstanceType<typeof structProto.Struct> {
  return structProto.Struct.fromJavaScript(values);
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
