/** What a killed Pulumi CLI left in a file backend: its lock, and what it had half written. Taken away, so that the next run just goes on. */
import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { hostname } from "node:os";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";

/**
 * Removes the locks whose process was on this machine and has ended, and what such a process had half written. Locks of others
 * are left to `pulumi cancel`.
 *
 * @param backend `PULUMI_BACKEND_URL`; anything but a `file:` URL is none of our business.
 * @returns The pids of the owners.
 */
export function dropStaleLocks(backend: string | undefined): number[] {
  if (backend?.startsWith("file:///") !== true) return [];
  const folder = `${fileURLToPath(backend)}/.pulumi/locks`;
  if (!existsSync(folder)) return [];
  const owners = filesBelow(folder).flatMap((path) => {
    const owner = readOwner(path);
    if (owner === undefined || owner.hostname !== hostname() || isPulumi(owner.pid)) return [];
    rmSync(path, { force: true });
    return [owner.pid];
  });
  if (owners.length > 0) removeTornAttributes(dirname(folder));
  return owners;
}

/**
 * Removes the attributes that were being written when the CLI was killed; it can do without them.
 *
 * The backend replaces a state in one step, but writes the type and checksum beside it, `dev.json.attrs`, in place. Half
 * written, they make the CLI say `failed to load checkpoint: EOF` ever after. Source: `blob/fileblob/attrs.go` of gocloud.dev.
 */
function removeTornAttributes(folder: string): void {
  for (const path of filesBelow(folder).filter((file) => file.endsWith(".attrs"))) {
    try {
      JSON.parse(readFileSync(path, "utf8"));
    } catch {
      rmSync(path, { force: true });
    }
  }
}

function filesBelow(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map(({ parentPath, name }) => `${parentPath}/${name}`);
}

/** What the CLI writes into a lock: `pkg/backend/diy/lock.go` of pulumi/pulumi. */
function readOwner(path: string): { readonly pid: number; readonly hostname: string } | undefined {
  try {
    const lock: unknown = JSON.parse(readFileSync(path, "utf8"));
    if (typeof lock !== "object" || lock === null || !("pid" in lock) || !("hostname" in lock)) return undefined;
    const { pid, hostname: host } = lock;
    return typeof pid === "number" && typeof host === "string" ? { pid, hostname: host } : undefined;
  } catch {
    return undefined; // released just now
  }
}

/** Whether the process still runs and hasn't passed its number on to another program. */
function isPulumi(pid: number): boolean {
  try {
    return /pulumi/.test(readFileSync(`/proc/${pid}/cmdline`, "utf8"));
  } catch {
    return false;
  }
}
