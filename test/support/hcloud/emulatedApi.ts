/**
 * The Hetzner Cloud API as documented at https://docs.hetzner.cloud/reference/cloud, as far as the plugin and this project use
 * it: pages, label selectors, actions with progress, rate limit headers, error codes. Its servers are real (see host.ts).
 */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { Host, diskFolders, type HostOptions, type Machine } from "./host.ts";

type Json = Record<string, unknown>;

/** One thing in the project. */
export interface Thing extends Json {
  readonly id: number;
  name: string;
  labels: Record<string, string>;
}

/** A request, as faults see it. */
export interface ApiRequest {
  readonly method: string;
  readonly path: string;
  readonly body: Json;
}

/** What the API answers instead of doing what was asked. */
export interface Refusal {
  readonly status: number;
  readonly code: string;
  readonly message?: string;
  /** The request is carried out before the refusal is sent. */
  readonly afterwards?: true;
}

/** Decides about a request; `undefined`: it is answered as usual. */
export type Fault = (request: ApiRequest) => Refusal | "hang up" | undefined;

const collections = {
  servers: "server",
  ssh_keys: "ssh_key",
  firewalls: "firewall",
  networks: "network",
  placement_groups: "placement_group",
  images: "image",
  server_types: "server_type",
  locations: "location",
  actions: "action",
  volumes: "volume",
  primary_ips: "primary_ip",
} as const;
type Kind = keyof typeof collections;

/** What costs money or is in the way of the next fleet. */
const inventoryKinds = [
  "servers",
  "ssh_keys",
  "firewalls",
  "networks",
  "placement_groups",
  "volumes",
  "primary_ips",
] as const;

class ApiError extends Error {
  readonly status: number;
  readonly code: string;

  constructor(status: number, code: string, message: string) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Addresses of all emulated clouds of this process, none twice. */
let nextAddress = 0;

/** An emulated project of Hetzner Cloud. */
export class EmulatedApi {
  /** Asked in order about every request. */
  readonly faults: Fault[] = [];
  /** All requests so far. */
  readonly requests: ApiRequest[] = [];
  /** What is wrong with the hosts that boot from now on. */
  bootFault: HostOptions["fault"];
  /** The one that counts now. */
  token = "t".repeat(64);
  /** Times that an action is polled before it is done. */
  actionPolls = 0;
  readonly #things = new Map<Kind, Map<number, Thing>>();
  readonly #hosts = new Map<number, Machine>();
  readonly #machine: (options: HostOptions) => Machine;
  readonly #userData = new Map<number, string>();
  readonly #snapshots = new Map<number, string>();
  readonly #directory = mkdtempSync(join(tmpdir(), "fleet-hcloud-"));
  readonly #server: Server;
  #nextId = 1000;

