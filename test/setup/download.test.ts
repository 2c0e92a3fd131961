import { createHash } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { download, isReachable } from "../../tools/setup/download.ts";

const { checksums } = vi.hoisted(() => ({ checksums: {} }));
vi.mock("../../tools/setup/versions.ts", async (original) => ({ ...(await original<object>()), checksums }));

const archive = Buffer.from("this would be a tarball");
const sha256 = createHash("sha256").update(archive).digest("hex");
Object.assign(checksums, {
  "tool.tar.gz": sha256,
  "gone.tar.gz": sha256,
  "cut.tar.gz": sha256,
  "evil.tar.gz": "f".repeat(64),
});
const files: Record<string, Buffer> = {
  "/tool.tar.gz": archive,
  "/evil.tar.gz": archive,
  "/other.tar.gz": archive,
  "/toString": archive,
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
    await download(`${mirror}/tool.tar.gz`, join(directory, "deep", "tool.tar.gz"));
    expect(readFileSync(join(directory, "deep", "tool.tar.gz"))).toEqual(archive);
    expect(readdirSync(join(directory, "deep"))).toEqual(["tool.tar.gz"]);
  });

  it.each([
    ["has another checksum than is pinned", "/evil.tar.gz", /has the SHA-256 .* expected f+: it was not used\.$/],
    ["has none that is pinned", "/other.tar.gz", /other\.tar\.gz was not fetched: no SHA-256 is pinned for it/],
    ["has none that is pinned, by whatever name", "/toString", /no SHA-256 is pinned for it/],
    ["isn't there", "/gone.tar.gz", /gone\.tar\.gz answered 404/],
    ["breaks off", "/cut.tar.gz", /cut\.tar\.gz could not be fetched/],
  ])("that %s is refused, and leaves nothing behind", async (_, path, message) => {
    await expect(download(mirror + path, join(directory, "tool"))).rejects.toThrow(message);
    expect(readdirSync(directory)).toEqual([]);
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
