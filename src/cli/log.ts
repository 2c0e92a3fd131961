/** Build logs that the client's own Nix doesn't have, from the builder that has them: neither protocol of Nix hands them over. */
import { existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { execa } from "execa";
import { scratchFolder, withKeyFile } from "../client/scratch.ts";
import type { BuildMachine } from "../nix/buildMachine.ts";
import { bounded, runProgram } from "../process.ts";
import { administratorWords } from "../ssh/administration.ts";

/** A builder that the fleet administers. */
export interface LogHolder {
  readonly machine: BuildMachine;
  readonly user: string;
  /** Folder on the builder that its store lies in; `undefined`: the system's own. */
  readonly ownStore: string | undefined;
}

/** Which logs are wanted, and who may have them. */
export interface LogSearch {
  /** What `nix log` takes. */
  readonly words: readonly string[];
  readonly env: Record<string, string>;
  /** Folder of the client's own store; `undefined`: the machine's. */
  readonly store: string | undefined;
  readonly clientDirectory: string;
  readonly adminPrivateKey: string;
  readonly holders: readonly LogHolder[];
}

/** Of a log as it is stored, in base64, and of its text. */
const limit = { milliseconds: 30_000, bytes: 64 * 2 ** 20 };

/**
 * Puts the logs of these derivations where the client's Nix looks for them, as far as builders have them: as plain text, since Nix itself shows a
 * log as it is, and unpacks it into memory whatever its size.
 */
export async function fetchLogs(search: LogSearch): Promise<void> {
  const { words, env, store, clientDirectory, adminPrivateKey, holders } = search;
  const asked = await execa("nix", ["path-info", "--derivation", ...words], {
    env,
    stdin: "ignore",
    reject: false,
  });
  // What is wrong with the arguments, `nix log` says itself.
  const derivations = asked.stdout
    .split("\n")
    .filter((line) => /^\/nix\/store\/[a-z0-9]{32}-[\w.+?=-]+\.drv$/.test(line));
  const missing = derivations.filter((derivation) => {
    const log = `${store ?? ""}${logOf(derivation)}`;
    return !existsSync(log) && !existsSync(`${log}.bz2`);
  });
  if (missing.length === 0 || holders.length === 0) return;
  await withKeyFile(clientDirectory, adminPrivateKey, async (keyFile) => {
    const fetch = async (derivation: string, { machine, user, ownStore = "" }: LogHolder): Promise<string> => {
      const login = { machine, user, keyFile, clientDirectory };
      const words = administratorWords(login, printing(ownStore, `${logOf(derivation)}.bz2`));
      const { code, stdout } = await runProgram("ssh", words, limit);
      if (code !== 0 || stdout === "") throw new Error("it doesn't have the log");
      return unpack(search, derivation, Buffer.from(stdout, "base64"));
    };
    for (const derivation of missing) {
      const found = await Promise.any(holders.map((holder) => fetch(derivation, holder))).catch(() => undefined);
      if (found === undefined) continue;
      const path = `${store ?? ""}${logOf(derivation)}`;
      mkdirSync(dirname(path), { recursive: true });
      writeFileSync(path, `${found}\n`);
    }
  });
}

/**
 * Shell that prints a log in base64. The administrator of a builder on this machine is outside of its container, where a link in the builder's
 * store would lead to this machine's files: so what was opened has to be the file of that name.
 */
function printing(ownStore: string, log: string): string {
  const path = `${ownStore}${log}`;
  return `top=$(cd '${ownStore}/' && pwd -P) && [ -f '${path}' ] && exec <'${path}' && [ "$(readlink /proc/self/fd/0)" = "\${top%/}${log}" ] && base64`;
}

/** The text of a compressed log, as this machine's Nix reads it. */
async function unpack(
  { env, store, clientDirectory }: Pick<LogSearch, "env" | "store" | "clientDirectory">,
  derivation: string,
  compressed: Buffer,
): Promise<string> {
  const folder = scratchFolder(clientDirectory, "log");
  try {
    const path = `${folder}${logOf(derivation).slice(logFolder.length)}.bz2`;
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, compressed);
    const root = store === undefined ? "" : `root=${store}&`;
    const read = bounded(2 ** 20, "nix", "log", derivation, "--option", "substituters", "");
    const { code, stdout } = await runProgram(...read, {
      ...limit,
      env: { ...env, NIX_REMOTE: `local?${root}log=${folder}` },
    });
    if (code !== 0) throw new Error("what it has is no log, or too much");
    return stdout;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const logFolder = "/nix/var/log/nix";

/** Where Nix keeps the log of a derivation; compressed, as it is by default, with `.bz2` at the end. */
function logOf(derivation: string): string {
  const name = derivation.slice("/nix/store/".length);
  return `${logFolder}/drvs/${name.slice(0, 2)}/${name.slice(2)}`;
}
