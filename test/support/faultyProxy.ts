/** A TCP proxy on loopback that can fall silent: what a half-open connection looks like to both ends. */
import { connect, createServer, type AddressInfo, type Socket } from "node:net";

/** The proxy. */
export class FaultyProxy {
  /** Port on 127.0.0.1. */
  readonly port: number;
  readonly #pairs: Set<readonly [Socket, Socket]>;
  readonly #stop: () => Promise<void>;
  #silent = false;

  private constructor(port: number, pairs: Set<readonly [Socket, Socket]>, stop: () => Promise<void>) {
    this.port = port;
    this.#pairs = pairs;
    this.#stop = stop;
  }

  /** Starts to forward to this address and port. */
  static async to(host: string, port: number): Promise<FaultyProxy> {
    const pairs = new Set<readonly [Socket, Socket]>();
    const server = createServer((near) => {
      const far = connect({ host, port });
      const pair = [near, far] as const;
      pairs.add(pair);
      for (const [from, to] of [pair, [far, near] as const]) {
        // What is said while the proxy is silent is lost, as in a network that drops packets without a word.
        from.on("data", (data) => proxy.#silent || to.write(data));
        from.on("error", () => to.destroy());
        from.on("close", () => {
          if (!proxy.#silent) to.destroy();
        });
      }
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const proxy = new FaultyProxy((server.address() as AddressInfo).port, pairs, async () => {
      const closed = new Promise((resolve) => server.close(resolve));
      for (const pair of pairs) for (const socket of pair) socket.destroy();
      await closed;
    });
    return proxy;
  }

  /** From now on nothing passes, in either direction, and no connection is closed. */
  fallSilent(): void {
    this.#silent = true;
  }

  /** Connections that were made so far. */
  get connections(): number {
    return this.#pairs.size;
  }

  stop(): Promise<void> {
    return this.#stop();
  }
}
