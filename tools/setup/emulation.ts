/**
 * What builders on this machine need beside Nix and sshd: static shells for the build sandboxes, the way out of their containers to the
 * network, and the emulator for the builder of the architecture that this machine isn't.
 */
import { chmodSync, cpSync, existsSync, lstatSync, mkdirSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { cacheDirectory, withLock } from "../launch.mjs";
import { unpackPackage } from "./apt.ts";
import { run } from "./commands.ts";
import { findProgram, type Host, isProgram, isStaticallyLinked } from "./host.ts";
import { say, step } from "./progress.ts";

export type Cpu = "x86_64" | "aarch64";

export interface Emulation {
  /** A statically linked busybox for each architecture that this machine can run. */
  readonly busybox: Readonly<Partial<Record<Cpu, string>>>;
  /** The statically linked emulator for the foreign architecture; absent if it can't be had. */
  readonly qemu?: string;
  /** pasta, of the package passt: carries what builds that may fetch something send; absent if it can't be had. */
  readonly pasta?: string;
}

const debianName: Record<Cpu, string> = { x86_64: "amd64", aarch64: "arm64" };

/**
 * The shells and the emulator. Debian's packages are unpacked instead of installed: busybox-static would replace
 * busybox, and qemu-user-static registers its emulators for the whole system. What can't be had for the foreign
 * architecture is not an error: the fleet goes on without the emulated builder.
 */
export async function findEmulation(host: Host): Promise<Emulation> {
  const own: Cpu = host.platform.endsWith("-arm64") ? "aarch64" : "x86_64";
  const foreign: Cpu = own === "x86_64" ? "aarch64" : "x86_64";
  const programs = join(cacheDirectory(), "bin");
  const names = { own: `busybox-${own}`, foreign: `busybox-${foreign}`, qemu: `qemu-${foreign}-static` };
  const at = (name: string) => (isProgram(join(programs, name)) ? join(programs, name) : undefined);
  const find = () => ({
    own: at(names.own),
    foreign: at(names.foreign),
    qemu: at(names.qemu) ?? staticProgram(names.qemu),
    pasta: at("pasta") ?? findProgram("pasta"),
  });
  const busybox = staticProgram("busybox");
  if (at(names.own) === undefined && busybox !== undefined) place(busybox, names.own);
  let found = find();
  const missing = Object.entries(found).filter(([, path]) => path === undefined);
  let why = `this is not a Debian or Ubuntu, where they would be fetched from`;
  if (missing.length > 0 && host.distribution !== "other") {
    why = await step("fetching busybox, qemu and pasta for the builders with apt", () =>
      withLock(join(cacheDirectory(), "bin.lock"), async () => {
        found = find();
        return fetchMissing();
      }),
    );
    found = find();
  }
  if (found.own === undefined) say(`no static busybox for ${own}: ${why}. The builders need one as /bin/sh.`);
  if (found.foreign === undefined || found.qemu === undefined)
    say(`the emulated ${foreign} builder won't be available: ${why}.`);
  return {
    busybox: {
      ...(found.own === undefined ? {} : { [own]: found.own }),
      ...(found.foreign === undefined ? {} : { [foreign]: found.foreign }),
    },
    ...(found.qemu === undefined ? {} : { qemu: found.qemu }),
    ...(found.pasta === undefined ? {} : { pasta: found.pasta }),
  };

  /** Fetches what is missing, each piece for itself. Returns why the last one that failed did. */
  async function fetchMissing(): Promise<string> {
    let reason = "";
    const work = join(cacheDirectory(), "packages.draft"); // the lock's owner is alone with it
    rmSync(work, { recursive: true, force: true });
    mkdirSync(work, { recursive: true });
    const attempt = async (piece: () => Promise<void>) =>
      piece().catch((error: unknown) => {
        reason = error instanceof Error ? error.message : String(error);
      });
    try {
      if (found.own === undefined) await attempt(() => shell(own, []));
      if (found.qemu === undefined) await attempt(emulator);
      if (found.pasta === undefined) await attempt(wayOut);
      const qemu = find().qemu;
      if (found.foreign === undefined && qemu !== undefined) await attempt(() => shell(foreign, [qemu]));
    } finally {
      rmSync(work, { recursive: true, force: true });
    }
    return reason;

    async function shell(cpu: Cpu, emulate: string[]): Promise<void> {
      const tree = await unpackPackage(host, "busybox-static", debianName[cpu], work);
      const candidates = ["bin/busybox", "usr/bin/busybox"].map((path) => join(tree, path));
      const program = candidates.find((path) => isProgram(path));
      if (program === undefined) throw new Error(`Debian's busybox-static for ${cpu} holds no busybox`);
      await run(emulate[0] ?? program, [...emulate.slice(1), ...(emulate.length > 0 ? [program] : []), "true"]);
      place(program, `busybox-${cpu}`);
    }

    /** Debian 12 and Ubuntu 23.04 are the first that have it. It needs no library but the C library. */
    async function wayOut(): Promise<void> {
      const tree = await unpackPackage(host, "passt", debianName[own], work);
      const program = join(tree, "usr/bin/passt");
      await run(program, ["--version"]);
      place(program, "pasta");
    }

    /** Up to Debian 12 the static emulators are in qemu-user-static, later in qemu-user. */
    async function emulator(): Promise<void> {
      for (const name of ["qemu-user-static", "qemu-user"]) {
        const tree = await unpackPackage(host, name, debianName[own], work).catch(() => undefined);
        const paths = [`usr/bin/qemu-${foreign}-static`, `usr/bin/qemu-${foreign}`];
        const program = paths
          .map((path) => join(tree ?? "", path))
          .find((path) => existsSync(path) && lstatSync(path).isFile() && isStaticallyLinked(path));
        if (program === undefined) continue;
        await run(program, ["--version"]);
        place(program, names.qemu);
        return;
      }
      throw new Error(`no package qemu-user-static or qemu-user holds a static emulator for ${foreign}`);
    }
  }

  function place(program: string, name: string): void {
    mkdirSync(programs, { recursive: true });
    const draft = join(programs, `${name}.draft`);
    cpSync(program, draft);
    chmodSync(draft, 0o755);
    renameSync(draft, join(programs, name));
  }
}

function staticProgram(name: string): string | undefined {
  const path = findProgram(name);
  return path !== undefined && isStaticallyLinked(path) ? path : undefined;
}
