/** Whose files a folder holds: a marker beside them says what was written, so that nothing else is ever overwritten. */
import { createHash } from "node:crypto";
import { existsSync, readFileSync, statSync } from "node:fs";
import * as z from "zod";
import { clientKeyName } from "../nix/clientFiles.ts";
import type { ClientFiles } from "./directory.ts";
import { ownValue } from "../record.ts";

/** The marker's file name. */
export const markerName = ".nix-builder-fleet.json";

/** Who writes. */
export interface Owner {
  /** What no other fleet has, from `fleetId`. */
  readonly fleet: string;
  /** Name of the client in the configuration; `undefined`: the one whose key all share. */
  readonly client: string | undefined;
  /** The private keys that this fleet made for clients, in full: they can be written again at any time. */
  readonly keys: readonly string[];
}

/** Why a file may not be overwritten. */
export interface Obstacle {
  readonly name: string;
  readonly reason: "no file" | "foreign key" | "another fleet" | "another client" | "changed" | "not ours";
}

const marker = z.object({
  fleet: z.string(),
  client: z.string().exactOptional(),
  /** File name → SHA-256 of what was written. */
  files: z.record(z.string(), z.string()),
});

/**
 * What no other fleet has: stacks of the same name abound. The key has 256 bits of chance in it, so its digest tells nobody anything.
 *
 * @param adminPrivateKey made once for each fleet; clients' keys may be made anew
 */
export function fleetId(adminPrivateKey: string): string {
  return digest(`nix-builder-fleet ${adminPrivateKey}`).slice(0, 32);
}

/**
 * The files in the folder that writing `files` would take from somebody. Files that are there already with the same text are not among
 * them, nor are those that the marker knows as this owner's own, unchanged since. A folder, pipe or device that stands there is among them,
 * the marker's place included: reading it might never end.
 */
export function findObstacles(directory: string, files: ClientFiles, owner: Owner): Obstacle[] {
  const noFiles = [...Object.keys(files), markerName].filter((name) => whatIs(`${directory}/${name}`) === "no file");
  if (noFiles.length > 0) return noFiles.map((name) => ({ name, reason: "no file" }));
  const known = readMarker(directory);
  return Object.entries(files).flatMap(([name, text]): Obstacle[] => {
    const path = `${directory}/${name}`;
    if (whatIs(path) === "nothing") return [];
    const present = readFileSync(path, "utf8");
    if (present === text) return [];
    const written = known && ownValue(known.files, name);
    const unchanged = written === digest(present);
    if (name === clientKeyName && !unchanged && !owner.keys.includes(present)) return [{ name, reason: "foreign key" }];
    if (written === undefined) return name === clientKeyName ? [] : [{ name, reason: "not ours" }];
    if (known?.fleet !== owner.fleet) return [{ name, reason: "another fleet" }];
    if (known.client !== owner.client) return [{ name, reason: "another client" }];
    return unchanged || name === clientKeyName ? [] : [{ name, reason: "changed" }];
  });
}

/** The marker's text once `files` are written, with what it said of the owner's other files there. */
export function renderMarker(directory: string, files: ClientFiles, owner: Owner): string {
  const known = readMarker(directory);
  const others = known?.fleet === owner.fleet && known.client === owner.client ? known.files : {};
  const written = Object.fromEntries(Object.entries(files).map(([name, text]) => [name, digest(text)]));
  const content: z.infer<typeof marker> = {
    fleet: owner.fleet,
    ...(owner.client !== undefined && { client: owner.client }),
    files: { ...others, ...written },
  };
  return `${JSON.stringify(content, null, 2)}\n`;
}

/** A marker that can't be read proves nothing. */
function readMarker(directory: string): z.infer<typeof marker> | undefined {
  const path = `${directory}/${markerName}`;
  if (whatIs(path) !== "file") return undefined;
  try {
    return marker.parse(JSON.parse(readFileSync(path, "utf8")));
  } catch {
    return undefined;
  }
}

/** What is at a path, behind all links. */
function whatIs(path: string): "file" | "no file" | "nothing" {
  // A link that leads nowhere is nothing: what is written takes its place.
  if (!existsSync(path)) return "nothing";
  return statSync(path).isFile() ? "file" : "no file";
}

function digest(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}
