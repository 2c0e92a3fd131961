/** Fetches files from official origins, and keeps only what has the right checksum. */
import { createHash } from "node:crypto";
import { createReadStream, createWriteStream } from "node:fs";
import { mkdir, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { LaunchError } from "../launch.mjs";
import { origins } from "./versions.ts";

/**
 * Downloads `url` to the file `to`. The file appears only once it is complete and its SHA-256 is `sha256`.
 *
 * @throws {LaunchError} if the origin doesn't answer with the file, or the file is another than expected.
 */
export async function download(url: string, to: string, sha256: string): Promise<void> {
  const draft = `${to}.${process.pid}.part`;
  await mkdir(dirname(to), { recursive: true });
  try {
    const response = await get(url, 10 * 60_000);
    if (!response.body) throw new LaunchError(`${url} is empty.`);
    await pipeline(Readable.fromWeb(response.body), createWriteStream(draft));
    const got = await sha256Of(draft);
    if (got !== sha256.toLowerCase())
      throw new LaunchError(`${url} has the SHA-256 ${got}, expected ${sha256}: it was not used.`);
    await rename(draft, to);
  } catch (error) {
    if (error instanceof LaunchError) throw error;
    throw new LaunchError(`${url} could not be fetched: ${reason(error)}.`);
  } finally {
    await rm(draft, { force: true });
  }
}

/**
 * The SHA-256 that a release's published checksum list (lines of "<hex>  <file>") gives for `file`.
 *
 * @throws {LaunchError} if the list can't be had or doesn't name the file.
 */
export async function publishedSha256(list: string, file: string): Promise<string> {
  const text = await get(list, 30_000).then(
    (response) => response.text(),
    (error: unknown) => {
      throw new LaunchError(`${list} could not be fetched: ${reason(error)}.`);
    },
  );
  const line = text.split("\n").find((candidate) => candidate.trim().split(/\s+[*]?(?:\.\/)?/)[1] === file);
  const sum = line?.trim().split(/\s+/)[0];
  if (sum === undefined || !/^[0-9a-f]{64}$/i.test(sum)) throw new LaunchError(`${list} has no SHA-256 for ${file}.`);
  return sum;
}

/** Whether `url` answers within three seconds: decides if an official download is worth trying. */
export async function isReachable(url: string): Promise<boolean> {
  return fetch(url, { method: "HEAD", signal: AbortSignal.timeout(3000) }).then(
    (response) => response.ok,
    () => false,
  );
}

/** Pulumi's archives are at get.pulumi.com, their checksums and the plugins on GitHub: both are needed. */
export async function reachesPulumi(): Promise<boolean> {
  return (await Promise.all([origins.pulumi, origins.github].map(isReachable))).every(Boolean);
}

async function get(url: string, milliseconds: number): Promise<Response> {
  const response = await fetch(url, { signal: AbortSignal.timeout(milliseconds) });
  if (!response.ok) throw new LaunchError(`${url} answered ${response.status} ${response.statusText}.`);
  return response;
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
