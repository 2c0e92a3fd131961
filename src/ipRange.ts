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
    if (typeof input !== "string" || !isRange(input) || !IPv4.isValid(input.split("/")[0] ?? "")) return allowed;
    const bits = Number(input.split("/")[1]);
    const ends = [IPv4.networkAddressFromCIDR(input), IPv4.broadcastAddressFromCIDR(input)];
    const fits = kind === "any" || ends.every((end) => end.range() === "private");
    return fits && bits >= shortest && bits <= longest ? wrongRange(input) : allowed;
  };
  return z.string().refine((text) => wrong(text) === undefined, { error: ({ input }) => wrong(input) });
}

/** What is allowed in place of a value; `undefined`: the value is a range, and its address the first one. */
function wrongRange(input: unknown): string | undefined {
  if (typeof input !== "string" || !isRange(input)) return examples;
  const first = firstOf(input);
  const [address = "", bits = ""] = input.split("/");
  if (first === ipaddr.parse(address).toString()) return undefined;
  return `${first}/${bits} for the whole range, or ${address}/${isIP(address) === 4 ? 32 : 128} for that address alone`;
}

function isRange(text: string): boolean {
  const [address = "", bits = "", ...rest] = text.split("/");
  const version = isIP(address);
  return (
    rest.length === 0 &&
    version !== 0 &&
    !address.includes("%") &&
    /^\d{1,3}$/.test(bits) &&
    Number(bits) <= (version === 4 ? 32 : 128)
  );
}

/** Its first address, in the usual spelling. */
function firstOf(range: string): string {
  return (isIP(range.split("/")[0] ?? "") === 4 ? IPv4 : IPv6).networkAddressFromCIDR(range).toString();
}
