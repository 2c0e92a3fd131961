/**
 * Drives a plugin over gRPC as the engine does. Which ones: the substitute of this checkout, and the genuine plugin where there is one: the
 * executable that FLEET_PLUGIN_COMMAND or FLEET_PLUGIN_TLS names, else `pulumi-resource-NAME` of the PATH, else the one that the
 * CLI has installed.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { delimiter, join, resolve } from "node:path";
import * as grpc from "@grpc/grpc-js";
import structProto from "google-protobuf/google/protobuf/struct_pb.js";
import emptyProto from "google-protobuf/google/protobuf/empty_pb.js";
import engineServices from "@pulumi/pulumi/proto/engine_grpc_pb.js";
import type { LogRequest } from "@pulumi/pulumi/proto/engine_pb.js";
import providerServices from "@pulumi/pulumi/proto/provider_grpc_pb.js";
import providerProto from "@pulumi/pulumi/proto/provider_pb.js";
import { type Properties, type Property, secret } from "../../tools/plugins/propertyValue.ts";
import { isProgram } from "../../tools/setup/host.ts";
import { pluginDirectory } from "../../tools/setup/plugins.ts";

const CHECKOUT = resolve(import.meta.dirname, "../..");

/** How to start the plugin, and what to call it in the titles of tests. */
export interface PluginUnderTest {
  kind: "genuine" | "substitute";
  title: string;
  program: string;
  args: string[];
}

type Name = "command" | "tls";

/** The plugins that a test is to be run with; prints which. */
export function pluginsUnderTest(name: Name): PluginUnderTest[] {
  const genuine = genuinePlugin(name);
  console.log(
    `tested: the substitute of ${name}, ${genuine === undefined ? "no genuine one is here" : genuine.program}`,
  );
  return [...(genuine === undefined ? [] : [genuine]), substituteOf(name)];
}

/** Both plugins for a whole stack: the genuine ones if both are here, and the substitutes. */
export function pluginSetsUnderTest(): { title: string; tested: Record<Name, PluginUnderTest> }[] {
  const [[command], [tls]] = [pluginsUnderTest("command"), pluginsUnderTest("tls")];
  const substitutes = { title: "substitutes", tested: { command: substituteOf("command"), tls: substituteOf("tls") } };
  if (command?.kind !== "genuine" || tls?.kind !== "genuine") return [substitutes];
  return [{ title: "genuine plugins", tested: { command, tls } }, substitutes];
}

function substituteOf(name: Name): PluginUnderTest {
  const args = [substitutePath(name)];
  return { kind: "substitute", title: `the substitute of ${name}`, program: process.execPath, args };
}

function genuinePlugin(name: Name): PluginUnderTest | undefined {
  const program = `pulumi-resource-${name}`;
  const folders = [
    ...(process.env["PATH"] ?? "").split(delimiter),
    join(pluginDirectory(), `resource-${name}-v${version(name)}`),
  ];
  const found =
    process.env[`FLEET_PLUGIN_${name.toUpperCase()}`] ??
    folders
      .map((folder) => join(folder, program))
      // The launcher that set-up writes starts the substitute.
      .find((file) => isProgram(file) && !readFileSync(file).includes(substitutePath(name)));
  return found === undefined ? undefined : { kind: "genuine", title: `the genuine ${name}`, program: found, args: [] };
}

function substitutePath(name: Name): string {
  return join(CHECKOUT, "tools/plugins", name, "main.ts");
}

/** That of the npm package, which is the one that set-up installs. */
function version(name: Name): string {
  const text = readFileSync(join(CHECKOUT, "node_modules/@pulumi", name, "package.json"), "utf8");
  return (JSON.parse(text) as { version: string }).version;
}

/** What a resource's life cycle needs, with plain JavaScript values in the form of the wire. */
export class RunningPlugin {
  /** What the plugin logged so far, in order. */
  readonly log: { severity: number; message: string; ephemeral: boolean; urn: string }[] = [];
  readonly #plugin: ChildProcess;
  readonly #engine: grpc.Server;
  readonly #client: InstanceType<typeof providerServices.ResourceProviderClient>;

