/**
 * A current Nix beside the installed one: Debian sid's, unpacked into the user's cache and run with its own libraries. Needs neither
 * root nor a chroot, and touches nothing outside of the cache.
 */
import { execFileSync } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, readdirSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { cacheDirectory } from "../../tools/launch.mjs";

/** A directory to put before PATH, or why there is none. */
export type CurrentNix = { readonly bin: string } | { readonly missing: string };

const loaders: Readonly<Record<string, [library: string, loader: string]>> = {
  x64: ["usr/lib/x86_64-linux-gnu", "ld-linux-x86-64.so.2"],
  arm64: ["usr/lib/aarch64-linux-gnu", "ld-linux-aarch64.so.1"],
};

/** Fetches it the first time (about 30 MB, a minute), and again after a month. */
export function findCurrentNix(): CurrentNix {
  const month = new Date().toISOString().slice(0, 7);
  const directory = `${cacheDirectory()}/nix-of-sid-${month}`;
  const bin = `${directory}/bin`;
  if (existsSync(bin)) return { bin };
  const loader = loaders[process.arch];
  if (loader === undefined) return { missing: `there is no loader known for ${process.arch}` };
  if (!existsSync(directory)) {
    const draft = `${directory}.${process.pid}`;
    try {
      unpack(draft);
      renameSync(draft, directory);
    } catch (error) {
      rmSync(draft, { recursive: true, force: true });
      const reason = error instanceof Error ? (error.message.split("\n")[0] ?? "") : "";
      if (!existsSync(directory)) return { missing: `Debian sid's nix-bin can't be had through apt (${reason})` };
    }
  }
  wrap(directory, loader);
  return { bin };
}

/** nix-bin and all that it depends on, downloaded with a package list of its own, so that the machine's stays as it is. */
function unpack(directory: string): void {
  const lists = `${directory}/apt`;
  for (const folder of ["lists/partial", "archives/partial"]) mkdirSync(`${lists}/${folder}`, { recursive: true });
  writeFileSync(`${lists}/status`, "");
  writeFileSync(`${lists}/sources.list`, "deb http://deb.debian.org/debian sid main\n");
  const options = [
    `Dir::State::status=${lists}/status`,
    `Dir::State::lists=${lists}/lists`,
    `Dir::Cache=${lists}`,
    `Dir::Cache::archives=${lists}/archives`,
    `Dir::Etc::sourcelist=${lists}/sources.list`,
    "Dir::Etc::sourceparts=-",
    "Dir::Etc::preferencesparts=-",
    "APT::Sandbox::User=",
    "APT::Install-Recommends=false",
    "Acquire::Languages=none",
    // A mirror may lag behind; the signature counts all the same.
    "Acquire::Check-Valid-Until=false",
    "Acquire::Retries=3",
    "Debug::NoLocking=true",
  ].flatMap((option) => ["-o", option]);
  const run = (...args: string[]) => {
    execFileSync("apt-get", [...options, "-qq", ...args], { stdio: "pipe", timeout: 180_000 });
  };
  run("update");
  run("install", "--yes", "--download-only", "nix-bin");
  for (const name of readdirSync(`${lists}/archives`).filter((file) => file.endsWith(".deb"))) {
    execFileSync("dpkg-deb", ["-x", `${lists}/archives/${name}`, directory], { stdio: "pipe", timeout: 60_000 });
  }
  rmSync(lists, { recursive: true });
}

/** Programs that start Nix with the libraries it was built against, wherever the folder lies by then: a home may be moved or copied. */
function wrap(directory: string, [library, loader]: readonly [string, string]): void {
  const draft = `${directory}/bin.${process.pid}`;
  mkdirSync(draft);
  writeFileSync(
    `${draft}/nix`,
    `#!/bin/sh
set -e
directory=$(cd "$(dirname "$0")/.." && pwd)
# Nix takes the program that it runs in, here the loader, for itself.
NIX_CONFIG="\${NIX_CONFIG-}
build-hook = $directory/bin/nix __build-remote"
export NIX_CONFIG
exec "$directory/${library}/${loader}" --library-path "$directory/${library}" --argv0 "\${0##*/}" "$directory/usr/bin/nix" "$@"
`,
  );
  chmodSync(`${draft}/nix`, 0o755);
  for (const name of ["nix-build", "nix-instantiate", "nix-store", "nix-daemon"])
    symlinkSync("nix", `${draft}/${name}`);
  if (existsSync(`${directory}/bin`)) rmSync(draft, { recursive: true });
  else renameSync(draft, `${directory}/bin`);
}
