/** SSH connections as the inputs `connection` and `connection.proxy` describe them. */
import { createHash } from "node:crypto";
import { Socket, isIPv6 } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import type { Duplex } from "node:stream";
import ssh2 from "ssh2";
import sshpk from "sshpk";
import type { AnyAuthMethod, Client, ConnectConfig, ParsedKey, ServerHostKeyAlgorithm } from "ssh2";
import { type Properties, isObject } from "../propertyValue.ts";
import type { Operation } from "../serve.ts";
import { text } from "./execution.ts";
import { ownValue } from "../../../src/record.ts";

/**
 * Connects, through the proxy if there is one, hands the client over, and hangs up afterwards.
 *
 * A dial that fails, for whatever reason, is repeated until `dialErrorLimit` repetitions have failed too (-1: for ever),
 * with pauses that grow from 0.1 to 5 seconds, as in pulumi-command 1.2.1 (`remote/connection.go`) and Pulumi's Go SDK
 * (`util/retry`). A host key other than `hostKey` is such a failure: nothing is ever sent to that host.
 *
 * @param connection the input without marks of secrecy, defaults included.
 * @throws after the last dial, with its reason.
 */
export async function withClient<T>(
  connection: Properties,
  operation: Operation,
  use: (client: Client) => Promise<T>,
): Promise<T> {
  const target = hostOf(connection, "connection");
  if (!isObject(connection["proxy"])) {
    return hangUp(await retry("Dial", target, operation, () => dial(target, operation)), use);
  }
  const proxy = hostOf(connection["proxy"], "connection.proxy");
  const proxyClient = await retry("Dial proxy", proxy, operation, () => dial(proxy, operation)).catch(throughProxy);
  return hangUp(proxyClient, async () => {
    const client = await retry("Dial from proxy", target, operation, async () =>
      dial(target, operation, await forward(proxyClient, target)),
    ).catch(throughProxy);
    return hangUp(client, use);
  });
}

/** One end of a connection, checked. */
interface Host {
  address: string;
  port: number;
  dialErrorLimit: number;
  /** Of one dial with its handshake, in seconds; 0: none. */
  timeout: number;
  /** Absent where any host is accepted, as the genuine plugin does without `hostKey`. */
  hostKey?: HostKey;
  config: ConnectConfig;
}

interface HostKey {
  type: string;
  /** In the binary form in which a server presents it. */
  blob: Buffer;
  /** The input that it comes from. */
  input: string;
}

function hostOf(values: Properties, path: string): Host {
  const number = (name: string, otherwise: number) => {
    const value = ownValue(values, name);
    return typeof value === "number" ? value : otherwise;
  };
  const hostKey = text(values["hostKey"]);
  return {
    address: text(values["host"]) ?? "",
    port: Math.trunc(number("port", 22)),
    dialErrorLimit: number("dialErrorLimit", 10),
    timeout: number("perDialTimeout", 15),
    ...(hostKey !== undefined && { hostKey: parseHostKey(hostKey, `${path}.hostKey`) }),
    config: { username: text(values["user"]) ?? "root", authHandler: authMethods(values, path) },
  };
}

/** In the order of the genuine plugin; SSH tries each *method* once, so an agent counts only where there is no key. */
function authMethods(values: Properties, path: string): AnyAuthMethod[] {
  const username = text(values["user"]) ?? "root";
  const methods: AnyAuthMethod[] = [{ type: "none", username }];
  const [key, password] = [text(values["privateKey"]), text(values["password"])];
  const agent = text(values["agentSocketPath"]) ?? process.env["SSH_AUTH_SOCK"];
  if (key !== undefined) {
    methods.push({ type: "publickey", username, key: parsePrivateKey(key, text(values["privateKeyPassword"]), path) });
  }
  if (password !== undefined) {
    methods.push({ type: "password", username, password });
    methods.push({
      type: "keyboard-interactive",
      username,
      prompt: (_name, _instructions, _language, prompts, finish) => {
        finish(prompts.map(() => password));
      },
    });
  }
  if (key === undefined && agent !== undefined && agent !== "") methods.push({ type: "agent", username, agent });
  return methods;
}

function parsePrivateKey(key: string, passphrase: string | undefined, path: string): ParsedKey {
  // Declared otherwise, but a file in OpenSSH form gives a list of keys.
  const [parsed] = [ssh2.utils.parseKey(openSshForm(key.trim()), passphrase)].flat();
  if (parsed && !(parsed instanceof Error) && parsed.isPrivateKey()) return parsed;
  // The text of the key stays out of the error.
  throw new Error(
    `${path}.privateKey can't be read: ${parsed instanceof Error ? parsed.message : "it is a public key"}. ` +
      "It must be a private key in OpenSSH or PEM form, and privateKeyPassword its password if it has one.",
  );
}

/** ssh2 doesn't read PKCS#8, which is the only PEM form that there is of an ED25519 key. */
function openSshForm(key: string): string {
  if (!key.startsWith("-----BEGIN PRIVATE KEY-----")) return key;
  return sshpk.parsePrivateKey(key, "pkcs8").toString("ssh").trim();
}

/** @param line as in authorized_keys or in a `.pub` file: options may stand before the key, a comment after it. */
function parseHostKey(line: string, input: string): HostKey {
  const words = line.trim().split(/\s+/);
  const at = words.findIndex((word, index) => keyTypeOf(words[index + 1]) === word);
  const [type, base64] = at === -1 ? [] : words.slice(at);
  if (type === undefined || base64 === undefined) {
    throw new Error(
      `${input} is no public host key: it must be one line as in a .pub file, such as "ssh-ed25519 AAAA…".`,
    );
  }
  return { type, blob: Buffer.from(base64, "base64"), input };
}

