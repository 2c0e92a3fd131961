/**
 * The states of stacks in a folder (a `file:` backend): put back where they were cut off, kept while a deployment writes them, and
 * refused where there is no room to write them.
 *
 * On a full disk the CLI puts as much of a state as there was room for in the place of the whole one, and at its next attempt the same over
 * the copy beside it, `NAME.json.bak`. Source: `saveCheckpoint` in `pkg/backend/diy/state.go` of pulumi/pulumi, `WriteAll` of gocloud.dev.
 */
import { randomFillSync } from "node:crypto";
import {
  closeSync,
  copyFileSync,
  existsSync,
  type FSWatcher,
  linkSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statfsSync,
  statSync,
  watch,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join, relative } from "node:path";
import { gunzipSync, zstdDecompressSync } from "node:zlib";
import { filesBelow, readJson } from "./files.ts";
import { LaunchError } from "./launch.mjs";
import { project, pulumiFolder, stackPath } from "./stack.ts";
import { isLocked } from "./staleLocks.ts";

/** A stack's state, compressed or not; not the copies beside it. */
const stateName = /^(.+)\.json(\.gz|\.zst)?$/;

/** A state on disk. */
export interface SavedState {
  /** Absolute path. */
  readonly path: string;
  /** As {@link stackPath} has it. */
  readonly stack: string;
}

/**
 * The states of all stacks.
 *
 * @param backend As in {@link repairStates}.
 */
export function savedStates(backend: string | undefined): SavedState[] {
  const folder = pulumiFolder(backend);
  if (folder === undefined) return [];
  const stacks = join(folder, "stacks");
  return filesBelow(stacks).flatMap((path) => {
    const name = stateName.exec(basename(path))?.[1];
    return name === undefined ? [] : [{ path, stack: join(relative(stacks, dirname(path)), name) }];
  });
}

/** What a state says; `undefined`: it is cut off, or gone. */
export interface Checkpoint {
  /** When the CLI wrote it, in milliseconds since 1970; 0: it doesn't say. */
  readonly time: number;
  /** How its secrets are encrypted, for instance `passphrase`. */
  readonly secretsProvider: string | undefined;
}

/** Reads a state, or a copy of one. */
export function readCheckpoint(path: string): Checkpoint | undefined {
  try {
    const bytes = readFileSync(path);
    const text = bytes[0] === 0x1f ? gunzipSync(bytes) : bytes[0] === 0x28 ? zstdDecompressSync(bytes) : bytes;
    const { checkpoint } = JSON.parse(text.toString()) as { checkpoint: { latest?: Latest } };
    const { manifest, secrets_providers: secrets } = checkpoint.latest ?? {};
    return { time: Date.parse(manifest?.time ?? "") || 0, secretsProvider: secrets?.type };
  } catch {
    return undefined;
  }
}

interface Latest {
  readonly manifest?: { readonly time?: string };
  readonly secrets_providers?: { readonly type?: string };
}

/**
 * Puts the newest copy in the place of each state that is cut off, and away what else was cut off and can be done without. Leaves a stack
 * alone that a lock says is being worked on.
 *
 * @param backend `PULUMI_BACKEND_URL`; anything but a `file:` URL is none of our business.
 * @returns A sentence for each state.
 * @throws {LaunchError} where a copy is there and can't be put in place.
 */
export function repairStates(backend: string | undefined): string[] {
  const folder = pulumiFolder(backend);
  if (folder === undefined) return [];
  repairMeta(folder);
  const said: string[] = [];
  for (const { path, stack } of savedStates(backend)) {
    if (isLocked(backend, stack)) continue;
    removeTornAttributes([`${path}.attrs`, `${path}.bak.attrs`]);
    if (readCheckpoint(path) === undefined) said.push(restore(folder, path, stack));
    for (const name of ["backups", "history"]) removeTornRecords(join(folder, name, stack));
  }
  dropKept(backend, folder);
  return said;
}

/** Removes what was kept of stacks that nobody works on, whether they are still there or not, and what a killed run had begun to keep. */
function dropKept(backend: string | undefined, folder: string): void {
  const kept = join(folder, "kept");
  for (const path of filesBelow(kept)) {
    const stack = relative(kept, path).replace(/\.json(\.\d+)?$/, "");
    if (!isLocked(backend, stack)) rmSync(path, { force: true });
  }
}

