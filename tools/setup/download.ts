/** Fetches files from official origins, and keeps only what has the checksum that this checkout pins. */
import { createHash } from "node:crypto";
import { createReadStream, createWriteStream } from "node:fs";
import { mkdir, rename, rm } from "node:fs/promises";
import { basename, dirname } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { ownValue } from "../../src/record.ts";
import { LaunchError } from "../launch.mjs";
import { checksums, origins } from "./versions.ts";

/**
 * Downloads `url` to the file `to`. The file appears only once it is complete and has the SHA-256 that this checkout pins for it.
 *
 * @throws {LaunchError} if none is pinned, the origin doesn't answer with the file, or the file is another than expected.
 */
export async function download(url: string, to: string): Promise<void> {
  const sha256 = pinnedSha256(basename(new URL(url).pathname));
  if (sha256 === undefined)
    throw new LaunchError(`${url} was not fetched: no SHA-256 is pinned for it in versions.ts.`);
  const draft = `${to}.${process.pid}.part`;
  await mkdir(dirname(to), { recursive: true });
  try {
    const response = await fetch(url, { signal: AbortSignal.timeout(10 * 60_000) });
    if (!response.ok) throw new LaunchError(`${url} answered ${response.status} ${response.statusText}.`);
    if (!response.body) throw new LaunchError(`${url} is empty.`);
    await pipeline(Readable.fromWeb(response.body), createWriteStream(draft));
    const got = await sha256Of(draft);
    if (got !== sha256) throw new LaunchError(`${url} has the SHA-256 ${got}, expected ${sha256}: it was not used.`);
    await rename(draft, to);
  } catch (error) {
    if (error instanceof LaunchError) throw error;
    throw new LaunchError(`${url} could not be fetched: ${reason(error)}.`);
  } finally {
    await rm(draft, { force: true });
  }
}

/** The SHA-256 that this checkout pins for an official file; `undefined`: it must not be downloaded. */
export function pinnedSha256(file: string): string | undefined {
  return ownValue(checksums, file);
}

/** Whether `url` answers within three seconds: decides if an official download is worth trying. */
export async function isReachable(url: string): Promise<boolean> {
  return fetch(url, { method: "HEAD", signal: AbortSignal.timeout(3000) }).then(
    (response) => response.ok,
    () => false,
  );
}

/** Whether Pulumi's downloads can be reached. */
export function reachesPulumi(): Promise<boolean> {
  return isReachable(origins.pulumi);
}

async function sha256Of(path: string): Promise<string> {
  const hash = createHash("sha256");
  await pipeline(createReadStream(path), hash);
  return hash.digest("hex");
}

function reason(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return error.cause instanceof Error ? error.cause.message : error.message;
}
