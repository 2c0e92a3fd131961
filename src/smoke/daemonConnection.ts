/**
 * Speaks the protocol of a builder's Nix daemon by hand, over ssh with the client's key: what Nix itself as the client would never send.
 *
 * Source: NixOS/nix, src/libstore/daemon.cc and worker-protocol. Version 1.35 is spoken, or the daemon's own if that is older.
 */
import { spawn, type ChildProcessByStdio } from "node:child_process";
import type { Readable, Writable } from "node:stream";

/** What came of one message. */
export interface Answer {
  /** The daemon's error; `undefined`: it did what was asked. */
  readonly error: string | undefined;
  /** Everything that it said meanwhile: its log, and the builds'. */
  readonly said: string;
}

/** Who answers, and how long it may take. */
export interface DaemonAddress {
  readonly alias: string;
  /** Folder with the emitted files. */
  readonly clientDirectory: string;
  /** Seconds until every wait ends with an error. */
  readonly patience: number;
}

/** The connection ended, or what came over it is no answer of a Nix daemon. */
export class ConnectionLost extends Error {
  override readonly name = "ConnectionLost";
}

const magic = { client: 0x6e697863, server: 0x6478696f } as const;
const spoken = 0x123;
const operations = { isValidPath: 1, buildPaths: 9, setOptions: 19, collectGarbage: 20, addToStoreNar: 39 } as const;
const messages = {
  next: 0x6f6c6d67,
  read: 0x64617461,
  write: 0x64617416,
  last: 0x616c7473,
  error: 0x63787470,
  startActivity: 0x53545254,
  stopActivity: 0x53544f50,
  result: 0x52534c54,
} as const;

/** More than that a builder needn't say to a probe. */
const mostBytes = 4 * 2 ** 20;

/** One connection to one daemon. */
export class DaemonConnection {
  readonly #ssh: ChildProcessByStdio<Writable, Readable, Readable>;
  readonly #chunks: AsyncIterator<Buffer, undefined>;
  readonly #timer: NodeJS.Timeout;
  #buffer = Buffer.alloc(0);
  #read = 0;
  #stderr = "";
  #version = 0;
  /** Whether it says that it trusts the client; `undefined`: it is too old to say so. */
  trusted: boolean | undefined;

