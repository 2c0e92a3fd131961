/**
 * What a killed Pulumi CLI leaves behind: the language host, the program, plugins, and the commands that these run. Every process that
 * descends from a CLI has a mark in its environment, so it is known whoever its parent is by now.
 */
import { mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { randomUUID } from "node:crypto";
import { hostname } from "node:os";
import { basename, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { checkout, fingerprint } from "./launch.mjs";
import { thisPlace } from "./staleLocks.ts";

/** The variable that holds the mark. What is to live on, such as a builder's sshd, is started without it. */
export const markVariable = "NIX_BUILDER_FLEET_RUN";

/** Milliseconds in which a process may end by itself, once it is asked to. */
const patience = 3000;

/** Milliseconds to wait for processes that were killed. One that the kernel can't end now, as its disk doesn't answer, does nothing any more. */
const grace = 2000;

/** A run of the CLI whose descendants can be known. */
export interface MarkedRun {
  /** For the CLI. */
  readonly env: NodeJS.ProcessEnv;
  /**
   * To be called when the CLI has ended: ends what it left, if it had no chance to do so itself.
   *
   * @param code its exit code; `null`: it was killed.
   * @returns the programs that were ended.
   */
  readonly ended: (code: number | null) => Promise<string[]>;
}

/**
 * Marks a run, and notes the mark until the CLI has ended.
 *
 * @param directory the checkout. Default: this one.
 */
export function markRun(env: NodeJS.ProcessEnv, directory: string = checkout): MarkedRun {
  const here = thisPlace();
  if (here === undefined) return { env, ended: () => Promise.resolve([]) };
  const launcher = startOf(process.pid) ?? "";
  const mark = [fingerprint(hostname()), here.boot, here.namespace, process.pid, launcher, randomUUID()].join(".");
  const note = join(folderOf(directory), mark);
  try {
    mkdirSync(folderOf(directory), { recursive: true, mode: 0o700 });
    writeFileSync(note, "");
  } catch {
    // The CLI runs all the same; what it leaves, should this process be killed with it, stays.
  }
  return {
    env: { ...env, [markVariable]: mark },
    ended: async (code) => {
      // 2 is how a Go program ends that breaks down.
      const programs = code === null || code === 2 ? await endMarked(mark) : [];
      rmSync(note, { force: true });
      return programs;
    },
  };
}

/**
 * Ends what runs of this checkout left that were killed together with the process that had started them.
 *
 * @returns the programs that were ended.
 */
export async function endOrphans(directory: string = checkout): Promise<string[]> {
  const here = thisPlace();
  if (here === undefined) return [];
  const ended: string[] = [];
  for (const mark of marks(directory)) {
    const [host, boot, namespace, pid, start] = mark.split(".");
    if (host !== fingerprint(hostname())) continue;
    if (boot === here.boot) {
      if (namespace !== here.namespace || startOf(Number(pid)) === start) continue;
      if (marked(mark).some(({ program }) => program === "pulumi")) continue;
      ended.push(...(await endMarked(mark)));
    }
    rmSync(join(folderOf(directory), mark), { force: true });
  }
  return ended;
}

function folderOf(directory: string): string {
  return join(directory, ".fleet", "marks");
}

function marks(directory: string): string[] {
  try {
    return readdirSync(folderOf(directory));
  } catch {
    return [];
  }
}

async function endMarked(mark: string): Promise<string[]> {
  const programs = new Map<string, string>();
  const deadline = performance.now() + patience;
  for (;;) {
    const left = marked(mark);
    if (left.length === 0 || performance.now() > deadline + grace) return [...programs.values()];
    const late = performance.now() > deadline;
    for (const { pid, start, program } of left) {
      const known = programs.has(`${pid}-${start}`);
      programs.set(`${pid}-${start}`, program);
      if ((!known || late) && startOf(pid) === start) signal(pid, late ? "SIGKILL" : "SIGTERM");
    }
    await delay(20);
  }
}

interface Marked {
  readonly pid: number;
  readonly start: string;
  readonly program: string;
}

/** This user's processes with the mark. */
function marked(mark: string): Marked[] {
  const text = `\0${markVariable}=${mark}\0`;
  return readdirSync("/proc").flatMap((entry) => {
    const pid = Number(entry);
    if (!Number.isInteger(pid)) return [];
    try {
      if (statSync(`/proc/${pid}`).uid !== process.getuid?.()) return [];
      const start = startOf(pid);
      if (start === undefined || !`\0${readFileSync(`/proc/${pid}/environ`, "utf8")}`.includes(text)) return [];
      const [program = ""] = readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
      return [{ pid, start, program: basename(program) }];
    } catch {
      return []; // It has ended, or is none that this user may look at.
    }
  });
}

/** When a process started, in the kernel's ticks; `undefined`: it runs no more. With its id it names it for good. */
function startOf(pid: number): string | undefined {
  try {
    // What follows the name, which may hold anything, begins with the state; the start is the 22nd field of all.
    const fields = readFileSync(`/proc/${pid}/stat`, "utf8")
      .replace(/^.*\) /s, "")
      .split(" ");
    return fields[0] === "Z" ? undefined : fields[19];
  } catch {
    return undefined;
  }
}

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch {
    // gone by itself
  }
}
