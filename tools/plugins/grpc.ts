/**
 * Calls with one request and one answer, as gRPC has them over HTTP/2 (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md). Node
 * speaks HTTP/2 by itself; loading `@grpc/grpc-js`, of which this is a small part, would take as long as Node needs to start.
 */
import { type ClientHttp2Session, type ServerHttp2Stream, connect, createServer } from "node:http2";
import type { Socket } from "node:net";
import { ownValue } from "../../src/record.ts";

/** What a path is answered with. A rejection's message is what the caller is told. */
export type Methods = Readonly<Record<string, (request: Buffer) => Promise<Buffer>>>;

/** As in Pulumi's Go SDK (`rpcutil.GrpcChannelOptions`): state may be large. */
const longest = 400 * 1024 * 1024;

/** A message is preceded by a flag (compressed: never) and its length. */
const prefix = 5;

/** https://grpc.github.io/grpc/core/md_doc_statuscodes.html */
const status = { ok: 0, unknown: 2, resourceExhausted: 8, unimplemented: 12 } as const;

/** @returns What takes a connection that was accepted. Nothing of it may have been read. */
export function server(methods: Methods): (connection: Socket) => void {
  // A state may be larger than what Node allows for by default, and so may the error that is sent as a header.
  const unlimited = { maxSessionMemory: Number.MAX_SAFE_INTEGER, maxSendHeaderBlockLength: Number.MAX_SAFE_INTEGER };
  const http2 = createServer(unlimited);
  http2.on("stream", (stream, { ":path": path = "" }) => {
    // A caller that goes away gets no answer.
    stream.on("error", () => undefined);
    const pieces: Buffer[] = [];
    let length = 0;
    stream.on("data", (piece: Buffer) => {
      length += piece.length;
      if (length <= prefix + longest) pieces.push(piece);
      else pieces.length = 0;
    });
    stream.on("end", () => {
      void reply(stream, ownValue(methods, path), length <= prefix + longest ? Buffer.concat(pieces) : undefined);
    });
  });
  http2.on("sessionError", () => undefined);
  return (connection) => http2.emit("connection", connection);
}

async function reply(
  stream: ServerHttp2Stream,
  method: Methods[string] | undefined,
  request: Buffer | undefined,
): Promise<void> {
  const answered = await answer(method, request);
  if (stream.destroyed) return;
  stream.on("wantTrailers", () => {
    stream.sendTrailers({ "grpc-status": answered.status, "grpc-message": encodeURI(answered.message ?? "") });
  });
  stream.respond({ ":status": 200, "content-type": "application/grpc" }, { waitForTrailers: true });
  stream.end(answered.body === undefined ? undefined : framed(answered.body));
}

async function answer(
  method: Methods[string] | undefined,
  request: Buffer | undefined,
): Promise<{ status: number; message?: string; body?: Buffer }> {
  if (method === undefined) return { status: status.unimplemented, message: "this plugin doesn't know that method" };
  if (request === undefined)
    return { status: status.resourceExhausted, message: `a request is ${longest} bytes at most` };
  if (request.length < prefix || request[0] !== 0)
    return { status: status.unimplemented, message: "a request is one message that is not compressed" };
  try {
    return { status: status.ok, body: await method(request.subarray(prefix)) };
  } catch (error) {
    // Lone halves of a surrogate pair can't be encoded.
    const message = (error instanceof Error ? error.message : String(error)).toWellFormed();
    return { status: status.unknown, message };
  }
}

/** The caller of another process's methods. It connects when it is first used, and again when the connection is lost. */
export class Client {
  readonly #address: string;
  #session: ClientHttp2Session | undefined;

  /** @param address HOST:PORT */
  constructor(address: string) {
    this.#address = address;
  }

  /** Resolves when the call is over, whatever came of it. */
  call(path: string, request: Buffer): Promise<void> {
    return new Promise((resolve) => {
      if (this.#session === undefined || this.#session.closed || this.#session.destroyed) {
        this.#session = connect(`http://${this.#address}`);
        this.#session.on("error", () => undefined);
      }
      const stream = this.#session.request({
        ":method": "POST",
        ":path": path,
        "content-type": "application/grpc",
        te: "trailers",
      });
      stream.on("error", () => undefined);
      stream.on("close", resolve);
      stream.resume();
      stream.end(framed(request));
    });
  }
}

function framed(message: Buffer): Buffer {
  const frame = Buffer.alloc(prefix + message.length);
  frame.writeUInt32BE(message.length, 1);
  message.copy(frame, prefix);
  return frame;
}
