/** actionlint, built once from its Go module and kept in the user's cache. */
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync } from "node:fs";
import { cacheDirectory } from "../../tools/launch.mjs";

const version = "v1.7.7";

/** Path of the program, or why there is none. */
export function findActionlint(): { readonly path: string } | { readonly missing: string } {
  const cache = `${cacheDirectory()}/actionlint-${version}`;
  const path = `${cache}/actionlint`;
  if (existsSync(path)) return { path };
  try {
    mkdirSync(cache, { recursive: true });
    execFileSync("go", ["install", `github.com/rhysd/actionlint/cmd/actionlint@${version}`], {
      env: { ...process.env, GOBIN: cache },
      stdio: "pipe",
      timeout: 240_000,
    });
    return { path };
  } catch (error) {
    const reason = error instanceof Error ? (error.message.split("\n")[0] ?? "") : "";
    return { missing: `actionlint can't be built from its Go module (${reason})` };
  }
}
