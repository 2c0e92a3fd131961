/** Ranges of IP addresses, as a configuration says them and clouds take them. */
import { isIP } from "node:net";
import ipaddr from "ipaddr.js";
import * as z from "zod";

const { IPv4, IPv6 } = ipaddr;

const examples = "an IP range such as 203.0.113.7/32 or 2001:db8::/64; 0.0.0.0/0 and ::/0 together are everybody";

/**
 * A range, `ADDRESS/BITS`, whose address is its first one. Clouds refuse any other late and in words of their own, or widen it in silence: of
 * `203.0.113.7/24` only the person knows whether 1 address is meant or 256.
 */
export const ipRange = z.string().refine((text) => wrongRange(text) === undefined, {
  error: ({ input }) => wrongRange(input),
});

/**
 * A range of IPv4 for a network of a fleet's own.
 *
 * @param shortest Fewest bits that a network may have: its largest size.
 * @param longest Most bits: its smallest size.
 * @param kind `private`: all of it has to be private by RFC 1918.
 */
export function networkRange(shortest: number, longest: number, kind: "private" | "any") {
  const place = kind === "private" ? ", in 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16" : "";
  const allowed = `${kind === "private" ? "a private" : "an"} IPv4 range of /${shortest} to /${longest}${place}`;
  const wrong = (input: unknown): string | undefined => {
    const range = parse(input);
    if (typeof input !== "string" || range?.version !== 4) return allowed;
    const ends = [IPv4.networkAddressFromCIDR(input), IPv4.broadcastAddressFromCIDR(input)];
    const fits = kind === "any" || ends.every((end) => end.range() === "private");
    return fits && range.bits >= shortest && range.bits <= longest ? wrongRange(input) : allowed;
  };
  return z.string().refine((text) => wrong(text) === undefined, { error: ({ input }) => wrong(input) });
}

/** What is allowed in place of a value; `undefined`: the value is a range, and its address the first one. */
function wrongRange(input: unknown): string | undefined {
  const range = parse(input);
  if (typeof input !== "string" || range === undefined) return examples;
  const { address, bits, version } = range;
  const first = (version === 4 ? IPv4 : IPv6).networkAddressFromCIDR(input).toString();
  if (first === ipaddr.parse(address).toString()) return undefined;
  return `${first}/${bits} for the whole range, or ${address}/${longestOf(version)} for that address alone`;
}

/** @returns `undefined`: it is no range. */
function parse(input: unknown): { address: string; bits: number; version: number } | undefined {
  const [, address = "", bits = ""] = typeof input === "string" ? (/^([^/%]+)\/(\d{1,3})$/.exec(input) ?? []) : [];
  const version = isIP(address);
  if (version === 0 || Number(bits) > longestOf(version)) return undefined;
  return { address, bits: Number(bits), version };
}

function longestOf(version: number): number {
  return version === 4 ? 32 : 128;
}
