/** What of a fleet exists at Hetzner, found by label: nothing else knows what a killed deployment made. */
import { setTimeout as delay } from "node:timers/promises";
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

/** What is the fleet's by its label, and what of it the state knows, by kind. */
export interface Known {
  readonly labels: Readonly<Record<string, string>>;
  readonly keep: Readonly<Record<string, readonly string[]>>;
}

/** Things that carry the stack's label, but that its state doesn't know: a deployment that was killed has made them. */
export async function findOrphans(api: HcloudApi, known: Known): Promise<Item[]> {
  const stack = known.labels[labels.stack];
  if (stack === undefined) return [];
  const found = await findLabelled(api, { [labels.stack]: stack });
  return found.filter(({ kind, id }) => known.keep[kind]?.includes(String(id)) !== true);
}

/** What a server has held is free only some seconds after its end. */
async function removeOne(api: HcloudApi, { kind, id }: Item): Promise<void> {
  const deadline = Date.now() + 120_000;
  for (let pause = 500; ; pause = Math.min(pause * 2, 10_000)) {
    try {
      await api.finish(await api.request("DELETE", `/${kind}/${id}`));
      return;
    } catch (error) {
      if (!(error instanceof HcloudError) || Date.now() + pause > deadline) throw error;
      if (error.code === "not_found") return;
      if (error.code !== "resource_in_use") throw error;
    }
    await delay(pause);
  }
}