  private constructor(plugin: ChildProcess, engine: grpc.Server, port: string) {
    this.#plugin = plugin;
    this.#engine = engine;
    this.#client = new providerServices.ResourceProviderClient(`127.0.0.1:${port}`, grpc.credentials.createInsecure(), {
      "grpc.max_receive_message_length": -1,
      "grpc.max_send_message_length": -1,
    });
  }

  static async start({ program, args }: PluginUnderTest): Promise<RunningPlugin> {
    const engine = new grpc.Server();
    const log: (request: LogRequest) => void = (request) => started?.log.push(logged(request));
    let started: RunningPlugin | undefined = undefined;
    engine.addService(engineServices.EngineService, {
      log: (call: { request: LogRequest }, callback: grpc.sendUnaryData<unknown>) => {
        log(call.request);
        callback(null, new emptyProto.Empty());
      },
    });
    const enginePort = await new Promise<number>((done, reject) => {
      engine.bindAsync("127.0.0.1:0", grpc.ServerCredentials.createInsecure(), (error, port) => {
        if (error) reject(error);
        else done(port);
      });
    });
    const plugin = spawn(program, [...args, `127.0.0.1:${enginePort}`], { stdio: ["ignore", "pipe", "inherit"] });
    const port = await new Promise<string>((done, reject) => {
      plugin.once("error", reject);
      plugin.once("exit", (code) => {
        reject(new Error(`the plugin ended with ${code ?? "a signal"} before it printed its port`));
      });
      plugin.stdout.once("data", (chunk: Buffer) => {
        done(chunk.toString().trim());
      });
    });
    started = new RunningPlugin(plugin, engine, port);
    await started.#call<Message<"ConfigureResponse">>(
      "configure",
      new providerProto.ConfigureRequest().setAcceptsecrets(true),
    );
    return started;
  }

  async stop(): Promise<void> {
    this.#client.close();
    this.#engine.forceShutdown();
    if (this.#plugin.exitCode !== null || this.#plugin.signalCode !== null) return;
    // As the engine does.
    this.#plugin.kill("SIGINT");
    await once(this.#plugin, "exit");
  }

  async version(): Promise<string> {
    const info = await this.#call<{ getVersion: () => string }>("getPluginInfo", new emptyProto.Empty());
    return info.getVersion();
  }

  async check(
    type: string,
    inputs: Properties,
  ): Promise<{ inputs: Properties; failures: { property: string; reason: string }[] }> {
    const request = new providerProto.CheckRequest().setUrn(urn(type)).setNews(struct(inputs)).setOlds(struct({}));
    const response = await this.#call<Message<"CheckResponse">>("check", request);
    return {
      inputs: values(response.getInputs()),
      failures: response
        .getFailuresList()
        .map((failure) => ({ property: failure.getProperty(), reason: failure.getReason() })),
    };
  }

  /** The inputs that differ; those that replace the resource apart. */
  async diff(
    type: string,
    state: Properties,
    inputs: Properties,
  ): Promise<{ changed: boolean; inputs: string[]; replaces: string[] }> {
    const response = await this.#diff(type, state, inputs);
    const top = (paths: string[]) => [...new Set(paths.map((path) => path.replace(/[[.].*/, "")))].sort();
    const { DIFF_SOME } = providerProto.DiffResponse.DiffChanges;
    const detailed = response.getDetaileddiffMap().toArray();
    return {
      changed: response.getChanges() === DIFF_SOME,
      inputs: top(detailed.map(([path]) => path)),
      replaces: top(response.getReplacesList()),
    };
  }

  /** Where exactly they differ: paths in Pulumi's notation. */
  async differingPaths(type: string, state: Properties, inputs: Properties): Promise<string[]> {
    const response = await this.#diff(type, state, inputs);
    return response
      .getDetaileddiffMap()
      .toArray()
      .map(([path]) => path)
      .sort();
  }

  #diff(type: string, state: Properties, inputs: Properties): Promise<Message<"DiffResponse">> {
    const request = new providerProto.DiffRequest()
      .setId("id")
      .setUrn(urn(type))
      .setOlds(struct(state))
      .setNews(struct(inputs));
    return this.#call("diff", request);
  }

  async create(
    type: string,
    inputs: Properties,
    { preview = false, name = "it" } = {},
  ): Promise<{ id: string; state: Properties }> {
    const request = new providerProto.CreateRequest()
      .setUrn(urn(type, name))
      .setProperties(struct(inputs))
      .setPreview(preview);
    const response = await this.#call<Message<"CreateResponse">>("create", request);
    return { id: response.getId(), state: values(response.getProperties()) };
  }

  async update(type: string, state: Properties, inputs: Properties, { preview = false } = {}): Promise<Properties> {
    const request = new providerProto.UpdateRequest()
      .setId("id")
      .setUrn(urn(type))
      .setOlds(struct(state))
      .setNews(struct(inputs))
      .setPreview(preview);
    const response = await this.#call<Message<"UpdateResponse">>("update", request);
    return values(response.getProperties());
  }

  async read(
    type: string,
    id: string,
    state: Properties,
    inputs: Properties,
  ): Promise<{ id: string; state: Properties }> {
    const request = new providerProto.ReadRequest()
      .setId(id)
      .setUrn(urn(type))
      .setProperties(struct(state))
      .setInputs(struct(inputs));
    const response = await this.#call<Message<"ReadResponse">>("read", request);
    return { id: response.getId(), state: values(response.getProperties()) };
  }

  async delete(type: string, state: Properties): Promise<void> {
    const request = new providerProto.DeleteRequest().setId("id").setUrn(urn(type)).setProperties(struct(state));
    await this.#call("delete", request);
  }

  async invoke(token: string, args: Properties): Promise<Properties> {
    const response = await this.#call<Message<"InvokeResponse">>(
      "invoke",
      new providerProto.InvokeRequest().setTok(token).setArgs(struct(args)),
    );
    return values(response.getReturn());
  }

  async cancel(): Promise<void> {
    await this.#call("cancel", new emptyProto.Empty());
  }

  /** Rejects with an error whose message is what the plugin said. */
  #call<Response>(method: Method, request: unknown): Promise<Response> {
    const { path, requestSerialize, responseDeserialize } = providerServices.ResourceProviderService[method];
    return new Promise((done, reject) => {
      this.#client.makeUnaryRequest(
        path,
        requestSerialize as (value: unknown) => Buffer,
        responseDeserialize as (bytes: Buffer) => Response,
        request,
        { deadline: Date.now() + 60_000 },
        (error, response) => {
          if (error) reject(new Error(error.details));
          else if (response === undefined) reject(new Error(`${method} answered nothing`));
          else done(response);
        },
      );
    });
  }
}

/** `value` as a secret input; the tests read better with it. */
export function asSecret(value: Property): Property {
  return secret(value);
}

type Method =
  "configure" | "getPluginInfo" | "check" | "diff" | "create" | "update" | "read" | "delete" | "invoke" | "cancel";
type Proto = typeof providerProto;
type Message<Name extends keyof Proto> = Proto[Name] extends new () => infer T ? T : never;

function logged(request: LogRequest): RunningPlugin["log"][number] {
  return {
    severity: request.getSeverity(),
    message: request.getMessage(),
    ephemeral: request.getEphemeral(),
    urn: request.getUrn(),
  };
}

function urn(type: string, name = "it"): string {
  return `urn:pulumi:test::plugins::${type}::${name}`;
}

function struct(properties: Properties): InstanceType<typeof structProto.Struct> {
  return structProto.Struct.fromJavaScript(properties);
}

function values(message: InstanceType<typeof structProto.Struct> | undefined): Properties {
  return message?.toJavaScript() ?? {};
}
