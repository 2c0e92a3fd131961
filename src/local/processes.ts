/** The processes of one local builder: found by their folder, stopped without a survivor. */
import { readdirSync, readFileSync, readlinkSync, statSync } from "node:fs";
import { basename, dirname } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { markOfContainer, runningContainer, statOf } from "./container.ts";

interface Process {
  readonly pid: number;
  readonly command: string;
}

/** Whether the builder in `directory` takes builds: its sshd and its container run. */
export function isRunning(directory: string): boolean {
  return runningSshd(directory) !== undefined && runningContainer(directory) !== undefined;
}

/** The pid of the sshd that listens for the builder in `directory`; `undefined` where none runs, or it is stopped (SIGSTOP). */
export function runningSshd(directory: string): number | undefined {
  try {
    const pid = Number(readFileSync(`${directory}/sshd.pid`, "utf8"));
    const isIt = isOurs(pid) && commandOf(pid).includes(`-f ${directory}/sshd_config`);
    return isIt && statOf(pid)?.state !== "T" ? pid : undefined;
  } catch {
    return undefined;
  }
}

/** Whether the sshd of the builder in `directory` listens there. */
export function listensOn(directory: string, socket: string): boolean {
  const sshd = runningSshd(directory);
  return sshd !== undefined && listenAddress(commandOf(sshd))?.socket === socket;
}

/**
 * The builder of a stack whose sshd listens there, whatever became of its folder; `undefined`: none does.
 *
 * @param machines The folder of the stack's builders.
 * @param socket `ADDRESS:PORT`
 * @returns The builder's name.
 */
export function listenerOn(machines: string, socket: string): string | undefined {
  for (const { pid, command } of processes()) {
    const its = listenAddress(command);
    if (its?.socket === socket && dirname(its.directory) === machines && isOurs(pid)) return basename(its.directory);
  }
  return undefined;
}

/** What the command line of a builder's sshd says: whose it is, and where it listens. */
function listenAddress(command: string): { readonly directory: string; readonly socket: string } | undefined {
  const [, directory, socket] = / -f (\S+)\/sshd_config -o ListenAddress=(\S+)/.exec(command) ?? [];
  return directory === undefined || socket === undefined ? undefined : { directory, socket };
}

/**
 * What tells a builder's processes from all others: sshd's configuration, Nix's store, and what its container's first process is called. With
 * what stands before the path, as another checkout's may end with this one's. All that runs in the container ends with its first process.
 *
 * @param directory The builder's folder.
 */
export function marksOfMachine(directory: string): readonly string[] {
  return [`-f ${directory}/sshd_config`, `root=${directory}/root`, markOfContainer(directory)];
}

/**
 * Stops every process of sshd, ssh or Nix with one of these marks in its command line, and all that descend from them: for a
 * builder its sshd, the sessions, and builds under way. An editor or a `tail` that has one of the builder's files open goes on.
 *
 * @throws Error when something still runs after ten seconds.
 */
export async function stopProcesses(marks: readonly string[]): Promise<void> {
  const marked = ({ pid, command }: Process): boolean => marks.some((mark) => command.includes(mark)) && isOurs(pid);
  await stop((known) => processesOf(marked, known));
}

/**
 * Ends the connections that a builder's sshd has now, with the builds that run over them; the sshd goes on listening.
 *
 * @throws Error as `stopProcesses`
 */
export async function stopSessions(directory: string): Promise<void> {
  const sshd = runningSshd(directory);
  // Those of now: who connects from here on is held to the present keys.
  const sessions = new Set(
    processes()
      .filter(({ pid }) => parentOf(pid) === sshd)
      .map(({ pid }) => pid),
  );
  await stop((known) => processesOf(({ pid }) => sessions.has(pid), known));
}

/** Stops what `find` finds until that is nothing; it is told of the processes that it found before. */
async function stop(find: (known: ReadonlySet<number>) => Process[]): Promise<void> {
  // Descendants lose their parent with the first signal: they are remembered.
  const known = new Set<number>();
  const deadline = Date.now() + 10_000;
  for (let signal: NodeJS.Signals = "SIGTERM"; ; signal = Date.now() > deadline - 8_000 ? "SIGKILL" : "SIGTERM") {
    const alive = find(known);
    if (alive.length === 0) return;
    if (Date.now() > deadline) {
      throw new Error(`process ${alive.map(({ pid, command }) => `${pid} (${command})`).join(", ")} does not end`);
    }
    for (const { pid, command } of alive) {
      known.add(pid);
      // The first process of a PID namespace takes no other signal; Nix's database survives that.
      kill(pid, command.includes(markOfContainer("")) ? "SIGKILL" : signal);
    }
    // A process that isn't our child can't be awaited; its entry in /proc is looked at again instead.
    await delay(20);
  }
}

/** Processes that are meant or known by pid, and all that descend from them. */
function processesOf(isMeant: (process: Process) => boolean, known: ReadonlySet<number>): Process[] {
  const all = processes();
  const meant = all.filter((process) => isMeant(process) || known.has(process.pid));
  // The rule at a first start, of which there may be many at once: then nobody's parent is asked for.
  if (meant.length === 0) return [];
  const children = Map.groupBy(all, ({ pid }) => parentOf(pid));
  const found = new Map<number, Process>();
  const add = (process: Process): void => {
    if (found.has(process.pid)) return;
    found.set(process.pid, process);
    for (const child of children.get(process.pid) ?? []) add(child);
  };
  for (const process of meant) add(process);
  return [...found.values()].filter(({ pid }) => pid !== globalThis.process.pid);
}

/** All but the kernel's own and those that have ended: they have no command line. */
function processes(): Process[] {
  return readdirSync("/proc")
    .filter((entry) => /^\d+$/.test(entry))
    .flatMap((entry) => {
      try {
        const command = commandOf(Number(entry));
        return command === "" ? [] : [{ pid: Number(entry), command }];
      } catch {
        return [];
      }
    });
}

/** `undefined` where it has ended meanwhile. */
function parentOf(pid: number): number | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    // The second field, the name in parentheses, may itself hold blanks and parentheses.
    const [, parent] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return Number(parent);
  } catch {
    return undefined;
  }
}

/** Whether the process runs a program that builders and their clients run, for the user who runs this one, or in a container. */
function isOurs(pid: number): boolean {
  try {
    // A program that was upgraded since is `… (deleted)`. Nix is one program by many names, OpenSSH's server is several.
    const program = basename(readlinkSync(`/proc/${pid}/exe`).replace(/ \(deleted\)$/, ""));
    const user = process.getuid?.();
    const isUsers = statSync(`/proc/${pid}`).uid === user;
    if (commandOf(pid).includes(markOfContainer(""))) {
      // A shell by any name; in a container of root's it is one of the container's users.
      return /^(unshare|nsenter|sh|dash|bash|ash|busybox.*)$/.test(program) && (isUsers || user === 0);
    }
    return /^(sshd|nix|ssh$)/.test(program) && isUsers;
  } catch {
    return false;
  }
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
