/** A script run as root of a system of its own: this machine's files, whose changes nobody else sees, in mount and process namespaces. */
import { spawnSync } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";

/** What is there before the script runs. */
export interface OwnRoot {
  /** Files: path → text. */
  readonly files: Readonly<Record<string, string>>;
  /** Programs: path → text of a script, or bytes. */
  readonly programs: Readonly<Record<string, string | Uint8Array>>;
}

/** What came of it. */
export interface Ended {
  readonly status: number | null;
  readonly output: string;
  /** Text of a file below one of the collected folders, by its whole path; `undefined`: it isn't there. */
  readonly file: (path: string) => string | undefined;
}

/**
 * Runs a shell script. /nix and /var/log are empty, /tmp and /etc/nixos are its own.
 *
 * @param directory Where it keeps what it needs, until somebody removes that.
 * @param collect Folders whose files the answer has.
 */
export function runInOwnRoot(
  directory: string,
  { files, programs }: OwnRoot,
  script: string,
  collect: readonly string[],
): Ended {
  const own = mkdtempSync(join(directory, "root-"));
  const put = (path: string, text: string | Uint8Array, mode: number): void => {
    const target = join(own, "disk", path);
    mkdirSync(dirname(target), { recursive: true });
    writeFileSync(target, text);
    chmodSync(target, mode);
  };
  for (const [path, text] of Object.entries(files)) put(path, text, 0o644);
  for (const [path, text] of Object.entries(programs)) put(path, text, 0o755);
  writeFileSync(join(own, "script"), script);
  for (const folder of ["root", "collected"]) mkdirSync(join(own, folder));
  const outer = `set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs ${own}/root
cd ${own}/root
mkdir upper work new
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work new
mount --rbind /dev new/dev
mount -t proc proc new/proc
for folder in tmp var/log run; do mount -t tmpfs tmpfs new/$folder; done
mkdir -p new/nix && mount -t tmpfs -o mode=755 tmpfs new/nix
rm -rf new/etc/nixos
cp -a ${own}/disk/. new/
mkdir new/run/host && mount --bind ${own} new/run/host
code=0
chroot new sh /run/host/script || code=$?
for folder in ${collect.join(" ")}; do
  [ ! -e new$folder ] || { mkdir -p ${own}/collected$(dirname $folder) && cp -a new$folder ${own}/collected$(dirname $folder); }
done
exit $code
`;
  const words = ["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", outer];
  const env = { PATH: `/usr/local/sbin:${process.env["PATH"] ?? ""}:/usr/sbin:/sbin` };
  const ended = spawnSync("unshare", words, { encoding: "utf8", timeout: 120_000, env });
  const at = (path: string): string => join(own, "collected", path);
  return {
    status: ended.status,
    output: ended.stdout + ended.stderr,
    file: (path) => (existsSync(at(path)) ? readFileSync(at(path), "utf8") : undefined),
  };
}
