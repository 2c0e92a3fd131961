/** What a killed Pulumi CLI left in a file backend: its lock, and what it had half written. Taken away, so that the next run just goes on. */
import { existsSync, mkdirSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { checkout, fingerprint } from "./launch.mjs";

/** Locks that nobody on this machine seems to hold. */
export interface LeftLocks {
  /** Process ids of those who have ended; their locks are gone. */
  readonly dropped: readonly number[];
  /** Those that are kept, as their process may run where this one can't see it. */
  readonly unknown: readonly { readonly pid: number; readonly stack: string }[];
}

/**
 * Notes that a CLI was started here. Its lock says by which process of which host, and that isn't enough to know it again: a container
 * may have the host's name, and its processes have numbers of their own.
 *
 * @param backend `PULUMI_BACKEND_URL`; anything but a `file:` URL is none of our business.
 * @param directory the checkout. Default: this one.
 */
export function noteRun(pid: number | undefined, backend: string | undefined, directory: string = checkout): void {
  const here = thisPlace();
  if (pid === undefined || here === undefined || backend?.startsWith("file:///") !== true) return;
  const folder = noteFolder(backend, directory);
  try {
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, [pid, here.boot, here.namespace].join(".")), "");
  } catch {
    // The CLI runs all the same; should it be killed, its lock is left to `pulumi cancel`.
  }
}

/**
 * Removes the locks of CLIs that this checkout has started, in this PID namespace or before this machine's last start, and that have
 * ended; and what they had half written. All others are left to `pulumi cancel`.
 *
 * @param backend as in {@link noteRun}.
 */
export function dropStaleLocks(backend: string | undefined, directory: string = checkout): LeftLocks {
  const dropped: number[] = [];
  const unknown: { pid: number; stack: string }[] = [];
  if (backend?.startsWith("file:///") !== true) return { dropped, unknown };
  const folder = `${fileURLToPath(backend)}/.pulumi/locks`;
  const here = thisPlace();
  const notes = readNotes(noteFolder(backend, directory)).map((note) => ({ ...note, ended: hasEnded(note, here) }));
  for (const path of existsSync(folder) ? filesBelow(folder) : []) {
    const owner = readOwner(path);
    if (owner === undefined || owner.hostname !== hostname() || isPulumi(owner.pid)) continue;
    const own = notes.filter(({ pid }) => pid === owner.pid);
    if (own.length > 0 && own.every(({ ended }) => ended)) {
      rmSync(path, { force: true });
      dropped.push(owner.pid);
    } else unknown.push({ pid: owner.pid, stack: basename(dirname(path)) });
  }
  if (dropped.length > 0) removeTornAttributes(dirname(folder));
  for (const note of notes.filter(({ ended }) => ended)) rmSync(note.path, { force: true });
  return { dropped, unknown };
}

/** Where process ids mean what they mean here: since this start of the kernel, in this PID namespace. */
export interface Place {
  readonly boot: string;
  readonly namespace: string;
}

export function thisPlace(): Place | undefined {
  try {
    return {
      boot: readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim(),
      namespace: readlinkSync("/proc/self/ns/pid").replace(/\D/g, ""),
    };
  } catch {
    return undefined;
  }
}

interface Note extends Place {
  readonly path: string;
  readonly pid: number;
}

/** Checkouts may lie in a folder that machines share: each has notes of its own. */
function noteFolder(backend: string, directory: string): string {
  return join(directory, ".fleet", "runs", fingerprint(backend, hostname()));
}

function readNotes(folder: string): Note[] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder).map((name) => {
    const [pid = "", boot = "", namespace = ""] = name.split(".");
    return { path: join(folder, name), pid: Number(pid), boot, namespace };
  });
}

function hasEnded({ pid, boot, namespace }: Note, here: Place | undefined): boolean {
  if (here === undefined) return false;
  return boot !== here.boot || (namespace === here.namespace && !isPulumi(pid));
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

/** Whether the process runs, among those of this PID namespace, and hasn't passed its number on to another program. */
function isPulumi(pid: number): boolean {
  try {
    return /pulumi/.test(readFileSync(`/proc/${pid}/cmdline`, "utf8"));
  } catch {
    // It has ended, or what other users run is hidden here (`hidepid`).
  }
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error instanceof Error && "code" in error && error.code === "EPERM";
  }
}
