/** The processes of one local builder: found by their folder, stopped without a survivor. */
import { readdirSync, readFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";

interface Process {
  readonly pid: number;
  readonly parent: number;
  readonly command: string;
}

/** The pid of the sshd that listens for the builder in `directory`; `undefined` where none runs. */
export function runningSshd(directory: string): number | undefined {
  try {
    const pid = Number(readFileSync(`${directory}/sshd.pid`, "utf8"));
    return commandOf(pid).includes(`${directory}/sshd_config`) ? pid : undefined;
  } catch {
    return undefined;
  }
}

/**
 * What tells a builder's processes from all others: sshd's configuration and Nix's store, both in its folder.
 *
 * @param directory The builder's folder.
 */
export function marksOfMachine(directory: string): readonly string[] {
  return [`${directory}/sshd_config`, `root=${directory}/root`];
}

/**
 * Stops every process with one of these marks in its command line, and all that descend from them: for a builder its sshd,
 * the sessions, Nix, and builds under way.
 *
 * @throws Error when something still runs after ten seconds.
 */
export async function stopProcesses(marks: readonly string[]): Promise<void> {
  // Descendants lose their parent with the first signal: they are remembered.
  const known = new Set<number>();
  const deadline = Date.now() + 10_000;
  for (let signal: NodeJS.Signals = "SIGTERM"; ; signal = Date.now() > deadline - 8_000 ? "SIGKILL" : "SIGTERM") {
    const alive = processesOf(marks, known);
    if (alive.length === 0) return;
    if (Date.now() > deadline) {
      throw new Error(`process ${alive.map(({ pid, command }) => `${pid} (${command})`).join(", ")} does not end`);
    }
    for (const { pid } of alive) {
      known.add(pid);
      kill(pid, signal);
    }
    // A process that isn't our child can't be awaited; its entry in /proc is looked at again instead.
    await delay(20);
  }
}

/** Processes with a mark in their command line or known by pid, and all that descend from them. */
function processesOf(marks: readonly string[], known: ReadonlySet<number>): Process[] {
  const all = processes();
  const found = new Map<number, Process>();
  const add = (process: Process): void => {
    if (found.has(process.pid)) return;
    found.set(process.pid, process);
    for (const child of all) if (child.parent === process.pid) add(child);
  };
  for (const process of all) {
    if (marks.some((mark) => process.command.includes(mark)) || known.has(process.pid)) add(process);
  }
  return [...found.values()].filter(({ pid }) => pid !== globalThis.process.pid);
}

function processes(): Process[] {
  return readdirSync("/proc")
    .filter((entry) => /^\d+$/.test(entry))
    .flatMap((entry) => {
      try {
        const stat = readFileSync(`/proc/${entry}/stat`, "utf8");
        // The second field, the name in parentheses, may itself hold blanks and parentheses.
        const [state, parent] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
        if (state === "Z") return [];
        return [{ pid: Number(entry), parent: Number(parent), command: commandOf(Number(entry)) }];
      } catch {
        return [];
      }
    });
}

function commandOf(pid: number): string {
  return readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ").trim();
}

function kill(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if (!(error instanceof Error && "code" in error && error.code === "ESRCH")) throw error;
  }
}
