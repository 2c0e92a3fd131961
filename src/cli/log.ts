/** Build logs that the client's own Nix doesn't have, from the builder that has them: neither protocol of Nix hands them over. */
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { execa } from "execa";
import { withKeyFile } from "../client/scratch.ts";
import type { BuildMachine } from "../nix/buildMachine.ts";
import { runProgram } from "../process.ts";
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

const limit = { milliseconds: 30_000, bytes: 64 * 2 ** 20 };

/** Puts the logs of these derivations where the client's Nix looks for them, as far as builders have them. */
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
  const missing = derivations.map(logOf).filter((log) => !existsSync(`${store ?? ""}${log}`));
  if (missing.length === 0 || holders.length === 0) return;
  await withKeyFile(clientDirectory, adminPrivateKey, async (keyFile) => {
    const fetch = async (log: string, { machine, user, ownStore = "" }: LogHolder): Promise<Buffer> => {
      const command = `base64 < '${ownStore}${log}'`;
      const login = { machine, user, keyFile, clientDirectory };
      const { code, stdout } = await runProgram("ssh", administratorWords(login, command), limit);
      if (code !== 0 || stdout === "") throw new Error("it doesn't have the log");
      return Buffer.from(stdout, "base64");
    };
    for (const log of missing) {
      const found = await Promise.any(holders.map((holder) => fetch(log, holder))).catch(() => undefined);
      if (found === undefined) continue;
      const path = `${store ?? ""}${log}`;
      mkdirSync(dirname(path), { recursive: true });
      writeFileSync(path, found);
    }
  });
}

/** Where Nix keeps the log of a derivation, compressed as it is by default. */
function logOf(derivation: string): string {
  const name = derivation.slice("/nix/store/".length);
  return `/nix/var/log/nix/drvs/${name.slice(0, 2)}/${name.slice(2)}.bz2`;
}
