/** `Pulumi.<stack>.yaml` and the line `encryptionsalt:`, which the CLI writes there for every stack with a passphrase. */
import { spawnSync } from "node:child_process";
import {
  chmodSync,
  chownSync,
  readdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { checkout } from "./launch.mjs";

/**
 * Takes the line `encryptionsalt:` out of stack files that git tracks. The CLI makes a new one when it is missing; the state keeps
 * its own. A file with `secure:` values, or one whose salt is committed, needs the line and is left alone.
 *
 * @param untracked whether to tidy files that git doesn't track as well: where a passphrase is made, the salts of an earlier one are
 * of no use, and the CLI would hold the new one against them. Default: no.
 */
export function tidyStackFiles(directory: string = checkout, untracked = false): void {
  for (const file of readdirSync(directory).filter((name) => /^Pulumi\..+\.yaml$/.test(name))) {
    const path = join(directory, file);
    const text = readFileSync(path, "utf8");
    const tidy = withoutSalt(text);
    if (tidy === text) continue;
    const committed = spawnSync("git", ["show", `:./${file}`], { cwd: directory, encoding: "utf8", timeout: 10_000 });
    if (committed.status === 0 ? !hasSalt(committed.stdout) : untracked) replaceText(realpathSync(path), tidy);
  }
}

/** Replaces a person's file in one step: written in place, it would be empty where there is no room, or after a kill. */
function replaceText(path: string, text: string): void {
  const draft = `${path}.${process.pid}.new`;
  const { mode, uid, gid } = statSync(path);
  try {
    writeFileSync(draft, text, { flag: "wx", mode: 0o600 });
    // Root works in other users' checkouts as well.
    if (process.getuid?.() === 0) chownSync(draft, uid, gid);
    chmodSync(draft, mode);
    renameSync(draft, path);
  } catch (error) {
    rmSync(draft, { force: true });
    throw error;
  }
}

/** A stack file's text without the salt, or unchanged if the salt is needed to read values in it. */
export function withoutSalt(text: string): string {
  return /^\s*(- )?secure:/m.test(text) ? text : text.replace(/^encryptionsalt:.*(\n|$)/gm, "");
}

/** Whether a stack file has a salt. */
export function hasSalt(text: string): boolean {
  return /^encryptionsalt:/m.test(text);
}
