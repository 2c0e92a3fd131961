/** Copies a file, a text or a directory to another machine by SFTP. */
import { randomBytes } from "node:crypto";
import { readdir, stat } from "node:fs/promises";
import { basename, join, posix } from "node:path";
import { promisify } from "node:util";
import type { Client, SFTPWrapper } from "ssh2";
import { type Properties, asAsset, isObject } from "../propertyValue.ts";
import type { Operation } from "../serve.ts";
import { withClient } from "./connection.ts";
import { text } from "./execution.ts";

/** Identifiers are 8 random hexadecimal digits, as those of the genuine plugin. */
export function newId(): string {
  return randomBytes(4).toString("hex");
}

/**
 * Where the source ends up, as in pulumi-command 1.2.1 (`remote/copyController.go`):
 *
 * | source | remotePath is a directory | doesn't exist | is a file |
 * |---|---|---|---|
 * | `dir` | remotePath/dir | remotePath/dir | error |
 * | `dir/` | its content in remotePath | its content in remotePath | error |
 * | file | remotePath/file | remotePath | overwritten |
 * | text | error | remotePath | overwritten |
 *
 * Archives are copied as they are, not unpacked. Directories that are missing above the destination are created.
 *
 * @param inputs without marks of secrecy.
 */
export async function copySource(inputs: Properties, operation: Operation): Promise<void> {
  const source = asAsset(inputs["source"]);
  const remotePath = text(inputs["remotePath"]);
  const connection = inputs["connection"];
  if (source === undefined || "uri" in source || remotePath === undefined || !isObject(connection)) {
    throw new Error("CopyToRemote needs source, remotePath and connection.");
  }
  await withClient(connection, operation, async (client) => {
    const remote = remoteFiles(await openSftp(client));
    if ("text" in source) await copyText(remote, source.text, remotePath);
    else await copyPath(remote, source.path, remotePath);
  });
}

async function copyText(remote: RemoteFiles, content: string, to: string): Promise<void> {
  const found = await remote.kind(to);
  if (found === "directory") {
    throw new Error(`remote path ${to} is a directory; when using a text asset, remotePath must be a file path`);
  }
  if (found === "missing") await remote.makeDirectory(posix.dirname(to));
  await remote.write(to, content);
}

async function copyPath(remote: RemoteFiles, from: string, to: string): Promise<void> {
  if ((await stat(from)).isDirectory()) {
    await remote.makeDirectory(to);
    await copyDirectory(remote, from, from.endsWith("/") ? to : posix.join(to, basename(from)));
  } else {
    const found = await remote.kind(to);
    if (found === "missing") await remote.makeDirectory(posix.dirname(to));
    await remote.put(from, found === "directory" ? posix.join(to, basename(from)) : to);
  }
}

async function copyDirectory(remote: RemoteFiles, from: string, to: string): Promise<void> {
  await remote.makeDirectory(to);
  for (const entry of await readdir(from, { withFileTypes: true })) {
    const [source, target] = [join(from, entry.name), posix.join(to, entry.name)];
    if (entry.isDirectory()) await copyDirectory(remote, source, target);
    else await remote.put(source, target);
  }
}

type RemoteFiles = ReturnType<typeof remoteFiles>;

function remoteFiles(sftp: SFTPWrapper) {
  const NO_SUCH_FILE = 2;
  const kind = async (path: string): Promise<"directory" | "file" | "missing"> => {
    try {
      const found = await promisify(sftp.stat.bind(sftp))(path);
      return found.isDirectory() ? "directory" : "file";
    } catch (error) {
      if (error instanceof Error && Reflect.get(error, "code") === NO_SUCH_FILE) return "missing";
      throw named(`failed to stat remote path ${path}`, error);
    }
  };
  /** With those above it. A directory that is there already is fine. */
  const makeDirectory = async (path: string): Promise<void> => {
    const found = await kind(path);
    if (found === "file") throw new Error(`remote path ${path} exists but is not a directory`);
    if (found === "directory") return;
    const above = posix.dirname(path);
    if (above !== path) await makeDirectory(above);
    const make = promisify<string, undefined>((at, done) => {
      sftp.mkdir(at, (error) => {
        done(error ?? null, undefined);
      });
    });
    await make(path).catch(async (error: unknown) => {
      // Another copy under way may have made it meanwhile.
      if ((await kind(path)) !== "directory") throw named(`failed to create remote directory ${path}`, error);
    });
  };
  return {
    kind,
    makeDirectory,
    put: async (from: string, to: string): Promise<void> => {
      const put = promisify<string, string, undefined>((source, target, done) => {
        sftp.fastPut(source, target, (error) => {
          done(error ?? null, undefined);
        });
      });
      await put(from, to).catch((error: unknown) => {
        throw named(`failed to copy file ${from} to remote path ${to}`, error);
      });
    },
    write: async (to: string, content: string): Promise<void> => {
      const write = promisify<string, string, undefined>((target, data, done) => {
        sftp.writeFile(target, data, (error) => {
          done(error ?? null, undefined);
        });
      });
      await write(to, content).catch((error: unknown) => {
        throw named(`failed to write text content to remote path ${to}`, error);
      });
    },
  };
}

function openSftp(client: Client): Promise<SFTPWrapper> {
  return new Promise((resolve, reject) => {
    client.once("error", reject);
    client.sftp((error, sftp) => {
      if (error) reject(error);
      else resolve(sftp);
    });
  });
}

function named(what: string, error: unknown): Error {
  return new Error(`${what}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
}
