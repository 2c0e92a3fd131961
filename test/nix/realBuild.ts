/** Real builds on a real builder, through emitted files and nothing else. */
import { execFile } from "node:child_process";
import { mkdirSync, mkdtempSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import type { LocalBuilder } from "../support/localBuilder.ts";
import { nixPath, type WhichNix } from "./realNix.ts";

let builds = 0;

export interface BuildOptions extends WhichNix {
  /** Default: `builders`. */
  readonly store?: "builders" | "remote store";
  /** Further arguments. */
  readonly args?: readonly string[];
}

/** Builds something new with the files in `directory`; rejects with what Nix said. */
export async function build({ machine }: LocalBuilder, directory: string, options: BuildOptions = {}): Promise<string> {
  builds += 1;
  mkdirSync(`${directory}/store`, { recursive: true });
  const expression = `derivation {
    name = "pinned-${process.pid}-${builds}"; system = "${machine.systems[0] ?? ""}";
    builder = "/bin/sh"; args = [ "-c" "echo > $out" ];
  }`;
  const uri = `ssh-ng://${machine.sshUser}@${machine.alias}`;
  const store =
    options.store === "remote store" ? ["--eval-store", `local?root=${directory}/store`, "--store", uri] : [];
  const args = ["build", "--impure", "--no-link", "-v", "--expr", expression, ...store, ...(options.args ?? [])];
  const { stderr } = await promisify(execFile)("nix", args, {
    encoding: "utf8",
    timeout: 60_000,
    env: {
      PATH: nixPath(options),
      HOME: directory,
      NIX_CONF_DIR: directory,
      NIX_CONFIG: "experimental-features = nix-command flakes\nsubstituters =\nmax-jobs = 0",
      NIX_SSHOPTS: `-F ${directory}/ssh_config`,
      NIX_REMOTE: `local?root=${directory}/store`,
      NIX_STATE_DIR: `${directory}/store/state`,
      NIX_LOG_DIR: `${directory}/store/log`,
    },
  });
  return stderr;
}

/** Writes files, and the key that the builder accepts, into a directory of their own. */
export function writeClient(
  builder: LocalBuilder,
  files: (directory: string) => Readonly<Record<string, string>>,
): string {
  const directory = mkdtempSync(join(builder.directory, "client-"));
  for (const [name, text] of Object.entries(files(directory))) writeFileSync(`${directory}/${name}`, text);
  writeFileSync(`${directory}/id_ed25519`, builder.clientPrivateKey, { mode: 0o600 });
  return directory;
}
