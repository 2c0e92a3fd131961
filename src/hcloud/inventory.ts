/** What of a fleet exists at Hetzner, found by label: nothing else knows what a killed deployment made. */
import * as z from "zod";
import type { HcloudApi } from "./api.ts";
import { HcloudError } from "./api.ts";

/** Labels on everything that the fleet makes. */
export const labels = {
  /** The fleet's name. */
  fleet: "nix-builder-fleet.fleet",
  /** Tells fleets of one name apart: made once for each stack. */
  stack: "nix-builder-fleet.stack",
  /** The builder's name; absent on what builders share. */
  builder: "nix-builder-fleet.builder",
  /** `reservation`: a server that only holds a place until the builder's own is made. */
  role: "nix-builder-fleet.role",
  /** Day after which it should be gone, or `never`. */
  expires: "nix-builder-fleet.expires",
} as const;

/** Kinds of things in the order in which they can be deleted. */
export const kinds = [
  "servers",
  "firewalls",
  "placement_groups",
  "ssh_keys",
  "networks",
  "volumes",
  "primary_ips",
] as const;

/** One of them. */
export type Kind = (typeof kinds)[number];

/** One thing. */
export interface Item {
  readonly kind: Kind | "images";
  readonly id: number;
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
}

const item = z.object({ id: z.number(), name: z.string().nullish(), labels: z.record(z.string(), z.string()) });

/** Everything that carries the labels. Snapshots count only when asked for: they are meant to outlive a fleet. */
export async function findLabelled(
  api: HcloudApi,
  wanted: Readonly<Record<string, string>>,
  of: readonly Item["kind"][] = kinds,
): Promise<Item[]> {
  const selector = Object.entries(wanted)
    .map(([name, value]) => `${name}==${value}`)
    .join(",");
  const found = await Promise.all(
    of.map(async (kind) => {
      const items = await api.list(`/${kind}?label_selector=${encodeURIComponent(selector)}`, kind, item);
      return items.map(({ id, name, labels: has }): Item => ({ kind, id, name: name ?? String(id), labels: has }));
    }),
  );
  return found.flat();
}

/** Deletes things, servers first. What is gone already is no error. */
export async function remove(api: HcloudApi, items: readonly Item[]): Promise<void> {
  for (const kind of kinds) {
    await Promise.all(items.filter((one) => one.kind === kind).map((one) => removeOne(api, one)));
  }
}

/**
 * Deletes what is in the way of something that is about to be made: what a deployment that was killed has made without
 * writing it down, and the reservation that holds a builder's place.
 *
 * @param inputs Those of the resource, with `name` and `labels`. Nothing of another stack is touched.
 */
export async function clearOrphans(api: HcloudApi, kind: Kind, inputs: unknown): Promise<void> {
  const { name, labels: own } = z.object({ name: z.string(), labels: z.record(z.string(), z.string()) }).parse(inputs);
  const stack = own[labels.stack];
  const builder = own[labels.builder];
  if (stack === undefined) return;
  const wanted = { [labels.stack]: stack, ...(builder !== undefined && { [labels.builder]: builder }) };
  const found = await findLabelled(api, wanted, [kind]);
  await remove(api, kind === "servers" ? found : found.filter((one) => one.name === name));
}

async function removeOne(api: HcloudApi, { kind, id }: Item): Promise<void> {
  try {
    await api.finish(await api.request("DELETE", `/${kind}/${id}`));
  } catch (error) {
    if (!(error instanceof HcloudError && error.code === "not_found")) throw error;
  }
}
