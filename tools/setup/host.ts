/** What set-up has to know of the machine that it runs on. */
import { accessSync, constants, existsSync, readFileSync, statSync } from "node:fs";
import { delimiter, join } from "node:path";

export interface Host {
  /** `linux-x64`, `linux-arm64`, `darwin-arm64` …: Node's platform and architecture. */
  readonly platform: string;
  readonly root: boolean;
  /** Debian or Ubuntu with apt, or something else. */
  readonly distribution: "debian" | "ubuntu" | "other";
  /** `bookworm`, `noble` …; empty where there is none. */
  readonly codename: string;
}

/** This machine. */
export function thisHost(): Host {
  const release = existsSync("/etc/os-release") ? readFileSync("/etc/os-release", "utf8") : "";
  const value = (key: string) => new RegExp(`^${key}="?([^"\\n]*)`, "m").exec(release)?.[1] ?? "";
  const family = [value("ID"), ...value("ID_LIKE").split(" ")];
  const distribution = family.includes("ubuntu") ? "ubuntu" : family.includes("debian") ? "debian" : "other";
  return {
    platform: `${process.platform}-${process.arch}`,
    root: process.getuid?.() === 0,
    distribution: existsSync("/usr/bin/apt-get") ? distribution : "other",
    codename: value("UBUNTU_CODENAME") || value("VERSION_CODENAME"),
  };
}

/** Where `name` lies on PATH, or in one of `places` beyond it (sbin directories are not on everybody's PATH). */
export function findProgram(name: string, places: readonly string[] = []): string | undefined {
  const directories = [...(process.env["PATH"] ?? "").split(delimiter), ...places];
  return directories
    .filter((directory) => directory.startsWith("/"))
    .map((directory) => join(directory, name))
    .find(isProgram);
}

/** Whether `path` is a file that this user may run. */
export function isProgram(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
}

/**
 * Whether `path` is an ELF program that needs no dynamic linker, so that it runs alone inside a build sandbox: it has
 * no PT_INTERP (3) program header.
 */
export function isStaticallyLinked(path: string): boolean {
  const file = readFileSync(path);
  if (file.length < 64 || file.toString("latin1", 1, 4) !== "ELF" || file[4] !== 2) return false;
  const [offset, size, count] = [Number(file.readBigUInt64LE(32)), file.readUInt16LE(54), file.readUInt16LE(56)];
  return Array.from({ length: count }, (_, i) => file.readUInt32LE(offset + i * size)).every((type) => type !== 3);
}