/** @param mismatched called with what is wrong when the host presents another key; the handshake then ends. */
function pinned({ type, blob, input }: HostKey, mismatched: (reason: string) => void): ConnectConfig {
  return {
    // Ask for the pinned key: a server has one of each type.
    algorithms: { serverHostKey: HOST_KEY_ALGORITHMS.filter((algorithm) => algorithmType(algorithm) === type) },
    hostVerifier: (presented: Buffer) => {
      if (presented.equals(blob)) return true;
      mismatched(`the host presents ${fingerprint(presented)}, but ${input} is ${fingerprint(blob)}`);
      return false;
    },
  };
}

const HOST_KEY_ALGORITHMS: ServerHostKeyAlgorithm[] = [
  "ssh-ed25519",
  "ecdsa-sha2-nistp256",
  "ecdsa-sha2-nistp384",
  "ecdsa-sha2-nistp521",
  "rsa-sha2-512",
  "rsa-sha2-256",
  "ssh-rsa",
];

/** The type of the keys that an algorithm signs with. */
function algorithmType(algorithm: string): string {
  return algorithm.startsWith("rsa-") ? "ssh-rsa" : algorithm;
}

function fingerprint(key: Buffer): string {
  return `SHA256:${createHash("sha256").update(key).digest("base64").replace(/=+$/, "")}`;
}

/** A key in base64 begins with the length and the name of its type. */
function keyTypeOf(base64: string | undefined): string | undefined {
  const key = Buffer.from(base64 ?? "", "base64");
  return key.length < 4 ? undefined : key.subarray(4, 4 + key.readUInt32BE(0)).toString();
}

async function retry<T>(what: string, host: Host, { signal, log }: Operation, attempt: () => Promise<T>): Promise<T> {
  const limit = host.dialErrorLimit;
  for (let failed = 0, pause = 100; ; failed += 1, pause = Math.min(pause * 1.5, 5000)) {
    try {
      return await attempt();
    } catch (error) {
      signal.throwIfAborted();
      const reason = error instanceof Error ? error.message : String(error);
      if (limit >= 0 && failed >= limit)
        throw new Error(`after ${failed} failed attempts: ${reason}`, { cause: error });
      log("info", `${what} ${failed + 1}/${limit < 0 ? "inf" : limit} failed: retrying`);
    }
    await delay(pause, undefined, { signal });
  }
}

/** @param tunnel to the host, where the connection doesn't go there directly. */
async function dial(host: Host, { signal }: Operation, tunnel?: Duplex): Promise<Client> {
  signal.throwIfAborted();
  const client = new ssh2.Client();
  const socket = tunnel ?? new Socket().connect(host.port, host.address);
  const hangUpAtOnce = () => client.destroy();
  signal.addEventListener("abort", hangUpAtOnce);
  return new Promise((resolve, reject) => {
    let mismatch: string | undefined;
    const fail = (error: Error) => {
      socket.destroy();
      reject(
        mismatch === undefined
          ? dialError(error, host)
          : new Error(`ssh: handshake failed: ssh: host key mismatch: ${mismatch}`),
      );
    };
    // An error after the first one is its echo. Unheard, it would end the plugin.
    client.on("error", fail);
    client.on("ready", () => {
      resolve(client);
    });
    client.on("close", () => {
      signal.removeEventListener("abort", hangUpAtOnce);
      fail(new Error("ssh: handshake failed: connection closed"));
    });
    const pin = host.hostKey && pinned(host.hostKey, (reason) => (mismatch = reason));
    try {
      // No compression, as the genuine plugin: a kilobyte could become a megabyte.
      const algorithms = { ...pin?.algorithms, compress: ["none" as const] };
      client.connect({ ...host.config, ...pin, algorithms, sock: socket, readyTimeout: host.timeout * 1000 });
    } catch (error) {
      fail(error instanceof Error ? error : new Error(String(error)));
    }
  });
}

/** The words of Go's net and x/crypto/ssh, which people know from the genuine plugin. */
function dialError(error: Error & { code?: unknown; level?: string }, host: Host): Error {
  const endpoint = `${isIPv6(host.address) ? `[${host.address}]` : host.address}:${host.port}`;
  if (error.level === "client-authentication") {
    return new Error("ssh: handshake failed: ssh: unable to authenticate, no supported methods remain");
  }
  if (error.level === "client-timeout") return new Error(`dial tcp ${endpoint}: i/o timeout`);
  if (error.code === "ECONNREFUSED") return new Error(`dial tcp ${endpoint}: connect: connection refused`);
  return new Error(`dial tcp ${endpoint}: ${error.message}`);
}

function forward(proxy: Client, { address, port }: Host): Promise<Duplex> {
  return new Promise((resolve, reject) => {
    proxy.forwardOut("127.0.0.1", 0, address, port, (error, channel) => {
      if (error) reject(error);
      else resolve(channel);
    });
  });
}

async function hangUp<T>(client: Client, use: (client: Client) => Promise<T>): Promise<T> {
  try {
    return await use(client);
  } finally {
    client.end();
  }
}

function throughProxy(error: unknown): never {
  throw new Error(`proxy: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
}