  private constructor(machine: (options: HostOptions) => Machine) {
    this.#machine = machine;
    for (const kind of Object.keys(collections) as Kind[]) this.#things.set(kind, new Map());
    for (const [name, zone] of Object.entries({
      fsn1: "eu-central",
      nbg1: "eu-central",
      hel1: "eu-central",
      ash: "us-east",
    })) {
      this.#add("locations", {
        name,
        description: name,
        country: "",
        city: "",
        latitude: 0,
        longitude: 0,
        network_zone: zone,
      });
    }
    for (const [name, architecture, cores] of [
      ["cax11", "arm", 2],
      ["cax31", "arm", 8],
      ["cax41", "arm", 16],
      ["cpx42", "x86", 8],
      ["ccx23", "x86", 4],
    ] as const) {
      const locations = [...this.#all("locations")].filter(({ name: at }) => architecture === "x86" || at !== "ash");
      this.#add("server_types", {
        name,
        description: name,
        category: "regular",
        cores,
        memory: 8,
        disk: 80,
        storage_type: "local",
        cpu_type: "shared",
        architecture,
        prices: [],
        deprecated: false,
        deprecation: null,
        locations: locations.map(({ id, name: at }) => ({ id, name: at, deprecation: null, available: true })),
      });
    }
    for (const name of ["debian-12", "debian-13"]) {
      for (const architecture of ["x86", "arm"]) this.#addImage({ name, type: "system", architecture });
    }
    this.#server = createServer((request, response) => {
      void this.#answer(request, response);
    });
  }

  /** @param machine Boots what a server runs on; default: a `Host`. */
  static async start(
    machine: (options: HostOptions) => Machine = (options) => new Host(options),
  ): Promise<EmulatedApi> {
    const api = new EmulatedApi(machine);
    await new Promise<void>((done) => api.#server.listen(0, "127.0.0.1", done));
    return api;
  }

  /** Stops everything, the hosts included. */
  async stop(): Promise<void> {
    await Promise.all([...this.#hosts.values()].map((host) => host.stop()));
    this.#server.closeAllConnections();
    await new Promise((done) => this.#server.close(done));
    rmSync(this.#directory, { recursive: true, force: true });
  }

  get endpoint(): string {
    const address = this.#server.address();
    if (address === null || typeof address === "string") throw new Error("the emulated API does not listen");
    return `http://127.0.0.1:${address.port}/v1`;
  }

  /** Environment in which Hetzner's tools use it. */
  get env(): Record<string, string> {
    return { HCLOUD_TOKEN: this.token, HCLOUD_ENDPOINT: this.endpoint };
  }

  /** Everything that a destroyed fleet may not leave, as `kind name`. */
  inventory(): string[] {
    return inventoryKinds.flatMap((kind) => this.#all(kind).map(({ name }) => `${kind} ${name}`)).sort();
  }

  /** All things of a kind. */
  all(kind: Kind): readonly Thing[] {
    return this.#all(kind);
  }

  /** Marks a server type as sold out, in the list and for who tries. */
  sellOut(serverType: string, location: string): void {
    const type = this.#all("server_types").find(({ name }) => name === serverType);
    for (const one of (type?.["locations"] ?? []) as { name: string; available: boolean }[]) {
      if (one.name === location) one.available = false;
    }
  }

  /** What a server's host said, for a failing test. */
  hostLog(name: string): string {
    const server = this.#all("servers").find((one) => one.name === name);
    return (server && this.#hosts.get(server.id)?.log) ?? "";
  }

  /** Deletes a server behind everybody's back. */
  async deleteServer(name: string): Promise<void> {
    const server = this.#all("servers").find((one) => one.name === name);
    if (server !== undefined) await this.#deleteServer(server);
  }

  /** Cuts a server's power; it stays in the project. */
  async powerOff(name: string): Promise<void> {
    const server = this.#all("servers").find((one) => one.name === name);
    if (server === undefined) return;
    server["status"] = "off";
    await this.#hosts.get(server.id)?.stop();
    this.#hosts.delete(server.id);
  }

  #all(kind: Kind): Thing[] {
    return [...(this.#things.get(kind)?.values() ?? [])];
  }

  #add(kind: Kind, fields: Json & { name: string }): Thing {
    this.#nextId += 1;
    const thing: Thing = { labels: {}, created: new Date().toISOString(), ...fields, id: this.#nextId };
    this.#things.get(kind)?.set(thing.id, thing);
    return thing;
  }

  #addImage(fields: Json & { name?: string; architecture: string }): Thing {
    return this.#add("images", {
      status: "available",
      description: "",
      image_size: 1,
      disk_size: 5,
      created_from: null,
      bound_to: null,
      os_flavor: "debian",
      os_version: "12",
      rapid_deploy: false,
      protection: { delete: false },
      deprecated: null,
      deleted: null,
      name: null as unknown as string,
      ...fields,
    });
  }

  #get(kind: Kind, id: number): Thing {
    const thing = this.#things.get(kind)?.get(id);
    if (thing === undefined) throw new ApiError(404, "not_found", `${collections[kind]} with ID '${id}' not found`);
    return thing;
  }

  #action(command: string, resources: { id: number; type: string }[] = []): Thing {
    return this.#add("actions", {
      name: command,
      command,
      status: this.actionPolls > 0 ? "running" : "success",
      progress: this.actionPolls > 0 ? 0 : 100,
      polls: 0,
      started: new Date().toISOString(),
      finished: this.actionPolls > 0 ? null : new Date().toISOString(),
      error: null,
      resources,
    });
  }

  /** Brings an action forward by one poll. */
  #progress(action: Thing): Thing {
    const polls = Number(action["polls"]) + 1;
    action["polls"] = polls;
    if (polls >= this.actionPolls && action["status"] === "running") {
      Object.assign(action, { status: "success", progress: 100, finished: new Date().toISOString() });
    } else if (action["status"] === "running") {
      action["progress"] = this.actionPolls === Infinity ? 0 : Math.round((100 * polls) / this.actionPolls);
    }
    return action;
  }

  async #answer(incoming: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(incoming.url ?? "/", "http://localhost");
    const said = await text(incoming);
    const body = said === "" ? {} : (JSON.parse(said) as Json);
    const request: ApiRequest = { method: incoming.method ?? "GET", path: url.pathname.replace(/^\/v1/, ""), body };
    this.requests.push(request);
    const send = (status: number, answer: Json): void => {
      const headers = { "content-type": "application/json", "ratelimit-limit": "3600", "ratelimit-remaining": "3599" };
      response.writeHead(status, { ...headers, "ratelimit-reset": String(Math.floor(Date.now() / 1000) + 1) });
      response.end(status === 204 ? undefined : JSON.stringify(answer));
    };
    const refuse = (status: number, code: string, message: string): void => {
      send(status, { error: { code, message, details: {} } });
    };
    const fault = this.faults.map((ask) => ask(request)).find((answer) => answer !== undefined);
    if (fault !== undefined && fault !== "hang up" && fault.code === "") {
      response.writeHead(fault.status, { "content-type": "text/html" });
      response.end("<html>a proxy says that nobody is behind it</html>");
      return;
    }
    if (fault === "hang up") {
      incoming.socket.destroy();
      return;
    }
    try {
      if (incoming.headers.authorization !== `Bearer ${this.token}`) {
        throw new ApiError(401, "unauthorized", "the token you have provided is invalid");
      }
      if (fault !== undefined && fault.afterwards !== true)
        throw new ApiError(fault.status, fault.code, fault.message ?? fault.code);
      const [status, answer] = await this.#route(request, url.searchParams);
      if (fault !== undefined) throw new ApiError(fault.status, fault.code, fault.message ?? fault.code);
      send(status, answer);
    } catch (error) {
      if (error instanceof ApiError) refuse(error.status, error.code, error.message);
      else refuse(500, "service_error", error instanceof Error ? (error.stack ?? error.message) : String(error));
    }
  }

  async #route({ method, path, body }: ApiRequest, query: URLSearchParams): Promise<[number, Json]> {
    const [, collection = "", id, sub, command] = path.split("/");
    if (!Object.hasOwn(collections, collection)) throw new ApiError(404, "not_found", `no such endpoint: ${path}`);
    const kind = collection as Kind;
    const one = collections[kind];
    if (id === undefined) {
      if (method === "GET") return [200, this.#list(kind, query)];
      if (method === "POST") return [201, this.#create(kind, body)];
    } else if (sub === undefined) {
      const thing = this.#get(kind, Number(id));
      if (method === "GET") return [200, { [one]: kind === "actions" ? this.#progress(thing) : thing }];
      if (method === "PUT") {
        Object.assign(thing, body);
        return [200, { [one]: thing }];
      }
      if (method === "DELETE") return this.#delete(kind, thing);
    } else if (sub === "actions" && command !== undefined && method === "POST") {
      return [201, await this.#act(kind, this.#get(kind, Number(id)), command, body)];
    }
    throw new ApiError(404, "not_found", `no such endpoint: ${method} ${path}`);
  }

  #list(kind: Kind, query: URLSearchParams): Json {
    const ids = query.getAll("id").map(Number);
    const names = query.getAll("name");
    const architectures = query.getAll("architecture");
    const types = query.getAll("type");
    const selector = (query.get("label_selector") ?? "").split(",").filter((term) => term !== "");
    const found = this.#all(kind)
      .filter((thing) => ids.length === 0 || ids.includes(thing.id))
      .filter((thing) => names.length === 0 || names.includes(thing.name))
      .filter((thing) => architectures.length === 0 || architectures.includes(String(thing["architecture"])))
      .filter((thing) => types.length === 0 || types.includes(String(thing["type"])))
      .filter(({ labels }) =>
        selector.every((term) => {
          const [name = "", value] = term.split(/==?/);
          return value === undefined ? name in labels : labels[name] === value;
        }),
      );
    if (query.get("sort") === "created:desc") found.reverse();
    const page = Number(query.get("page") ?? 1);
    const perPage = Math.min(50, Number(query.get("per_page") ?? 25));
    const last = Math.max(1, Math.ceil(found.length / perPage));
    const shown = found.slice((page - 1) * perPage, page * perPage);
    return {
      [kind]: kind === "actions" ? shown.map((action) => this.#progress(action)) : shown,
      meta: {
        pagination: {
          page,
          per_page: perPage,
          previous_page: page > 1 ? page - 1 : null,
          next_page: page < last ? page + 1 : null,
          last_page: last,
          total_entries: found.length,
        },
      },
    };
  }

  #create(kind: Kind, body: Json): Json {
    const name = String(body["name"]);
    if (this.#all(kind).some((thing) => thing.name === name)) {
      throw new ApiError(409, "uniqueness_error", `${collections[kind]} name is already used`);
    }
    const labels = (body["labels"] ?? {}) as Record<string, string>;
    for (const [key, value] of Object.entries(labels)) {
      if (
        !/^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$/.test(key) ||
        !/^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$/.test(value)
      ) {
        throw new ApiError(422, "invalid_input", `invalid label ${key}=${value}`);
      }
    }
    switch (kind) {
      case "servers":
        return this.#createServer(name, labels, body);
      case "ssh_keys": {
        const publicKey = String(body["public_key"]);
        const fingerprint = createHash("md5")
          .update(Buffer.from(publicKey.split(" ")[1] ?? "", "base64"))
          .digest("hex")
          .replaceAll(/..(?!$)/g, "$&:");
        if (this.#all("ssh_keys").some((key) => key["fingerprint"] === fingerprint)) {
          throw new ApiError(409, "uniqueness_error", "SSH key with the same fingerprint already exists");
        }
        return { ssh_key: this.#add(kind, { name, labels, public_key: publicKey, fingerprint }) };
      }
      case "firewalls": {
        const firewall = this.#add(kind, { name, labels, rules: completeRules(body["rules"]), applied_to: [] });
        return { firewall, actions: [this.#action("set_firewall_rules", [{ id: firewall.id, type: "firewall" }])] };
      }
      case "networks":
        return {
          network: this.#add(kind, {
            name,
            labels,
            ip_range: body["ip_range"],
            subnets: [],
            routes: [],
            servers: [],
            load_balancers: [],
            protection: { delete: false },
            expose_routes_to_vswitch: false,
          }),
        };
      case "placement_groups":
        return { placement_group: this.#add(kind, { name, labels, type: body["type"], servers: [] }), action: null };
      default:
        throw new ApiError(404, "not_found", `nothing can be made of ${kind}`);
    }
  }

  #named(kind: Kind, idOrName: unknown, architecture?: unknown): Thing {
    const found = this.#all(kind).find(
      (thing) =>
        (thing.id === Number(idOrName) || thing.name === idOrName) &&
        (architecture === undefined || thing["architecture"] === architecture),
    );
    if (found === undefined)
      throw new ApiError(422, "invalid_input", `${collections[kind]} ${String(idOrName)} does not exist`);
    return found;
  }

  #createServer(name: string, labels: Record<string, string>, body: Json): Json {
    const type = this.#named("server_types", body["server_type"]);
    const location = this.#named("locations", body["location"] ?? "fsn1");
    const image = this.#named("images", body["image"], type["architecture"]);
    const there = (type["locations"] as { name: string; available: boolean }[]).find(
      (one) => one.name === location.name,
    );
    if (there === undefined) {
      throw new ApiError(422, "invalid_input", `unsupported location for server type`);
    }
    if (!there.available) throw new ApiError(412, "resource_unavailable", "error during placement");
    const publicNet = (body["public_net"] ?? { enable_ipv4: true, enable_ipv6: true }) as Json;
    nextAddress += 1;
    const ipv4 = `127.${20 + (process.pid % 40)}.${Math.floor(process.pid / 40) % 250}.${nextAddress}`;
    // A server's address is the first of its network, and IPv6 has one loopback address: only one such server can run.
    const [address, ipv6Network] = publicNet["enable_ipv4"] === false ? ["::1", "::/64"] : [ipv4, "2001:db8::/64"];
    const firewalls = ((body["firewalls"] ?? []) as { firewall: number }[]).map(({ firewall }) => firewall);
    const starts = body["start_after_create"] !== false;
    const server = this.#add("servers", {
      name,
      labels,
      status: starts ? "running" : "off",
      public_net: {
        ipv4: publicNet["enable_ipv4"] === false ? null : { id: 1, ip: ipv4, blocked: false, dns_ptr: name },
        ipv6: publicNet["enable_ipv6"] === false ? null : { id: 2, ip: ipv6Network, blocked: false, dns_ptr: [] },
        floating_ips: [],
        firewalls: firewalls.map((id) => ({ id, status: "applied" })),
      },
      private_net: [],
      server_type: type,
      // `datacenter` left the API on 2026-07-01; version 1.54 of the Terraform provider still reads it.
      location,
      datacenter: {
        id: 1,
        name: `${location.name}-dc1`,
        description: "",
        location,
        server_types: { available: [], supported: [], available_for_migration: [] },
      },
      image,
      included_traffic: 0,
      outgoing_traffic: 0,
      ingoing_traffic: 0,
      backup_window: null,
      rescue_enabled: false,
      iso: null,
      locked: false,
      protection: { delete: false, rebuild: false },
      volumes: [],
      primary_disk_size: 80,
      placement_group:
        body["placement_group"] === undefined ? null : this.#get("placement_groups", Number(body["placement_group"])),
      load_balancers: [],
    });
    for (const id of firewalls) {
      const applied = this.#get("firewalls", id)["applied_to"] as Json[];
      applied.push({ type: "server", server: { id: server.id } });
    }
    this.#userData.set(server.id, typeof body["user_data"] === "string" ? body["user_data"] : "");
    if (starts && this.#userData.get(server.id) !== "") this.#boot(server, address);
    const action = this.#action("create_server", [{ id: server.id, type: "server" }]);
    const start = starts ? [this.#action("start_server", [{ id: server.id, type: "server" }])] : [];
    return { server, action, next_actions: start, root_password: null };
  }

  #boot(server: Thing, address: string): void {
    const snapshot = this.#snapshots.get((server["image"] as Thing).id);
    const fault = this.bootFault;
    this.#hosts.set(
      server.id,
      this.#machine({
        address,
        hostName: server.name,
        userData: this.#userData.get(server.id) ?? "",
        arm: (server["server_type"] as Thing)["architecture"] === "arm",
        ...(snapshot !== undefined && { snapshot }),
        ...(fault !== undefined && { fault }),
      }),
    );
  }

  async #delete(kind: Kind, thing: Thing): Promise<[number, Json]> {
    if (kind === "firewalls" && (thing["applied_to"] as Json[]).length > 0) {
      throw new ApiError(409, "resource_in_use", "Firewall must not be in use to be deleted");
    }
    if (kind === "servers") {
      await this.#deleteServer(thing);
      return [200, { action: this.#action("delete_server", [{ id: thing.id, type: "server" }]) }];
    }
    this.#things.get(kind)?.delete(thing.id);
    const snapshot = this.#snapshots.get(thing.id);
    if (snapshot !== undefined) rmSync(snapshot, { recursive: true });
    return [204, {}];
  }

  async #deleteServer(server: Thing): Promise<void> {
    await this.#hosts.get(server.id)?.stop();
    this.#hosts.delete(server.id);
    this.#things.get("servers")?.delete(server.id);
    for (const firewall of this.#all("firewalls")) {
      firewall["applied_to"] = (firewall["applied_to"] as { server: { id: number } }[]).filter(
        (one) => one.server.id !== server.id,
      );
    }
  }

  async #act(kind: Kind, thing: Thing, command: string, body: Json): Promise<Json> {
    const action = (): Json => ({ action: this.#action(command, [{ id: thing.id, type: collections[kind] }]) });
    switch (`${kind} ${command}`) {
      case "firewalls set_rules":
        thing["rules"] = completeRules(body["rules"]);
        return { actions: [this.#action(command)] };
      case "networks add_subnet":
        (thing["subnets"] as Json[]).push({ ...body, gateway: "10.64.0.1", vswitch_id: null });
        return action();
      case "networks delete_subnet":
        thing["subnets"] = (thing["subnets"] as Json[]).filter((subnet) => subnet["ip_range"] !== body["ip_range"]);
        return action();
      case "servers attach_to_network": {
        const nets = thing["private_net"] as Json[];
        nets.push({
          network: body["network"],
          ip: body["ip"] ?? `10.64.0.${nets.length + 2}`,
          alias_ips: [],
          mac_address: "86:00:00:00:00:01",
        });
        return action();
      }
      case "servers poweroff":
      case "servers shutdown":
        await this.powerOff(thing.name);
        return action();
      case "servers poweron":
        thing["status"] = "running";
        return action();
      case "servers change_type":
        thing["server_type"] = this.#named("server_types", body["server_type"]);
        return action();
      case "servers create_image":
        return { image: this.#snapshot(thing, body), ...action() };
      default:
        throw new ApiError(404, "not_found", `no such action: ${kind} ${command}`);
    }
  }

  /** Keeps what of the host's disk makes it NixOS. */
  #snapshot(server: Thing, body: Json): Thing {
    const image = this.#addImage({
      type: body["type"] ?? "snapshot",
      description: body["description"] ?? "",
      labels: body["labels"] ?? {},
      architecture: String((server["server_type"] as Thing)["architecture"]),
      created_from: { id: server.id, name: server.name },
    });
    const target = join(this.#directory, `snapshot-${image.id}`);
    const host = this.#hosts.get(server.id);
    if (host instanceof Host) {
      execFileSync("mkdir", [target]);
      const pid = host.innerPid();
      image["holds_host_key"] = existsSync(`/proc/${pid}/root/etc/ssh/ssh_host_ed25519_key`);
      const script = `cd /proc/${pid}/root && for f in ${diskFolders.join(" ")}; do [ ! -e $f ] || cp -a --parents $f ${target}; done`;
      execFileSync("sh", ["-c", script]);
    }
    this.#snapshots.set(image.id, target);
    return image;
  }
}

function completeRules(rules: unknown): Json[] {
  return ((rules ?? []) as Json[]).map((rule) => ({
    source_ips: [],
    destination_ips: [],
    port: null,
    description: null,
    ...rule,
  }));
}
