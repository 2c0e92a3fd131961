/**
 * A port on this machine that leads to one builder, for so many bytes and so many seconds.
 *
 * A resource of `command` has no limit of its own: its plugin reads a machine's answer into memory for as long as it comes, and waits for a
 * silent one for ever, `customTimeouts` or not (pulumi-command 1.2.1 hands the time limit to no SSH session). So it doesn't connect to
 * the machine but to a gate in the program, which ends the connection. The plugin still checks the machine's host key, through it.
 */
import { createHash } from "node:crypto";
import { connect, createServer, type Server, type Socket } from "node:net";
import { refusalOf } from "./peer.ts";
import { sizeInWords } from "./process.ts";

/** Where a gate leads. */
export interface Destination {
  readonly host: string;
  readonly port: number;
}

/** What a gate lets through. */
export interface GateLimits {
  /** Of one connection. */
  readonly seconds: number;
  /** Until the machine says its first word on it. Default: 10. */
  readonly silence?: number;
  /** From the machine, on one connection. */
  readonly bytes: number;
}

/** An open gate. */
export interface Gate {
  /** `gatePort(name)`, or the next one that was free. */
  readonly port: number;
  /**
   * Ends what goes through it, within limits or not, and lets nobody through any more. The genuine plugin `command` needs that: it hangs up no
   * connection of a command that is done, until it ends itself (seen with 1.2.1).
   */
  readonly close: () => void;
}

/** Where gates are. */
export const gateHost = "127.0.0.1";

/** Ports below those that systems hand out by themselves. */
const [firstPort, ports] = [20_000, 12_000];

/**
 * The port at which a gate of that name is looked for first, so that it is an unchanged input in the next deployment.
 *
 * @param name Tells it from all others on this machine.
 */
export function gatePort(name: string): number {
  return firstPort + (createHash("sha256").update(name).digest().readUInt32BE(0) % ports);
}

/**
 * Opens a gate, for processes of this user only: others could have the machine cut off. It closes with the process, and doesn't keep that
 * alive.
 *
 * @param report Told, once, by what limit the machine was cut off; from then on nobody comes through.
 */
export async function openGate(
  name: string,
  to: Destination,
  limits: GateLimits,
  report: (reason: string) => void,
): Promise<Gate> {
  const connections = new Set<Socket>();
  let shut = false;
  const shutBecause = (reason: string): void => {
    if (!shut) report(reason);
    shut = true;
  };
  const uid = process.geteuid?.() ?? NaN;
  const server = createServer((socket) => {
    if (shut || refusalOf(socket, uid) !== undefined) {
      socket.destroy();
      return;
    }
    connections.add(socket);
    socket.on("close", () => connections.delete(socket));
    lead(socket, to, limits, shutBecause);
  });
  const close = (): void => {
    shut = true;
    server.close();
    for (const socket of connections) socket.destroy();
  };
  server.unref();
  const first = gatePort(name);
  for (let port = first; port < first + 100; port += 1) if (await listens(server, port)) return { port, close };
  throw new Error(`no port from ${first} to ${first + 99} of ${gateHost} is free`);
}

function lead(near: Socket, { host, port }: Destination, limits: GateLimits, report: (reason: string) => void): void {
  const far = connect({ host, port });
  let left = limits.bytes;
  const end = (): void => {
    clearTimeout(late);
    clearTimeout(silent);
    near.destroy();
    far.destroy();
  };
  const cut = (reason: string) => (): void => {
    end();
    report(reason);
  };
  const { seconds, silence = 10, bytes } = limits;
  const late = setTimeout(cut(`it was not done within ${seconds} s`), seconds * 1000);
  const silent = setTimeout(cut(`it said nothing within ${silence} s`), silence * 1000);
  far.on("data", (chunk: Buffer) => {
    clearTimeout(silent);
    left -= chunk.length;
    if (left < 0) cut(`it sent more than ${sizeInWords(bytes)}`)();
  });
  near.pipe(far).pipe(near);
  for (const socket of [near, far]) socket.on("error", end).on("close", end);
}

function listens(server: Server, port: number): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const refused = (error: NodeJS.ErrnoException): void => {
      if (error.code === "EADDRINUSE" || error.code === "EACCES") resolve(false);
      else reject(error);
    };
    server.once("error", refused);
    server.listen(port, gateHost, () => {
      server.off("error", refused);
      resolve(true);
    });
  });
}
