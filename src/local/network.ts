/** What a local builder's builds may not reach over the network, and whom they ask for names. */
import { existsSync, readFileSync } from "node:fs";
import { networkInterfaces } from "node:os";

/**
 * Where clouds tell a machine its secrets: every address for that is link-local or one of these.
 * Sources: the providers' documentation of "instance metadata" (Alibaba, Oracle, Azure's wire server, AWS and Google over IPv6).
 */
const metadata = ["169.254.0.0/16", "100.100.100.200", "192.0.0.192", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254"];

/** Lines for `ip -batch`: routes that refuse the clouds' metadata and this machine's own addresses. Its loopback is another one anyway. */
export function refusingRoutes(interfaces = networkInterfaces()): string[] {
  const own = Object.values(interfaces).flatMap((addresses) =>
    (addresses ?? [])
      .filter(({ address, internal }) => !internal && !address.startsWith("fe80:"))
      .map(({ address }) => address),
  );
  return [...new Set([...metadata, ...own])].map((address) => `route add prohibit ${address}`);
}

/**
 * Whom the container asks for names: an address that nobody has (RFC 2544), from which pasta passes the question on to this machine's
 * own server, also to one on its loopback.
 */
export const nameServer = "198.18.0.53";

/** This machine's resolv.conf with another server. */
export function containerResolvConf(text = readIfThere("/etc/resolv.conf")): string {
  const others = text.split("\n").filter((line) => /^\s*(search|domain|options)\s/.test(line));
  return [`nameserver ${nameServer}`, ...others, ""].join("\n");
}

function readIfThere(path: string): string {
  return existsSync(path) ? readFileSync(path, "utf8") : "";
}
