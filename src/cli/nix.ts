/** Runs `nix-build` or `nix` through the fleet and nothing else. */
import { accessSync, constants, existsSync, lstatSync, readlinkSync, rmSync, symlinkSync } from "node:fs";
import { execa } from "execa";
import { clientEnvironment } from "../client/environment.ts";
import { CliError, readFleet, stackDirectory, writeClient } from "./stack.ts";

/**
 * Runs a Nix program with the fleet's client files alone, building nothing on this machine.
 *
 * @param program `nix-build` or `nix`.
 * @param words Its arguments, untouched.
 * @returns Its exit code.
 * @throws CliError when Nix isn't there or the stack has no fleet.
 */
export async function runNix(stack: string, program: "nix-build" | "nix", words: readonly string[]): Promise<number> {
  const fleet = await readFleet(stack);
  const directory = `${stackDirectory(stack)}/client`;
  writeClient(fleet, directory);
  const store = machineStoreIsWritable() ? undefined : `${stackDirectory(stack)}/store`;
  const result = await execa(program, words, {
    env: clientEnvironment({ clientDirectory: directory, store }),
    stdio: "inherit",
    reject: false,
  });
  if (result.code === "ENOENT")
    throw new CliError(`${program} is not installed; \`npm run setup\` installs it or says how`);
  if (store !== undefined && result.exitCode === 0) {
    const links = repointOutLinks(words, store);
    const where = links.length === 0 ? `below ${store}` : `${links.join(", ")} → ${store}`;
    console.error(
      `fleet: built into this stack's own store, as the machine has none that this user can write to: ${where}`,
    );
  }
  return result.exitCode ?? 1;
}

/** Whether Nix can work on the machine's store directly: as root, or as the owner of a single-user installation. */
function machineStoreIsWritable(): boolean {
  try {
    accessSync("/nix/var/nix/db", constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

/** Lets `result` links lead to where the paths really are: Nix writes them as if the store were /nix/store. */
function repointOutLinks(words: readonly string[], store: string): string[] {
  const option = words.findIndex((word) => word === "-o" || word === "--out-link");
  const name = option === -1 ? "result" : (words[option + 1] ?? "result");
  const candidates = [name, ...Array.from({ length: 31 }, (_, index) => `${name}-${index + 2}`)];
  return candidates.filter((link) => {
    if (!lstatSync(link, { throwIfNoEntry: false })?.isSymbolicLink()) return false;
    const target = readlinkSync(link);
    if (existsSync(target) || !existsSync(`${store}${target}`)) return false;
    rmSync(link);
    symlinkSync(`${store}${target}`, link);
    return true;
  });
}
