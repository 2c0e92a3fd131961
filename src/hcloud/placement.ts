/** Finds out which of a builder's candidates can be had, by taking a place: nothing else makes Hetzner say so. */
import { createHash } from "node:crypto";
import * as z from "zod";
import { HcloudError, understand, type HcloudApi } from "./api.ts";
import { findLabelled, labels, remove } from "./inventory.ts";
import type { Candidate } from "./schema.ts";

/** What is wanted; JSON on the script's standard input. */
export interface Placement {
  /** The builder's alias, for messages and names. */
  readonly alias: string;
  readonly candidates: readonly Candidate[];
  /** Labels of the builder. */
  readonly labels: Readonly<Record<string, string>>;
  /** Image for the reservation: a system image of Hetzner's. */
  readonly image: string;
}

const serverTypes = z.object({
  server_types: z.array(
    z.object({
      name: z.string(),
      locations: z
        .array(
          z.object({
            name: z.string(),
            available: z.boolean().nullish(),
            deprecation: z.object({ unavailable_after: z.string() }).nullish(),
          }),
        )
        .nullish(),
    }),
  ),
});

const placed = z.object({
  name: z.string(),
  id: z.number(),
  labels: z.record(z.string(), z.string()),
  server_type: z.object({ name: z.string() }),
  location: z.object({ name: z.string() }).nullish(),
  datacenter: z.object({ location: z.object({ name: z.string() }) }).nullish(),
});

/** Codes after which the next candidate is tried. */
const unavailable = new Set([
  "resource_unavailable",
  "placement_error",
  "unsupported_location_for_server_type",
  "invalid_server_type",
  "not_found",
  "invalid_input",
]);

/**
 * Tries the candidates in order and holds a place in the first that can be had: a server that is switched off, without
 * addresses, under the builder's labels with the role `reservation`. It goes right before the builder's own server is made.
 *
 * A builder that has its server already stays where it is.
 *
 * @param report Told why a candidate was passed over.
 * @throws Error naming every candidate with the reason why it can't be had.
 */
export async function place(api: HcloudApi, wanted: Placement, report: (progress: string) => void): Promise<Candidate> {
  const before = await existing(api, wanted);
  if (before !== undefined) return before;
  const reasons: string[] = [];
  for (const candidate of wanted.candidates) {
    const { serverType, location } = candidate;
    const reason = (await listedAsUnavailable(api, candidate)) ?? (await reserve(api, wanted, candidate));
    if (reason === undefined) return candidate;
    reasons.push(`${serverType}@${location}: ${reason}`);
    report(`${serverType} in ${location} can't be had: ${reason}`);
  }
  throw new Error(
    `builder ${wanted.alias}: none of its candidates can be had; add one, or try again later:\n  ${reasons.join("\n  ")}`,
  );
}

/** Where the builder's own server, or a reservation that an earlier request made, is, if that is a candidate still. */
async function existing(api: HcloudApi, wanted: Placement): Promise<Candidate | undefined> {
  const servers = await api.list(`/servers?label_selector=${selectorOf(wanted.labels)}`, "servers", placed);
  const ownFirst = servers.toSorted(
    (a, b) => Number(Object.hasOwn(a.labels, labels.role)) - Number(Object.hasOwn(b.labels, labels.role)),
  );
  return ownFirst
    .map(({ server_type: type, location, datacenter }) => {
      const where = location?.name ?? datacenter?.location.name;
      return wanted.candidates.find((one) => one.serverType === type.name && one.location === where);
    })
    .find((one) => one !== undefined);
}

function selectorOf(wanted: Readonly<Record<string, string>>): string {
  const names: readonly string[] = [labels.stack, labels.builder];
  const terms = Object.entries(wanted).filter(([name]) => names.includes(name));
  return encodeURIComponent(terms.map(([name, value]) => `${name}==${value}`).join(","));
}

/** What the API's own list says against a candidate; `undefined`: nothing. */
async function listedAsUnavailable(api: HcloudApi, { serverType, location }: Candidate): Promise<string | undefined> {
  const path = `/server_types?name=${serverType}`;
  const [type] = understand(serverTypes, await api.request("GET", path), path).server_types;
  if (type === undefined) return "there is no such server type any more";
  if (type.locations === undefined || type.locations === null || type.locations.length === 0) return undefined;
  const there = type.locations.find(({ name }) => name === location);
  if (there === undefined) return "this server type does not exist in this location";
  if (there.deprecation != null && Date.parse(there.deprecation.unavailable_after) < Date.now()) {
    return "this server type is no longer sold in this location";
  }
  return there.available === false ? "sold out at the moment" : undefined;
}

/** Takes a place; returns why it can't be had, or `undefined` where it was. */
async function reserve(api: HcloudApi, wanted: Placement, candidate: Candidate): Promise<string | undefined> {
  const { alias, labels: own, image } = wanted;
  const { serverType, location } = candidate;
  try {
    const answer = await api.request("POST", "/servers", {
      name: reservationName(wanted, candidate),
      server_type: serverType,
      location,
      image,
      start_after_create: false,
      public_net: { enable_ipv4: false, enable_ipv6: false },
      labels: { ...own, [labels.role]: "reservation" },
    });
    await api.finish(answer);
    return undefined;
  } catch (error) {
    if (error instanceof HcloudError && unavailable.has(error.code)) return error.message;
    // A request whose answer was lost has taken the place, and its repetition finds the name used.
    const repeated = error instanceof HcloudError && error.code === "uniqueness_error";
    if (repeated && (await existing(api, { ...wanted, candidates: [candidate] })) !== undefined) return undefined;
    if (error instanceof HcloudError && error.code === "resource_limit_exceeded") {
      throw new Error(
        `builder ${alias}: the project's limit of servers is reached (${error.message}); ask Hetzner for a higher one ` +
          "in the console under Limits, or configure fewer builders",
        { cause: error },
      );
    }
    throw error;
  }
}

/**
 * Another one for each stack, builder and candidate, because names are unique in a project, where fleets may have the same name; and
 * always the same for these, so that a repeated request takes no second place. A host name: at most 63 characters.
 */
function reservationName({ alias, labels: own }: Placement, { serverType, location }: Candidate): string {
  const place = [own[labels.stack], own[labels.builder], serverType, location].join(" ");
  return `${alias.slice(0, 30)}-reservation-${createHash("sha256").update(place).digest("hex").slice(0, 16)}`;
}

/** Gives up the place that is held for a builder, right before its own server takes it. */
export async function release(api: HcloudApi, own: Readonly<Record<string, string>>): Promise<void> {
  const wanted = [labels.stack, labels.builder].map((name) => [name, own[name] ?? ""] as const);
  await remove(
    api,
    await findLabelled(api, { ...Object.fromEntries(wanted), [labels.role]: "reservation" }, ["servers"]),
  );
}
