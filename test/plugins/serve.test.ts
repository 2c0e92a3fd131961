import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { pluginsUnderTest, RunningPlugin } from "./pluginUnderTest.ts";

const substitutes = (["command", "tls"] as const)
  .flatMap((name) => pluginsUnderTest(name))
  .filter(({ kind }) => kind === "substitute");

describe.each(substitutes)("$title", (plugin) => {
  it("keeps what it compiled for the next deployment when the engine ends it", async () => {
    const cache = mkdtempSync(join(tmpdir(), "fleet-compile-cache-"));
    onTestFinished(() => {
      vi.unstubAllEnvs();
      rmSync(cache, { recursive: true });
    });
    vi.stubEnv("NODE_COMPILE_CACHE", cache);
    const running = await RunningPlugin.start(plugin);
    expect(filesIn(cache)).toBe(0);
    await running.stop();
    expect(filesIn(cache)).toBeGreaterThan(10);
  });
});

function filesIn(directory: string): number {
  return readdirSync(directory, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile()).length;
}
