/** The server and the client of the substitutes, by the library that they do without. */
import { once } from "node:events";
import { type AddressInfo, createServer } from "node:net";
import * as grpc from "@grpc/grpc-js";
import { expect, it, onTestFinished } from "vitest";
import { Client, type Methods, server } from "../../tools/plugins/grpc.ts";

/** @returns Its address. */
async function serving(methods: Methods): Promise<string> {
  const listener = createServer(server(methods)).listen(0, "127.0.0.1");
  await once(listener, "listening");
  onTestFinished(() => {
    listener.close();
  });
  return `127.0.0.1:${(listener.address() as AddressInfo).port}`;
}

/** Calls `/it/METHOD`. */
async function call(address: string, method: string, request: Buffer, options: grpc.ClientOptions = {}) {
  const client = new grpc.Client(address, grpc.credentials.createInsecure(), {
    "grpc.max_receive_message_length": -1,
    ...options,
  });
  const same = (bytes: Buffer) => bytes;
  try {
    return await new Promise<Buffer | undefined>((resolve, reject) => {
      client.makeUnaryRequest(`/it/${method}`, same, same, request, (error, answer) => {
        if (error) reject(error);
        else resolve(answer);
      });
    });
  } finally {
    client.close();
  }
}

const echo: Methods = { "/it/echo": (request) => Promise.resolve(request) };

it.each([0, 1, 70_000, 30_000_000])("answers with %d bytes", async (length) => {
  const request = Buffer.alloc(length, "x");
  const answer = await call(await serving(echo), "echo", request);
  expect(answer?.equals(request)).toBe(true);
});

it("answers many at once, over one connection, each with its own", async () => {
  const address = await serving(echo);
  const requests = Array.from({ length: 200 }, (_, index) => Buffer.alloc(index, index));
  const answers = await Promise.all(requests.map((request) => call(address, "echo", request)));
  expect(answers.map((answer, index) => answer?.equals(requests[index] ?? Buffer.alloc(1)))).not.toContain(false);
});

it("says what went wrong, whatever characters that is of, and at any length", async () => {
  for (const message of ["a: b/c, 100 %", "two\nlines\ttab", "ü 💥 \u202e", "x".repeat(50_000)]) {
    const address = await serving({ "/it/fail": () => Promise.reject(new Error(message)) });
    await expect(call(address, "fail", Buffer.from(""))).rejects.toMatchObject({ code: 2, details: message });
  }
  const address = await serving({ "/it/fail": () => Promise.reject(new Error("half \ud83d")) });
  await expect(call(address, "fail", Buffer.from(""))).rejects.toMatchObject({ details: "half \ufffd" });
});

it("refuses a method that it doesn't know, also of a name that every object has, and what is compressed", async () => {
  const address = await serving(echo);
  for (const path of ["other", "../toString"])
    await expect(call(address, path, Buffer.from("x"))).rejects.toMatchObject({ code: grpc.status.UNIMPLEMENTED });
  const gzip = { "grpc.default_compression_algorithm": grpc.compressionAlgorithms.gzip };
  await expect(call(address, "echo", Buffer.alloc(2000), gzip)).rejects.toMatchObject({
    code: grpc.status.UNIMPLEMENTED,
  });
  await expect(call(address, "echo", Buffer.from("x"))).resolves.toEqual(Buffer.from("x"));
});

it("goes on when a caller goes away before its answer, or sends what is no HTTP/2", async () => {
  const waiting = Promise.withResolvers<Buffer>();
  const called = Promise.withResolvers<undefined>();
  const address = await serving({
    ...echo,
    "/it/wait": () => {
      called.resolve(undefined);
      return waiting.promise;
    },
  });
  const client = new grpc.Client(address, grpc.credentials.createInsecure());
  const same = (bytes: Buffer) => bytes;
  const gone = new Promise((resolve) => {
    client.makeUnaryRequest("/it/wait", same, same, Buffer.from(""), { deadline: Date.now() + 500 }, resolve);
  });
  await called.promise;
  await gone;
  client.close();
  waiting.resolve(Buffer.from("late"));
  await fetch(`http://${address}/`).catch(() => undefined);
  await expect(call(address, "echo", Buffer.from("x"))).resolves.toEqual(Buffer.from("x"));
});

it("calls a server of the library, in vain where none is there, and again once it is", async () => {
  const address = await serving({});
  const got: string[] = [];
  const client = new Client("127.0.0.1:1");
  await client.call("/it/log", Buffer.from("lost"));
  await new Client(address).call("/it/unknown", Buffer.from("refused"));
  const library = new grpc.Server();
  const same = (bytes: Buffer) => bytes;
  const log = {
    path: "/it/log",
    requestStream: false,
    responseStream: false,
    requestSerialize: same,
    requestDeserialize: same,
    responseSerialize: same,
    responseDeserialize: same,
  };
  library.addService(
    { log },
    {
      log: ({ request }: { request: Buffer }, callback: grpc.sendUnaryData<Buffer>) => {
        got.push(request.toString());
        callback(null, Buffer.from(""));
      },
    },
  );
  const listen = (port: number) =>
    new Promise<number>((resolve, reject) => {
      library.bindAsync(`127.0.0.1:${port}`, grpc.ServerCredentials.createInsecure(), (error, bound) => {
        if (error) reject(error);
        else resolve(bound);
      });
    });
  const own = new Client(`127.0.0.1:${await listen(0)}`);
  onTestFinished(() => {
    library.forceShutdown();
  });
  for (const line of ["one", "", "x".repeat(100_000)]) await own.call("/it/log", Buffer.from(line));
  expect(got.map((line) => line.length)).toEqual([3, 0, 100_000]);
});