function restore(folder: string, path: string, stack: string): string {
  const name = basename(stack);
  const copies = [
    keptPath(folder, stack),
    `${path}.bak`,
    ...filesBelow(join(folder, "backups", stack)).filter((file) => !file.endsWith(".attrs")),
    ...filesBelow(join(folder, "history", stack)).filter((file) => /\.checkpoint\.json(\.gz|\.zst)?$/.test(file)),
  ].flatMap((copy) => {
    const time = readCheckpoint(copy)?.time;
    return time === undefined ? [] : [{ copy, time }];
  });
  const newest = copies.reduce<(typeof copies)[number] | undefined>(
    (best, each) => (best === undefined || each.time > best.time ? each : best),
    undefined,
  );
  try {
    if (newest === undefined) {
      renameSync(path, `${path}.cut-off`);
      rmSync(`${path}.attrs`, { force: true });
      return (
        `the state of stack ${name} was cut off, as a full disk does, and there is no copy of it: the stack begins anew, ` +
        `\`npm start\` takes its builders on this machine back, and \`npx fleet verify-gone\` lists what it left in a cloud ` +
        `(what was there of the state: ${path}.cut-off)`
      );
    }
    replace(path, newest.copy);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new LaunchError(
      `The state of stack ${name} was cut off, as a full disk does, and its copy ${newest?.copy ?? ""} can't be put in place: ${why}. ` +
        `Make ${dirname(path)} writable, with room for a few files, and repeat the command.`,
    );
  }
  return (
    `the state of stack ${name} was cut off, as a full disk does: it is that of ${new Date(newest.time).toISOString()} again; ` +
    "`npm start` goes on from there (`npx fleet verify-gone` lists what a cloud has, should anything be missing in it)"
  );
}

/** Makes `path` a second name of `copy`, in one step. A link needs no room, of which there may be none, and the CLI never writes a state in place. */
function replace(path: string, copy: string): void {
  const draft = `${path}.${process.pid}.restored`;
  rmSync(draft, { force: true });
  try {
    linkSync(copy, draft);
  } catch {
    copyFileSync(copy, draft); // a file system without links
  }
  renameSync(draft, path);
  rmSync(`${path}.attrs`, { force: true });
}

/** The file that says how the states are laid out, `version: 1` since there are projects: without it, the CLI refuses all of them. */
function repairMeta(folder: string): void {
  const path = join(folder, "meta.yaml");
  removeTornAttributes([`${path}.attrs`]);
  if (existsSync(path) && statSync(path).size === 0) writeFileSync(path, "version: 1\n");
}

/**
 * Removes attributes that are cut off; the CLI can do without them.
 *
 * The backend replaces a state in one step, but writes the type and checksum beside it, `dev.json.attrs`, in place. Half
 * written, they make the CLI say `failed to load checkpoint: EOF` ever after. Source: `blob/fileblob/attrs.go` of gocloud.dev.
 */
function removeTornAttributes(paths: readonly string[]): void {
  for (const path of paths) if (existsSync(path) && readJson(path) === undefined) rmSync(path, { force: true });
}

/** Removes what is cut off of the record of the last deployment, with which `pulumi stack history` would fail. */
function removeTornRecords(folder: string): void {
  // Four files a deployment, the time of it in their names.
  for (const path of filesBelow(folder).sort().slice(-4))
    if (/\.(json|attrs)$/.test(path) && readJson(path) === undefined) rmSync(path, { force: true });
}

function keptPath(folder: string, stack: string): string {
  return join(folder, "kept", `${stack}.json`);
}

/** Milliseconds between two looks at a state that is being written. The CLI tries for half a minute to write what it can't. */
const breath = 250;

/**
 * Keeps the last whole state of each stack that the CLI writes, until the returned function is called: as a second name of the same file,
 * which takes no room. To be followed by {@link repairStates}, which uses it, or does away with it.
 */
