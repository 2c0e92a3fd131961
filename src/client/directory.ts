/** The client directory on disk: the emitted files, written and removed as one. */
import {
  chmodSync,
  closeSync,
  existsSync,
  fchmodSync,
  lstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { dirname } from "node:path";
import type { BuildMachine } from "../nix/buildMachine.ts";
import { cacheSettings, type Cache } from "../nix/caches.ts";
import { clientFiles, clientKeyName, signingKeyName, type ClientFilesOptions } from "../nix/clientFiles.ts";
import type { Profile } from "../nix/profiles.ts";

/** File name → content. */
export type ClientFiles = Readonly<Record<string, string>>;

/** What a client's folder holds besides what is said of the builders. */
export interface ClientDirectoryOptions extends Pick<ClientFilesOptions, "directory" | "localSystems"> {
  readonly caches: readonly Cache[];
  readonly profile?: Profile | undefined;
  readonly maxSessions?: number | undefined;
  /** OpenSSH private key; `undefined`: the client has its own. */
  readonly privateKey: string | undefined;
  /** Nix secret key with which the client signs what it builds; `undefined`: it signs nothing. */
  readonly signingKey?: string | undefined;
}

/**
 * All files of a client's folder: those of `clientFiles`, with the caches' settings, and the key.
 *
 * @throws InvalidValue as `clientFiles`
 */
export function clientDirectoryFiles(machines: readonly BuildMachine[], options: ClientDirectoryOptions): ClientFiles {
  const { directory, localSystems = [], caches, profile, maxSessions, privateKey, signingKey } = options;
  return {
    ...clientFiles(machines, {
      directory,
      localSystems,
      settings: cacheSettings(caches),
      signs: signingKey !== undefined,
      ...(profile !== undefined && { profile }),
      ...(maxSessions !== undefined && { maxSessions }),
    }),
    ...(privateKey !== undefined && { [clientKeyName]: privateKey }),
    ...(signingKey !== undefined && { [signingKeyName]: `${signingKey}\n` }),
  };
}

/**
 * Writes the files, the private keys with mode 0600. What is there already with the same content is left alone.
 *
 * @param directory Absolute path; made when it isn't there, with mode 0755 as the files but the keys are no secrets.
 */
export function writeClientDirectory(directory: string, files: ClientFiles): void {
  makeClientFolder(directory);
  for (const [name, content] of Object.entries(files)) {
    const path = `${directory}/${name}`;
    // Others may read everything else.
    const mode = [clientKeyName, signingKeyName].includes(name) ? 0o600 : 0o644;
    if (holds(path, content)) {
      chmodSync(path, mode);
      continue;
    }
    // Renamed into place: a build that starts meanwhile reads the old file or the new one, never half of it. And a link that is there is
    // replaced, not followed.
    const draft = `${path}.${process.pid}.new`;
    rmSync(draft, { force: true });
    const file = openSync(draft, "wx", mode);
    try {
      // Whatever the umask, which may only have closed it further.
      fchmodSync(file, mode);
      writeFileSync(file, content);
    } finally {
      closeSync(file);
    }
    renameSync(draft, path);
  }
}

/** Whether all these files are in the folder, as they are here. */
export function holdsClientFiles(directory: string, files: ClientFiles): boolean {
  return Object.entries(files).every(([name, content]) => holds(`${directory}/${name}`, content));
}

function holds(path: string, content: string): boolean {
  return lstatSync(path, { throwIfNoEntry: false })?.isFile() === true && readFileSync(path, "utf8") === content;
}

/**
 * Makes a client's folder, and those above it, with mode 0755 whatever the umask; what is there stays as it is.
 *
 * @param directory Absolute path.
 */
export function makeClientFolder(directory: string): void {
  // One level after the other: Node's `recursive` never ends where a folder is there but takes none, such as /proc.
  if (existsSync(directory)) return;
  makeClientFolder(dirname(directory));
  try {
    mkdirSync(directory, { mode: 0o755 });
    chmodSync(directory, 0o755);
  } catch (error) {
    // Another process may have made it just now.
    if (!existsSync(directory)) throw error;
  }
}
