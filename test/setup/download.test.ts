import { createHash } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { download, isReachable, publishedSha256 } from "../../tools/setup/download.ts";

const archive = Buffer.from("this would be a tarball");
const sha256 = createHash("sha256").update(archive).digest("hex");
const files: Record<string, Buffer | string> = {
  "/tool.tar.gz": archive,
  "/checksums.txt": `${"0".repeat(64)}  tool-arm64.tar.gz\n${sha256}  ./tool.tar.gz\nnonsense  broken.tar.gz\n`,
};
let server: Server;
let mirror: string;
let directory: string;

beforeAll(async () => {
  server = createServer((request, response) => {
    const file = files[request.url ?? ""];
    if (request.url === "/cut.tar.gz") {
      response.writeHead(200, { "content-length": "1000" });
      response.write("only so much", () => response.destroy());
    } else response.writeHead(file === undefined ? 404 : 200).end(file);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  mirror = `http://127.0.0.1:${String((server.address() as AddressInfo).port)}`;
});
afterAll(() => server.close());
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "download-test-"));
});
afterEach(() => {
  rmSync(directory, { recursive: true, force: true });
});

describe("a download", () => {
  it("is kept when its checksum is the expected one", async () => {
    await download(`${mirror}/tool.tar.gz`, join(directory, "deep", "tool.tar.gz"), sha256);
    expect(readFileSync(join(directory, "deep", "tool.tar.gz"))).toEqual(archive);
    expect(readdirSync(join(directory, "deep"))).toEqual(["tool.tar.gz"]);
  });

  it.each([
    ["has another checksum", "/tool.tar.gz", "f".repeat(64), /has the SHA-256 .* expected f+: it was not used/],
    ["isn't there", "/other.tar.gz", sha256, /other\.tar\.gz answered 404/],
    ["breaks off", "/cut.tar.gz", sha256, /cut\.tar\.gz could not be fetched/],
  ])("that %s is refused, and leaves nothing behind", async (_, path, sum, message) => {
    await expect(download(mirror + path, join(directory, "tool"), sum)).rejects.toThrow(message);
    expect(readdirSync(directory)).toEqual([]);
  });
});

describe("a published list of checksums", () => {
  it("gives the one of the file that is asked for", async () => {
    expect(await publishedSha256(`${mirror}/checksums.txt`, "tool.tar.gz")).toBe(sha256);
  });

  it.each(["unknown.tar.gz", "broken.tar.gz", "tool"])("that has none for %s is an error", async (file) => {
    await expect(publishedSha256(`${mirror}/checksums.txt`, file)).rejects.toThrow(`has no SHA-256 for ${file}`);
  });
});

describe("an origin", () => {
  it("is reachable when it answers", async () => {
    expect(await isReachable(`${mirror}/tool.tar.gz`)).toBe(true);
  });
  it("is not when it has no such file, or nobody listens", async () => {
    expect(await isReachable(`${mirror}/nothing`)).toBe(false);
    expect(await isReachable("http://127.0.0.1:1/")).toBe(false);
  });
});