export function keepStates(backend: string | undefined): () => void {
  const folder = pulumiFolder(backend);
  if (folder === undefined || !existsSync(join(folder, "stacks", project))) return () => undefined;
  const stacks = join(folder, "stacks", project);
  const changed = new Set<string>();
  let timer: NodeJS.Timeout | undefined;
  const look = (): void => {
    timer = undefined;
    for (const name of changed) keep(folder, stacks, name);
    changed.clear();
  };
  let watcher: FSWatcher;
  try {
    watcher = watch(stacks, (_, name) => {
      if (name === null || !stateName.test(name)) return;
      changed.add(name);
      timer ??= setTimeout(look, breath);
    });
    watcher.on("error", () => undefined);
  } catch {
    // No watch is left: the deployment goes on without.
    return () => undefined;
  }
  return () => {
    watcher.close();
    clearTimeout(timer);
    look();
  };
}

function keep(folder: string, stacks: string, name: string): void {
  const stack = join(project, stateName.exec(name)?.[1] ?? "");
  const draft = `${keptPath(folder, stack)}.${process.pid}`;
  for (const path of [join(stacks, name), join(stacks, `${name}.bak`)]) {
    try {
      mkdirSync(dirname(draft), { recursive: true, mode: 0o700 });
      rmSync(draft, { force: true });
      linkSync(path, draft);
      if (readCheckpoint(draft) === undefined) continue;
      renameSync(draft, keptPath(folder, stack));
      // Two names of one file already: rename(2) then does nothing.
      rmSync(draft, { force: true });
      return;
    } catch {
      // Not there just now, or no room for a name: what was kept before stays.
    }
  }
  rmSync(draft, { force: true });
}

/** Files that a deployment may make in the backend, and to spare. Measured: 26, with the folders. */
const filesNeeded = 64;

/**
 * Refuses to begin what could not write its state to the end. Whether there is room is tried: of a quota nothing else tells.
 *
 * @param backend As in {@link repairStates}.
 * @param stack The stack's name.
 * @param removes Whether the state only gets smaller.
 * @throws {LaunchError} naming the folder, what is needed and what is free.
 */
export function refuseWithoutRoom(backend: string | undefined, stack: string, removes: boolean): void {
  const folder = pulumiFolder(backend);
  // Of a folder that isn't there the CLI itself says so.
  if (folder === undefined || !existsSync(dirname(folder))) return;
  const states = savedStates(backend).filter((state) => state.stack === stackPath(stack));
  const size = Math.max(0, ...states.map(({ path }) => statSync(path).size));
  // At once there are the state, the copy of the one before, and the next. A deployment leaves two more for the record, and its state
  // grows by 35 KiB a builder (measured): this is room for 40.
  const needed = removes ? 2 * size + 2 ** 18 : 5 * size + 2 ** 23;
  const why = roomProblem(folder, needed);
  if (why === undefined) return;
  throw new LaunchError(
    `Nothing was begun, as the state of stack ${stack} could not be written to its end in ${folder}: ${why}. Make room there, and repeat the command.`,
  );
}

function roomProblem(folder: string, needed: number): string | undefined {
  const probe = join(folder, `room.${process.pid}`);
  const sizes = (): string => `${mebibytes(needed)} are needed, ${mebibytes(freeBytes(folder))} are free`;
  try {
    mkdirSync(folder, { recursive: true });
    const { files, ffree } = statfsSync(folder);
    // Some file systems don't count them, and say 0 of 0.
    if (files > 0 && ffree < filesNeeded)
      return `there is room for ${ffree} more files (inodes), and ${filesNeeded} are needed`;
    const file = openSync(probe, "wx", 0o600);
    try {
      // Without a name, so that nothing stays of it, whatever ends this process. Chance can't be compressed, as some file systems do.
      rmSync(probe);
      writeFileSync(file, randomFillSync(Buffer.allocUnsafe(needed)));
    } finally {
      closeSync(file);
    }
    return undefined;
  } catch (error) {
    const code = error instanceof Error && "code" in error ? error.code : undefined;
    if (code === "ENOSPC") return `its file system is full: ${sizes()}`;
    if (code === "EDQUOT") return `your quota is used up: ${sizes()} of the file system`;
    if (code === "EROFS") return "its file system is read-only";
    return error instanceof Error ? error.message : String(error);
  }
}

function freeBytes(folder: string): number {
  try {
    const { bavail, bsize } = statfsSync(folder);
    return bavail * bsize;
  } catch {
    return 0;
  }
}

function mebibytes(bytes: number): string {
  return `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}
