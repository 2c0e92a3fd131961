/**
 * The container of one local builder: its own users, files, processes and network, with the builder's Nix daemon in it.
 *
 * Whoever runs `npm start`, nothing in it is root on this machine: its root is an id that nobody has, or the ordinary user who runs it. It is
 * made of what util-linux has (unshare, nsenter); container.sh says what it sees.
 */
import { spawn, type ChildProcess } from "node:child_process";
import {
  closeSync,
  copyFileSync,
  existsSync,
  fstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { dirname, resolve } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { containerIds, groupMap, kvmGroup, userMap, type IdRange } from "./ids.ts";
import { setupFolder, type LocalTools } from "./tools.ts";
import { shellWord } from "../process.ts";
import { complain } from "../terminal.ts";
import { containerResolvConf, nameServer, refusedAddresses } from "./network.ts";

/** What a container is started with. */
export interface Container {
  /** The builder's folder. */
  readonly directory: string;
  readonly tools: LocalTools;
  /** Host ids of its users; `undefined`: it has one user, whoever runs this program. */
  readonly ids: IdRange | undefined;
}

/** Where the container has the certificates of authorities, below /etc: caches are asked over HTTPS. */
const bundle = "/ssl/certs/ca-certificates.crt";

/** Where systems have them. Source: `nix-daemon.sh` of Nix's installer. */
const bundles = [
  "/etc/ssl/certs/ca-certificates.crt",
  "/etc/ssl/ca-bundle.pem",
  "/etc/ssl/certs/ca-bundle.crt",
  "/etc/pki/tls/certs/ca-bundle.crt",
  "/etc/ssl/cert.pem",
];

const scripts = {
  container: resolve(import.meta.dirname, "container.sh"),
  init: resolve(import.meta.dirname, "init.sh"),
};

/** Seconds that the container, or its daemon, may take to start. */
const patience = 20;

/** What tells its first process from all others. */
export function markOfContainer(directory: string): string {
  return `nix-builder-container=${directory}/`;
}

/** The pid, on this machine, of the container's first process; `undefined` where none runs, or it is stopped (SIGSTOP). */
export function runningContainer(directory: string): number | undefined {
  const [pid, started] = read(`${directory}/container.pid`).split(" ");
  if (pid === undefined || started === undefined) return undefined;
  const found = statOf(Number(pid));
  const isIt = found !== undefined && found.started === started.trim() && found.state !== "T";
  // One that was killed has no command line any more, and is there until all that ran in it has ended.
  return isIt && read(`/proc/${pid}/cmdline`) !== "" ? Number(pid) : undefined;
}

/** Everything that a container can't take over while it runs: where this differs, it is made anew. */
export function containerInputs({ directory, tools, ids }: Container): string {
  const { nixDaemon, nixStore, container } = tools;
  const etc = ["passwd", "group"].map((name) => read(`${directory}/etc/${name}`));
  const texts = Object.values(scripts).map(read);
  return JSON.stringify([nixDaemon, nixStore, container, ids, kvmGroup() ?? null, etc, containerResolvConf(), texts]);
}

/**
 * Makes the container and waits until its Nix daemon answers.
 *
 * @throws Error with what the programs said.
 */
export async function startContainer(container: Container): Promise<void> {
  const { directory, tools, ids } = container;
  mkdirSync(`${directory}/container`, { recursive: true });
  rmSync(`${directory}/container.pid`, { force: true });
  fillEtc(`${directory}/etc`);
  const pasta = tools.container.ip === undefined ? undefined : tools.container.pasta;
  const env = {
    PATH: containerPath(tools),
    FLEET_DIRECTORY: directory,
    FLEET_BINDS: foldersBeside(tools).join("\n"),
    FLEET_REFUSED: pasta === undefined ? "" : refusedAddresses().join("\n"),
    FLEET_USER_NS: ids === undefined ? "" : "1",
    FLEET_PASTA: pasta ?? "",
    FLEET_CACHES: (["trusted", "untrusted"] as const)
      .map((level) => (ids === undefined ? level : `${level} ${ids.first + containerIds[level]}`))
      .join("\n"),
    FLEET_INIT: scripts.init,
    FLEET_DAEMON: daemonCommand(container),
  };
  const log = openSync(`${directory}/container.log`, "w", 0o600);
  const users = ids === undefined ? undefined : await newUserNamespace(tools, ids);
  // Another one than the container's, so that the container's root has no rights in its network.
  const outer = ids === undefined ? undefined : await newUserNamespace(tools, ids, ["--net"]);
  try {
    const descriptor = users === undefined ? undefined : openSync(`/proc/${users.pid}/ns/user`, "r");
    const enter = outer === undefined ? [] : [tools.container.nsenter, `--net=/proc/${outer.pid}/ns/net`];
    const make = outer === undefined ? ["--user", "--map-root-user", "--net"] : [];
    // --kill-child: where sessions enter by the parent (see `enterContainer`), a container without it would let none in, and count as running.
    const child = spawnApart(
      [
        ...[...enter, tools.container.unshare, ...make, "--mount", "--pid", "--fork", "--kill-child"],
        ...["sh", scripts.container, markOfContainer(directory)],
      ],
      // Nothing of the deployment's environment, which may hold tokens and the state's passphrase.
      env,
      ["ignore", "pipe", log, ...(descriptor === undefined ? [] : [descriptor])],
    );
    for (const open of [log, descriptor]) if (open !== undefined) closeSync(open);
    const [, pid] = /^ready (\d+)$/.exec(await firstLine(child)) ?? [];
    if (pid === undefined) {
      child.kill("SIGKILL");
      throw new Error(`the container of the builder in ${directory} does not start: ${said(directory)}`);
    }
    child.unref();
    const started = statOf(Number(pid))?.started ?? "";
    try {
      if (pasta !== undefined) await openWayOut(container, pid, outer?.pid ?? child.pid ?? 0);
      // From here on sessions enter it.
      writeFileSync(`${directory}/container.pid`, `${pid} ${started}\n`, { mode: 0o600 });
      await untilDaemonAnswers(directory);
    } catch (error) {
      // This one alone: the start that follows a killed deployment may have ended it, and made another.
      if (statOf(Number(pid))?.started === started) process.kill(Number(pid), "SIGKILL");
      throw error;
    }
  } finally {
    users?.close();
    outer?.close();
  }
}

/** What the container has of this machine's /etc, beside the files that files.ts writes. */
function fillEtc(etc: string): void {
  // What pasta finds when it starts: whom it passes questions for names on to.
  writeFileSync(`${etc}/resolv.conf`, read("/etc/resolv.conf"));
  for (const name of ["services", "protocols"])
    if (existsSync(`/etc/${name}`)) copyFileSync(`/etc/${name}`, `${etc}/${name}`);
  const authorities = [process.env["NIX_SSL_CERT_FILE"] ?? "", ...bundles].find((path) => existsSync(path));
  if (authorities === undefined) return;
  mkdirSync(dirname(`${etc}${bundle}`), { recursive: true });
  copyFileSync(authorities, `${etc}${bundle}`);
}

/**
 * Starts a program that outlives this one, with these files and no others. What this program has from whoever started it (a folder that a
 * shell has open) would be handed on otherwise, and through a folder among them a container would reach what lies beside it.
 *
 * @param words The program and its arguments.
 * @param files Its file descriptors, from 0 on.
 */
function spawnApart(
  [program = "", ...words]: readonly string[],
  env: Readonly<Record<string, string>>,
  files: readonly (number | "ignore" | "pipe")[],
): ChildProcess {
  const nothing = openSync("/dev/null", "r+");
  const inherited = readdirSync("/proc/self/fd")
    .map(Number)
    .filter((descriptor) => {
      const [, flags = "0"] = /^flags:\s*(\d+)$/m.exec(read(`/proc/self/fdinfo/${descriptor}`)) ?? [];
      return (parseInt(flags, 8) & closeOnExec) === 0;
    });
  const others = Array.from({ length: Math.max(0, Math.max(...inherited) + 1 - files.length) }, (_, index) =>
    inherited.includes(files.length + index) ? nothing : "ignore",
  );
  const child = spawn(program, words, { detached: true, cwd: "/", env, stdio: [...files, ...others] });
  closeSync(nothing);
  return child;
}

/** O_CLOEXEC, as /proc/PID/fdinfo shows it. */
const closeOnExec = 0o2000000;

/** Has the daemon read its configuration again. Builds under way go on with what they began with. */
export async function restartDaemon(directory: string): Promise<void> {
  const pid = runningContainer(directory);
  if (pid === undefined) throw new Error(`the container of the builder in ${directory} has ended`);
  process.kill(pid, "SIGHUP");
  await untilDaemonAnswers(directory);
}

/** Whether the builder's Nix daemon takes connections. */
export function daemonAnswers(directory: string): boolean {
  const pid = runningContainer(directory);
  // The kernel's list of sockets in the container's network, each with its flags; this one says that it listens (__SO_ACCEPTCON).
  const sockets = pid === undefined ? "" : read(`/proc/${pid}/net/unix`);
  return sockets
    .split("\n")
    .some((line) => line.endsWith(` ${socketOf(directory)}`) && line.split(" ")[3] === "00010000");
}

/** Where clients' sessions find the daemon. Root may name it by this path on the host, too. */
export function socketOf(directory: string): string {
  return `${directory}/run/socket`;
}

/** The variables with which Nix runs in the container. */
export function containerEnvironment(directory: string, tools: LocalTools): string[] {
  return [
    `PATH=${containerPath(tools)}`,
    // Set by its variable for the Nix that knows no setting for it. Its parents must be nobody's to write to, as /tmp is not.
    "TMPDIR=/builds",
    `NIX_CONF_DIR=${directory}/conf`,
    "NIX_USER_CONF_FILES=",
    `NIX_STATE_DIR=${directory}/state`,
    `NIX_LOG_DIR=${directory}/log`,
    `NIX_SSL_CERT_FILE=/etc${bundle}`,
    `NIX_DAEMON_SOCKET_PATH=${socketOf(directory)}`,
  ];
}

function daemonCommand({ directory, tools, ids }: Container): string {
  const cache = `XDG_CACHE_HOME=${directory}/state/cache`;
  const words = ["env", "-i", ...containerEnvironment(directory, tools), cache, "NIX_REMOTE=", tools.nixDaemon];
  const become = ids === undefined ? asSingleUser(tools) : [];
  return [...become, ...words, "--store", `local?root=${directory}/root`].map(shellWord).join(" ");
}

/** Words before a command that runs Nix in the container of an ordinary user: as its root, Nix would give up groups, which it may not there. */
export function asSingleUser({ container }: LocalTools): string[] {
  const { single } = containerIds;
  return [container.unshare, "--user", `--map-user=${single}`, `--map-group=${single}`, "--"];
}

/** The folders of the programs that run in the container, wherever this system has them. */
function containerPath(tools: LocalTools): string {
  return [...new Set([...programsOf(tools).map(dirname), "/usr/sbin", "/usr/bin", "/sbin", "/bin"])].join(":");
}

/** Folders that hold the programs where they aren't the system's: Nix's store, what set-up has made, or the program's own and no more. */
function foldersBeside(tools: LocalTools): string[] {
  const made = dirname(setupFolder());
  const found = programsOf(tools).flatMap((path) => {
    if (/^\/(usr|bin|sbin|lib)\//.test(path)) return [];
    const store = /^\/(nix|gnu)\/store(?=\/)/.exec(path)?.[0];
    if (store !== undefined) return [store];
    return [path.startsWith(`${made}/`) ? dirname(dirname(path)) : dirname(path)];
  });
  return [...new Set(found)];
}

/** What runs in the container; pasta is copied there. */
function programsOf({ nixDaemon, nixStore, container }: LocalTools): string[] {
  const { unshare, nsenter, mount, pivotRoot, ip } = container;
  return [nixDaemon, nixStore, unshare, nsenter, mount, pivotRoot, ...(ip === undefined ? [] : [ip])];
}

/**
 * A user namespace in which id 0 is the first of `ids`; this program gives them, as only root may.
 *
 * @param further What unshare is to make beside it; it belongs to that namespace.
 * @returns A process in it, which is there until `close`.
 */
async function newUserNamespace(
  tools: LocalTools,
  ids: IdRange,
  further: readonly string[] = [],
): Promise<{ readonly pid: number; close(): void }> {
  const holder = spawn(tools.container.unshare, ["--user", ...further, "sh", "-c", "echo ready; read -r _"], {
    stdio: ["pipe", "pipe", "pipe"],
    env: { PATH: containerPath(tools) },
  });
  let problem = "";
  holder.stderr.on("data", (data: Buffer) => (problem += data.toString()));
  if ((await firstLine(holder)) !== "ready" || holder.pid === undefined) {
    throw new Error(`a user namespace for a local builder can't be made: ${problem.trim() || "unshare said nothing"}`);
  }
  const folder = `/proc/${holder.pid}`;
  writeFileSync(`${folder}/gid_map`, groupMap(ids, kvmGroup()));
  writeFileSync(`${folder}/uid_map`, userMap(ids));
  return { pid: holder.pid, close: () => holder.stdin.end() };
}

/**
 * pasta carries what the container sends, so that nothing on this machine's loopback can be reached.
 *
 * @param pid The container's first process.
 * @param outer A process in the user namespace that the container's network belongs to.
 */
async function openWayOut({ directory, tools, ids }: Container, pid: string, outer: number): Promise<void> {
  const log = openSync(`${directory}/network.log`, "w", 0o600);
  // It has the container's files, and ends with its processes; but its own end of the network is this machine's.
  const user = [`--user=/proc/${outer}/ns/user`, ...(ids === undefined ? ["--preserve-credentials"] : rootOfNamespace)];
  const enter = ["--target", pid, ...user, "--mount", "--pid", "--"];
  const closed = ["--no-map-gw", "-t", "none", "-u", "none", "-T", "none", "-U", "none"];
  const options = ["--config-net", ...closed, "--dns-forward", nameServer, "--quiet"];
  const child = spawnApart(
    [tools.container.nsenter, ...enter, "/pasta", ...options, "--netns-only", "--netns", "/netns"],
    { PATH: containerPath(tools) },
    ["ignore", log, log],
  );
  closeSync(log);
  // It goes on in the background once all is set up, and ends with the container.
  const code = await new Promise((done) => {
    child.once("error", done);
    child.once("exit", done);
  });
  if (code === 0) writeFileSync(`${directory}/etc/resolv.conf`, containerResolvConf());
  else {
    complain(
      `builds on the builder in ${directory} have no network: ${read(`${directory}/network.log`).trim().split("\n").at(-1) ?? ""}`,
    );
  }
}

const rootOfNamespace = ["-S", "0", "-G", "0"];

/**
 * Words before a command that run it in the container. Nothing enters the container's processes before it is one of its users: as long as it
 * is somebody of this machine, root of the container could take it over.
 *
 * @param pid The container's first process; as a shell's word, for `parent` too.
 * @param parent The parent of that process.
 * @param user Id, in the container, of whom the command is to run as; the container of an ordinary user has that one alone.
 */
export function enterContainer(
  { tools, ids }: Pick<Container, "tools" | "ids">,
  { pid, parent, user }: { readonly pid: string; readonly parent: string; readonly user: string },
): string[] {
  const { nsenter, unshare } = tools.container;
  const target = ["--no-fork", "--target", pid, "--mount", "--pid", "--ipc", "--uts", "--user"];
  const within = ["--", unshare, "--fork", "--"];
  if (ids !== undefined) return [nsenter, ...target, "--net", "-S", user, "-G", user, ...within];
  // Its network belongs to the user namespace around the container's.
  const outer = [nsenter, "--target", parent, "--user", "--net", "--preserve-credentials", "--"];
  return [...outer, nsenter, ...target, "--preserve-credentials", ...within];
}

async function untilDaemonAnswers(directory: string): Promise<void> {
  const deadline = Date.now() + patience * 1000;
  while (!daemonAnswers(directory)) {
    if (runningContainer(directory) === undefined || Date.now() > deadline) {
      throw new Error(`the Nix daemon of the builder in ${directory} does not start: ${said(directory)}`);
    }
    await delay(10);
  }
}

/** The end of what the container's programs said: they decide how much that is. */
function said(directory: string): string {
  const file = openSync(`${directory}/container.log`, "r");
  try {
    const end = Buffer.alloc(2000);
    const length = readSync(file, end, 0, end.length, Math.max(0, fstatSync(file).size - end.length));
    return end.toString("utf8", 0, length).trim() || "it said nothing";
  } finally {
    closeSync(file);
  }
}

/** Empty where it ends without one. */
function firstLine(child: ChildProcess): Promise<string> {
  return new Promise((done) => {
    const { stdout } = child;
    if (stdout === null) {
      done("");
      return;
    }
    const lines = createInterface(stdout);
    const end = (line: string) => {
      done(line);
      clearTimeout(timer);
      lines.close();
      // What goes on running holds the other end; this program is not to wait for more.
      stdout.destroy();
    };
    const timer = setTimeout(end, patience * 1000, "");
    lines.once("line", end);
    lines.once("close", () => {
      end("");
    });
    child.once("error", () => {
      end("");
    });
  });
}

/** State and start time (in ticks since the boot: with the pid it names a process for good) of a process; `undefined`: it is gone. */
export function statOf(pid: number): { readonly state: string; readonly started: string } | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    // The second field, the name in parentheses, may itself hold blanks and parentheses.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    const [state = "", started = ""] = [fields[0], fields[19]];
    return state === "Z" ? undefined : { state, started };
  } catch {
    return undefined;
  }
}

function read(path: string): string {
  return existsSync(path) ? readFileSync(path, "utf8") : "";
}
