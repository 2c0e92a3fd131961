/** A TCP proxy that adds a round-trip time, in userspace: what a network namespace's delay would do, without the right to make one. */
import { connect, createServer, type Socket } from "node:net";

/** A running proxy. */
export interface DelayProxy {
  readonly port: number;
  close(): Promise<void>;
}

/**
 * Forwards connections to `target`, every byte half a round trip late, in order and without limiting the rate.
 *
 * @param roundTrip Milliseconds added to the target's own.
 */
export async function startDelayProxy(
  host: string,
  target: { readonly host: string; readonly port: number },
  roundTrip: number,
): Promise<DelayProxy> {
  const sockets = new Set<Socket>();
  const server = createServer({ noDelay: true, allowHalfOpen: true }, (near) => {
    const far = connect({ ...target, noDelay: true, allowHalfOpen: true });
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      sockets.add(from);
      const later = (work: () => void) => setTimeout(work, roundTrip / 2);
      from.on("data", (chunk: Buffer) => later(() => to.write(chunk)));
      from.on("end", () => later(() => to.end()));
      from.on("error", () => to.destroy());
      from.on("close", () => sockets.delete(from));
    }
  });
  await new Promise<void>((resolve) => server.listen({ host, port: 0 }, resolve));
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("the proxy has no port");
  return {
    port: address.port,
    close: async () => {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
