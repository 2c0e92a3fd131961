/** The passphrase of the checkout's own state: made once, and never replaced while something is encrypted with it. */
import { randomBytes } from "node:crypto";
import { chmodSync, existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { LaunchError, withLock } from "./launch.mjs";
import { readCheckpoint, savedStates } from "./savedState.ts";
import { hasSalt, tidyStackFiles, withoutSalt } from "./stackFile.ts";
import { ownBackend } from "./stack.ts";

/** Where the passphrase of a checkout lies. */
export function passphrasePath(directory: string): string {
  return join(directory, ".fleet", "passphrase");
}

/** Held while what only the first start in a checkout makes is made. */
export function firstStartLock(directory: string): string {
  return join(directory, ".fleet", "first-start.lock");
}

/**
 * Makes the passphrase on first use, readable to this user only.
 *
 * @param directory the checkout.
 * @param stack that a command works on: values in its `Pulumi.<stack>.yaml` may be encrypted as well.
 * @throws {LaunchError} where it is gone, empty or unreadable although something is encrypted with it: what is lost, and the ways out.
 */
export async function ensurePassphrase(directory: string, stack: string): Promise<void> {
  const path = passphrasePath(directory);
  if (isThere(path)) return;
  await withLock(firstStartLock(directory), () => {
    if (isThere(path)) return;
    const lost = encryptedWith(directory, stack);
    if (lost.stacks.length > 0 || lost.file !== undefined) throw new LaunchError(describeLoss(path, lost));
    tidyStackFiles(directory, true);
    writeFileSync(path, randomBytes(32).toString("base64url"), { mode: 0o600 });
  });
}

/** Whether the CLI says that the passphrase is not the right one. */
export function isWrongPassphrase(said: string): boolean {
  return said.includes("incorrect passphrase");
}

/** What to do about a passphrase that is not the right one. */
export function describeWrongPassphrase(env: NodeJS.ProcessEnv, stack: string, directory: string): string {
  const source =
    env["PULUMI_CONFIG_PASSPHRASE"] !== undefined
      ? "PULUMI_CONFIG_PASSPHRASE"
      : (env["PULUMI_CONFIG_PASSPHRASE_FILE"] ?? passphrasePath(directory));
  return (
    `The passphrase in ${source} is not the one that stack ${stack} is encrypted with: put the right one there (or into ` +
    `PULUMI_CONFIG_PASSPHRASE), or give the stack up: ${giveUp([stack])}.`
  );
}

/** What nobody can read without the passphrase. */
interface Encrypted {
  /** Names of stacks whose state is. */
  readonly stacks: readonly string[];
  /** The stack's file, if it has values that are. */
  readonly file: string | undefined;
}

function encryptedWith(directory: string, stack: string): Encrypted {
  const stacks = savedStates(ownBackend(directory)).flatMap(({ path, stack: place }) =>
    readCheckpoint(path)?.secretsProvider === "passphrase" ? [basename(place)] : [],
  );
  const file = `Pulumi.${stack}.yaml`;
  const path = join(directory, file);
  const text = existsSync(path) ? readFileSync(path, "utf8") : "";
  return { stacks, file: hasSalt(text) && withoutSalt(text) === text ? file : undefined };
}

function describeLoss(path: string, { stacks, file }: Encrypted): string {
  const missing = existsSync(path) ? `${path} is empty` : `${path} is missing`;
  const what = [
    ...(stacks.length === 0 ? [] : [`the state of ${stacks.join(", ")}`]),
    ...(file === undefined ? [] : [`the \`secure:\` values in ${file}`]),
  ];
  const ways = [
    "put the file back from a copy",
    "set PULUMI_CONFIG_PASSPHRASE to what was in it",
    stacks.length > 0
      ? `give it up: ${giveUp(stacks)}`
      : "give the values up: take them and the line `encryptionsalt:` out of the file",
  ];
  return (
    `${missing}, and with it the only key to ${what.join(" and ")}: no other passphrase opens that, and none is made in its place. ` +
    `Either ${ways.join("; or ")}.`
  );
}

/** The commands, which need no passphrase, and what they leave behind. */
function giveUp(stacks: readonly string[]): string {
  const commands = stacks.map((stack) => `\`npm run pulumi -- stack rm ${stack} --force --yes --preserve-config\``);
  return (
    `${commands.join(", ")}, then \`npm start\` takes the builders of this machine back with new keys, \`npx fleet verify-gone\` ` +
    "lists servers in a cloud, which are to be deleted there, and `secure:` values have to be set again"
  );
}

/** Whether there is a passphrase. What is there and can't be read is no reason to make another one. */
function isThere(path: string): boolean {
  try {
    const there = readFileSync(path, "utf8").trim() !== "";
    if (there && (statSync(path).mode & 0o077) !== 0) chmodSync(path, 0o600);
    return there;
  } catch (error) {
    const code = error instanceof Error && "code" in error ? error.code : undefined;
    if (code === "ENOENT") return false;
    throw new LaunchError(
      `${path}, the passphrase of this checkout's state, can't be read (${error instanceof Error ? error.message : String(error)}): ` +
        "make it a file that you may read (chmod 600, chown), run this as its owner, or set PULUMI_CONFIG_PASSPHRASE.",
    );
  }
}
