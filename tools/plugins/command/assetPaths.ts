/** The files that a local command left behind, as assets: the inputs `assetPaths` and `archivePaths`. */
import { createHash } from "node:crypto";
import { readFile, readdir } from "node:fs/promises";
import { join } from "node:path";
import { type Properties, assetArchive, fileAsset } from "../propertyValue.ts";
import { texts } from "./execution.ts";
import { ownValue } from "../../../src/record.ts";

/**
 * @param dir where the command ran; paths are matched and named relative to it.
 * @returns `assets` and `archive`, each where the inputs name patterns for it.
 */
export async function collectAssets(dir: string, inputs: Properties): Promise<Properties> {
  const files = await filesBelow(dir, "");
  const matching = async (name: string) => matchingAssets(dir, files, texts(ownValue(inputs, name)));
  return {
    ...(inputs["assetPaths"] !== undefined && { assets: await matching("assetPaths") }),
    ...(inputs["archivePaths"] !== undefined && { archive: archiveOf(await matching("archivePaths")) }),
  };
}

/** Patterns count in their order; one that starts with `!` takes away what it matches. Directories never match. */
async function matchingAssets(dir: string, files: readonly string[], patterns: readonly string[]): Promise<Properties> {
  const rules = patterns.map((pattern) => ({
    adds: !pattern.startsWith("!"),
    matches: globMatcher(pattern.replace(/^!/, "")),
  }));
  const chosen = files.filter((file) => rules.findLast(({ matches }) => matches.test(file))?.adds === true);
  const assets = chosen.map(async (file) => {
    const path = join(dir, file);
    return [file, fileAsset(path, sha256(await readFile(path)))] as const;
  });
  return Object.fromEntries(await Promise.all(assets));
}

/** The hash is one of our own making: it says whether two archives are the same, which is all that the engine asks of it. */
function archiveOf(assets: Properties): Properties {
  return assetArchive(assets, sha256(Buffer.from(JSON.stringify(assets))));
}

async function filesBelow(dir: string, prefix: string): Promise<string[]> {
  const entries = await readdir(join(dir, prefix), { withFileTypes: true });
  const nested = entries.map(async (entry): Promise<string[]> => {
    const path = prefix === "" ? entry.name : `${prefix}/${entry.name}`;
    return entry.isDirectory() ? filesBelow(dir, path) : [path];
  });
  return (await Promise.all(nested)).flat().sort();
}

/** The syntax of github.com/gobwas/glob with `/` as separator: `*`, `**`, `?`, `[abc]`, `[!abc]`, `{a,b}`, `\`. */
function globMatcher(pattern: string): RegExp {
  const source = pattern.replace(/\\(.)|\*\*+|\*|\?|\[(!?)([^\]]*)\]|[{},]|[.+^$()|\\/[\]]/g, translate);
  return new RegExp(`^${source}$`, "su");

  function translate(
    token: string,
    escaped: string | undefined,
    not: string | undefined,
    set: string | undefined,
  ): string {
    if (escaped !== undefined) return escaped.replace(/\W/u, "\\$&");
    if (set !== undefined) return `[${not === "!" ? "^" : ""}${set.replaceAll("\\", "\\\\").replaceAll("[", "\\[")}]`;
    const meanings = { "*": "[^/]*", "?": "[^/]", "{": "(?:", "}": ")", ",": pattern.includes("{") ? "|" : "," };
    const meaning = ownValue(meanings, token);
    return meaning ?? (token.startsWith("**") ? ".*" : `\\${token}`);
  }
}

function sha256(content: Buffer): string {
  return createHash("sha256").update(content).digest("hex");
}
