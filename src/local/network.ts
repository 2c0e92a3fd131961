/** What a local builder's builds may not reach over the network, and whom they ask for names. */
import { existsSync, readFileSync } from "node:fs";
import { networkInterfaces } from "node:os";

/**
 * Where clouds tell a machine its secrets: every address for that is link-local or one of these.
 * Sources: the providers' documentation of "instance metadata" (Alibaba, Oracle, Azure's wire server, AWS and Google over IPv6).
 */
const metadata = ["169.254.0.0/16", "100.100.100.200", "192.0.0.192", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254"];

/** What is never meant by what leaves the container: loopbacks, link-local addresses (this machine's own are among them), and groups. */
const local = ["127.0.0.0/8", "::1", "fe80::/10", "224.0.0.0/4", "ff00::/8"];

/** What a container may not reach: the clouds' metadata, this machine's own addresses, and its loopback. */
export function refusedAddresses(interfaces = networkInterfaces()): string[] {
  const own = Object.values(interfaces).flatMap((addresses) =>
    (addresses ?? []).filter(({ internal }) => !internal).map(({ address }) => address),
  );
  return [...new Set([...metadata, ...local, ...own.filter((address) => !address.startsWith("fe80:"))])];
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
