/** Who is at the other end of a TCP connection within this machine, by the kernel's own table. */
import { readFileSync } from "node:fs";

/** Both ends of a connection that was accepted, as `net.Socket` has them. IPv4 only. */
export interface Ends {
  readonly localAddress?: string | undefined;
  readonly localPort?: number | undefined;
  readonly remoteAddress?: string | undefined;
  readonly remotePort?: number | undefined;
}

/**
 * Why a connection must not be served: because its other end was not opened by a process of this user, or is closed, so that nobody can
 * tell any more. `undefined`: serve it.
 *
 * To be called as the connection is accepted, before anything is read, and without waiting for anything in between. A user counts that
 * the kernel can name in this process's user namespace; all others are one user to it, the overflow user (`nobody`).
 *
 * @param uid that may connect; not even root may if it is another one, as root's services connect where others tell them to.
 */
export function refusalOf(
  { localAddress, localPort, remoteAddress, remotePort }: Ends,
  uid: number,
): string | undefined {
  const gone = "its other end is closed already";
  if (localAddress === undefined || remoteAddress === undefined) return gone;
  const here = address(localAddress, localPort);
  const there = address(remoteAddress, remotePort);
  // The other end may be a socket of either family.
  const peer = entry("tcp", there, here) ?? entry("tcp6", mapped(there), mapped(here));
  // The kernel names no user of a socket that its process has closed: it would pass for root's.
  if (peer?.state !== established) return gone;
  if (peer.uid !== uid) return `it comes from a process of user ${peer.uid}`;
  // Had the connection been broken before, then what was found is another one from the same port, and it is not accepted yet: without inode.
  const own = entry("tcp", here, there);
  return own?.state === established && own.inode !== 0 ? undefined : gone;
}

/** `TCP_ESTABLISHED` of include/net/tcp_states.h. */
const established = 1;

/** The fields in use of a line of /proc/net/tcp (Documentation/networking/proc_net_tcp.rst of Linux). */
function entry(table: "tcp" | "tcp6", local: string, remote: string) {
  const start = ` ${local} ${remote} `;
  const line = readFileSync(`/proc/net/${table}`, "latin1")
    .split("\n")
    .find((candidate) => candidate.includes(start));
  const [, , , state = "", , , , uid, , inode] = line?.trim().split(/\s+/) ?? [];
  return line === undefined ? undefined : { state: parseInt(state, 16), uid: Number(uid), inode: Number(inode) };
}

/** As the table has it: the four bytes in this machine's order, which is little-endian wherever this project runs. */
function address(ipv4: string, port = 0): string {
  const bytes = ipv4.split(".").map(Number).reverse();
  return `${hex(bytes, 2)}:${hex([port], 4)}`;
}

function mapped(ipv4: string): string {
  return `0000000000000000FFFF0000${ipv4}`;
}

function hex(numbers: readonly number[], digits: number): string {
  return numbers.map((number) => number.toString(16).toUpperCase().padStart(digits, "0")).join("");
}
