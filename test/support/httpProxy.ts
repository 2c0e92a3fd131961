/** An HTTP proxy as companies have them, which answers everything itself: what comes through it says so. */
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";

/** A running proxy. */
export interface HttpProxy {
  readonly url: string;
  /** Host and port of what it was asked for, in order. */
  readonly asked: readonly string[];
  close(): void;
}

/** The body of each of its answers. */
export const proxyAnswer = "answered by the proxy";

/** Starts one on 127.0.0.1. It takes whole URLs and `CONNECT` to ports without TLS; to others it answers with 502. */
export async function startHttpProxy(): Promise<HttpProxy> {
  const asked: string[] = [];
  const server = createServer((request, response) => {
    if (request.url?.startsWith("http") === true) asked.push(new URL(request.url).host);
    response.end(proxyAnswer);
  });
  server.on("connect", ({ url = "" }, socket) => {
    asked.push(url);
    socket.on("error", () => undefined);
    if (url.endsWith(":443")) socket.end("HTTP/1.1 502 Bad Gateway\r\n\r\n");
    // What comes through the tunnel is one more connection of this very server.
    else socket.write("HTTP/1.1 200 Connection established\r\n\r\n", () => server.emit("connection", socket));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${String((server.address() as AddressInfo).port)}`,
    asked,
    close: () => {
      server.close();
      server.closeAllConnections();
    },
  };
}
