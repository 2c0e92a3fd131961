/** The locks of a file backend: whose they are, and those that a killed Pulumi CLI left. Taken away, so that the next run just goes on. */
import { existsSync, mkdirSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import { basename, dirname, join, relative } from "node:path";
import { filesBelow } from "./files.ts";
import { checkout, fingerprint } from "./launch.mjs";
import { pulumiFolder, stackPath } from "./stack.ts";

/** Locks that were taken away. */
export interface DroppedLocks {
  /** Process ids of those who have ended. */
  readonly dropped: readonly number[];
  /** Stacks whose lock said nothing: who finds no room to write one goes no further, and leaves it. */
  readonly empty: readonly string[];
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
  if (pid === undefined || here === undefined || backend === undefined || pulumiFolder(backend) === undefined) return;
  const folder = noteFolder(backend, directory);
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    writeFileSync(join(folder, [pid, here.boot, here.namespace].join(".")), "", { mode: 0o600 });
  } catch {
    // The CLI runs all the same; should it be killed, its lock is left to `pulumi cancel`.
  }
}

/**
 * Removes the locks of CLIs that this checkout has started, in this PID namespace or before this machine's last start, and that have
 * ended; and those that are cut off. All others are left to `pulumi cancel`.
 *
 * @param backend as in {@link noteRun}.
 */
export function dropStaleLocks(backend: string | undefined, directory: string = checkout): DroppedLocks {
  const dropped: number[] = [];
  const empty: string[] = [];
  if (backend === undefined || pulumiFolder(backend) === undefined) return { dropped, empty };
  const here = thisPlace();
  const notes = readNotes(noteFolder(backend, directory)).map((note) => ({ ...note, ended: hasEnded(note, here) }));
  for (const lock of readLocks(backend)) {
    const { path, stack, owner } = lock;
    if (owner === "cut off") {
      remove(path);
      empty.push(basename(stack));
    } else if (runs(owner) === false) {
      const own = notes.filter(({ pid }) => pid === owner.pid);
      if (own.length === 0 || !own.every(({ ended }) => ended)) continue;
      remove(path);
      dropped.push(owner.pid);
    }
  }
  for (const note of notes.filter(({ ended }) => ended)) rmSync(note.path, { force: true });
  return { dropped, empty };
}

/** Who holds a lock. */
export interface LockOwner {
  readonly pid: number;
  readonly username: string;
  readonly hostname: string;
  /** When it was taken, as the CLI writes it (RFC 3339). */
  readonly timestamp: string;
}

/** Those who hold a lock on the stack. */
export function lockOwners(backend: string | undefined, stack: string): LockOwner[] {
  const path = stackPath(stack);
  return readLocks(backend).flatMap((lock) => (lock.stack === path && lock.owner !== "cut off" ? [lock.owner] : []));
}

/**
 * Whether there is a lock on a stack, whoever holds it.
 *
 * @param stack as {@link stackPath} has it.
 */
export function isLocked(backend: string | undefined, stack: string): boolean {
  return lockFiles(backend).some((lock) => lock.stack === stack);
}

/** What to tell of a stack that somebody else works on: who, since when, whether that process runs, and what to do. */
export function describeLock(stack: string, owner: LockOwner): string {
  const { pid, username, hostname: host, timestamp } = owner;
  const cancel = `\`npm run pulumi -- cancel --yes --stack ${stack}\``;
  const running = runs(owner);
  const what =
    running === undefined
      ? `whether that process runs only ${host} knows: wait for it to end or, once you know that it has ended, drop the lock with ${cancel}`
      : running
        ? `that process is running: wait for it to end, or ask it to (\`kill -INT ${pid}\`)`
        : `that process isn't to be seen here; it may run in a container: once you know that it has ended, drop the lock with ${cancel}`;
  return `Nothing was begun: stack ${stack} is locked by process ${pid} of ${username} on ${host} since ${timestamp}; ${what}.`;
}

/** Who holds the lock that the CLI complains of; `undefined`: it doesn't. Source: `pkg/backend/diy/lock.go` of pulumi/pulumi. */
export function parseLock(said: string): LockOwner | undefined {
  const lock = /the stack is currently locked by[\s\S]*?created by (\S+)@(\S+) \(pid (\d+)\) at (\S+)/.exec(said);
  if (lock === null) return undefined;
  const [, username = "", host = "", pid = "", timestamp = ""] = lock;
  return { username, hostname: host, pid: Number(pid), timestamp };
}

/** Whether the lock's process runs; `undefined`: it is another machine's. */
function runs({ pid, hostname: host }: LockOwner): boolean | undefined {
  return host === hostname() ? isPulumi(pid) : undefined;
}

interface LockFile {
  readonly path: string;
  /** As {@link stackPath} has it. */
  readonly stack: string;
}

function lockFiles(backend: string | undefined): LockFile[] {
  const folder = pulumiFolder(backend);
  if (folder === undefined) return [];
  const locks = join(folder, "locks");
  return filesBelow(locks)
    .filter((path) => path.endsWith(".json"))
    .map((path) => ({ path, stack: relative(locks, dirname(path)).replace(/^organization\//, "") }));
}

interface Lock extends LockFile {
  readonly owner: LockOwner | "cut off";
}

function readLocks(backend: string | undefined): Lock[] {
  return lockFiles(backend).flatMap((lock): Lock[] => {
    const owner = readOwner(lock.path);
    return owner === undefined ? [] : [{ ...lock, owner }];
  });
}

function remove(lock: string): void {
  for (const path of [lock, `${lock}.attrs`]) rmSync(path, { force: true });
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

/** What the CLI writes into a lock: `pkg/backend/diy/lock.go` of pulumi/pulumi. `undefined`: none of its locks, or gone. */
function readOwner(path: string): LockOwner | "cut off" | undefined {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch {
    return undefined; // released just now
  }
  try {
    const lock = JSON.parse(text) as Partial<LockOwner> | null;
    const { pid, hostname: host, username = "somebody", timestamp = "a time it doesn't say" } = lock ?? {};
    return typeof pid === "number" && typeof host === "string"
      ? { pid, hostname: host, username, timestamp }
      : undefined;
  } catch {
    return "cut off"; // a lock is renamed into place, so that nobody is still writing
  }
}

/** Whether the process runs, among those of this PID namespace, and hasn't passed its number on to another program. */
function isPulumi(pid: number): boolean {
  try {
    const [program = ""] = readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
    return basename(program).includes("pulumi");
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