  private constructor({ alias, clientDirectory, patience }: DaemonAddress) {
    const own = ["-F", `${clientDirectory}/ssh_config`, "-o", "ControlMaster=no", "-o", "ControlPath=none"];
    this.#ssh = spawn("ssh", [...own, alias, "nix-daemon --stdio"], { stdio: ["pipe", "pipe", "pipe"] });
    this.#ssh.stderr.on("data", (chunk: Buffer) => {
      this.#stderr = (this.#stderr + chunk.toString()).slice(-2000);
    });
    // It may end before it has read everything.
    this.#ssh.stdin.on("error", () => undefined);
    this.#ssh.once("error", () => undefined);
    this.#chunks = this.#ssh.stdout[Symbol.asyncIterator]() as AsyncIterator<Buffer, undefined>;
    this.#timer = setTimeout(() => this.#ssh.kill(), patience * 1000);
  }

  /** @throws ConnectionLost where no daemon answers */
  static async open(address: DaemonAddress): Promise<DaemonConnection> {
    const connection = new DaemonConnection(address);
    try {
      await connection.#greet();
    } catch (error) {
      connection.close();
      throw error;
    }
    return connection;
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#ssh.kill();
  }

  /** Settings that the daemon is to use for this client. */
  setOptions(overrides: Readonly<Record<string, string>>): Promise<Answer> {
    const [keepFailed, keepGoing, fallback, verbosity, maxJobs, maxSilent, hook, verboseBuild] = [
      0, 0, 0, 3, 1, 0, 1, 0,
    ];
    const [logType, trace, cores, substitutes] = [0, 0, 1, 1];
    const pairs = Object.entries(overrides);
    return this.#ask(
      operations.setOptions,
      ...[keepFailed, keepGoing, fallback, verbosity, maxJobs, maxSilent, hook, verboseBuild, logType, trace, cores],
      ...[substitutes, pairs.length, ...pairs.flat()],
    );
  }

  /** Builds what `PATH.drv!out` names. @param check Builds again what is there, and compares. */
  buildPaths(paths: readonly string[], check = false): Promise<Answer> {
    return this.#ask(operations.buildPaths, paths, check ? 2 : 0).then(async (answer) => {
      if (answer.error === undefined) await this.#number();
      return answer;
    });
  }

  /** Whether a store path is valid there. */
  async isValidPath(path: string): Promise<boolean> {
    const { error } = await this.#ask(operations.isValidPath, path);
    return error === undefined && (await this.#number()) === 1;
  }

  /** Imports a file as a store path, however it is signed. */
  addToStoreNar(path: string, nar: Buffer, narHash: string, signatures: readonly string[]): Promise<Answer> {
    const [registrationTime, ultimate, repair, dontCheckSignatures] = [0, 0, 0, 1];
    const info = [
      path,
      "",
      narHash,
      [],
      registrationTime,
      nar.length,
      ultimate,
      signatures,
      "",
      repair,
      dontCheckSignatures,
    ];
    return this.#ask(operations.addToStoreNar, ...info, nar);
  }

  /** What could be deleted, and deletes nothing. @param ignoreLiveness Asks to delete `paths` even if they are in use. */
  collectGarbage(paths: readonly string[], ignoreLiveness: boolean): Promise<Answer> {
    const [returnDead, deleteSpecific] = [1, 3];
    const action = paths.length === 0 ? returnDead : deleteSpecific;
    return this.#ask(operations.collectGarbage, action, paths, ignoreLiveness ? 1 : 0, 0, 0, 0, 0).then(
      async (answer) => {
        if (answer.error !== undefined) return answer;
        for (let left = await this.#number(); left > 0; left -= 1) await this.#string();
        await this.#number();
        await this.#number();
        return answer;
      },
    );
  }

  async #greet(): Promise<void> {
    this.#send(magic.client);
    if ((await this.#number()) !== magic.server) throw new ConnectionLost("something else than a Nix daemon answers");
    this.#version = Math.min(spoken, await this.#number());
    this.#send(spoken, 0, 0);
    if (this.#version >= 0x121) await this.#string();
    if (this.#version >= 0x123) this.trusted = [undefined, true, false][await this.#number()];
    const { error } = await this.#untilLast();
    if (error !== undefined) throw new ConnectionLost(error);
  }

  async #ask(operation: number, ...values: readonly (Value | Buffer)[]): Promise<Answer> {
    this.#send(operation, ...values);
    return this.#untilLast();
  }

  #send(...values: readonly (Value | Buffer)[]): void {
    // A framed stream: chunks with their lengths, then an empty one.
    const encoded = values.map((value) =>
      Buffer.isBuffer(value) ? Buffer.concat([encode(value.length), value, encode(0)]) : encode(value),
    );
    this.#ssh.stdin.write(Buffer.concat(encoded));
  }

  async #untilLast(): Promise<Answer> {
    const said: string[] = [];
    for (;;) {
      const message = await this.#number();
      switch (message) {
        case messages.last:
          return { error: undefined, said: said.join("\n") };
        case messages.error: {
          const error = await this.#error();
          return { error, said: said.join("\n") };
        }
        case messages.next:
          said.push(await this.#string());
          break;
        case messages.write:
          await this.#string();
          break;
        case messages.startActivity:
          await this.#numbers(3);
          said.push(await this.#string(), ...(await this.#fields()));
          await this.#number();
          break;
        case messages.stopActivity:
          await this.#number();
          break;
        case messages.result:
          await this.#numbers(2);
          said.push(...(await this.#fields()));
          break;
        default:
          throw new ConnectionLost(`it sends a message of the unknown kind ${message}`);
      }
    }
  }

  async #error(): Promise<string> {
    if (this.#version < 0x11a) {
      const text = await this.#string();
      await this.#number();
      return text;
    }
    await this.#string();
    await this.#number();
    await this.#string();
    const parts = [await this.#string()];
    await this.#number();
    for (let left = await this.#number(); left > 0; left -= 1) {
      await this.#number();
      parts.push(await this.#string());
    }
    return parts.join("\n");
  }

  async #fields(): Promise<string[]> {
    const texts: string[] = [];
    for (let left = await this.#number(); left > 0; left -= 1) {
      if ((await this.#number()) === 0) await this.#number();
      else texts.push(await this.#string());
    }
    return texts;
  }

  async #numbers(count: number): Promise<void> {
    await this.#take(count * 8);
  }

  async #number(): Promise<number> {
    return Number((await this.#take(8)).readBigUInt64LE());
  }

  async #string(): Promise<string> {
    const length = await this.#number();
    const padded = await this.#take(length + ((8 - (length % 8)) % 8));
    return padded.subarray(0, length).toString();
  }

  async #take(length: number): Promise<Buffer> {
    if (this.#read + length > mostBytes) throw new ConnectionLost("it says more than a Nix daemon would");
    while (this.#buffer.length < length) {
      const next = await this.#chunks.next();
      if (next.done === true) throw new ConnectionLost(this.#stderr.trim() || "it closed the connection");
      this.#buffer = Buffer.concat([this.#buffer, next.value]);
    }
    const taken = this.#buffer.subarray(0, length);
    this.#buffer = this.#buffer.subarray(length);
    this.#read += length;
    return taken;
  }
}

type Value = number | string | readonly string[];

/** Everything comes in blocks of eight bytes. */
function encode(value: Value): Buffer {
  if (typeof value === "number") {
    const eight = Buffer.alloc(8);
    eight.writeBigUInt64LE(BigInt(value));
    return eight;
  }
  if (typeof value === "string") {
    const text = Buffer.from(value);
    return Buffer.concat([encode(text.length), text, Buffer.alloc((8 - (text.length % 8)) % 8)]);
  }
  return Buffer.concat([encode(value.length), ...value.map(encode)]);
}

/** A regular file in Nix's archive format. */
export function narOf(contents: string): Buffer {
  return Buffer.concat(["nix-archive-1", "(", "type", "regular", "contents", contents, ")"].map(encode));
}
