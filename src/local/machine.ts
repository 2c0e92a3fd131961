/** Starts and stops one local builder: an sshd of its own in front of a container with a Nix daemon and a store of its own. */
import { execFileSync, spawn, spawnSync } from "node:child_process";
import {
  chmodSync,
  chownSync,
  closeSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmdirSync,
  rmSync,
  statSync,
  statfsSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { availableParallelism, totalmem, userInfo } from "node:os";
import { basename, dirname, resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { registerEmulation, unregisterEmulation } from "./emulation.ts";
import {
  containerInputs,
  markOfContainer,
  restartDaemon,
  startContainer,
  type Container,
  statOf,
} from "./container.ts";
import { localMachineFiles, shellName, type LocalAccount } from "./files.ts";
import { removeAll, removeTree } from "./folders.ts";
import { dropGeneration, presentGeneration, writeGeneration } from "./generation.ts";
import { idRangeFor } from "./ids.ts";
import { formerPlace, isLeftAlone, placeHere, placeOf, writePlace, type Place } from "./place.ts";
import {
  isRunning,
  listenerOn,
  listensOn,
  marksOfMachine,
  runningSshd,
  stopProcesses,
  stopSessions,
} from "./processes.ts";
import { systems } from "../nix/system.ts";
import { isAtLeast } from "../nix/version.ts";
import type { LocalMachine } from "./spec.ts";
import { findLocalTools, type LocalTools } from "./tools.ts";

/** An IPv4 address and a TCP port. */
type Socket = Pick<LocalMachine, "address" | "port">;

/**
 * Brings a builder up as described; changes nothing about one that runs so already. Keeps its store.
 *
 * @param generation See `generation.ts`.
 * @throws Error in words when the port is taken or sshd doesn't start (with what sshd said).
 */
export async function startMachine(machine: LocalMachine, generation: string): Promise<void> {
  const { directory } = machine;
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  await endLeftStart(directory);
  writeFileSync(startOf(directory), `${process.pid} ${statOf(process.pid)?.started ?? ""}`);
  try {
    await start(machine, generation);
  } finally {
    rmSync(startOf(directory), { force: true });
    // Where nothing was made.
    if (existsSync(directory) && readdirSync(directory).length === 0) rmdirSync(directory);
  }
}

/** Names the process that starts the builder, while it does. */
function startOf(directory: string): string {
  return `${directory}/starting`;
}

/** Ends a start of the builder that goes on though its deployment was killed: what it makes would be in the way, or be left. */
async function endLeftStart(directory: string): Promise<void> {
  const [, pid, started] = /^([1-9]\d*) (\d+)$/.exec(read(startOf(directory))) ?? [];
  if (pid === undefined || Number(pid) === process.pid) return;
  const left = (): boolean => statOf(Number(pid))?.started === started;
  if (!left()) return;
  process.kill(Number(pid), "SIGKILL");
  // It isn't our child, which could be awaited.
  while (left()) await delay(10);
}

async function start(machine: LocalMachine, generation: string): Promise<void> {
  const { directory } = machine;
  const tools = findLocalTools(machine.system);
  // What a start that was cut off has changed is not known, nor which connections count no more since: it begins anew.
  const known = isRunning(directory) && presentGeneration(directory) !== undefined;
  if (!known) await stopProcesses(marksOfMachine(directory));
  // Before anything changes: a builder that can't move goes on where it is.
  await refuseTakenSocket(directory, machine);
  if (machine.emulatedFor !== undefined) registerEmulation(machine.emulatedFor, machine.system);
  dropGeneration(directory);
  const ids = process.getuid?.() === 0 ? idRangeFor(directory) : undefined;
  const container: Container = { directory, tools, ids };
  const changed = writeFiles(machine, container);
  // Only these two are read at sshd's start; authorized_keys and the forced command count from the next connection on.
  const stands = known && !changed.has("sshd_config") && !changed.has("ssh_host_ed25519_key");
  const inputs = containerInputs(container);
  const isSame = known && read(`${directory}/container.inputs`) === inputs;
  if (!isSame) {
    await stopProcesses([markOfContainer(directory)]);
    rmSync(`${directory}/container.inputs`, { force: true });
    // Builds that the end of a container cut off.
    removeAll(`${directory}/tmp`);
    makeFolders(container);
    await startContainer(container);
    writeFileSync(`${directory}/container.inputs`, inputs);
  } else if (changed.has("conf/nix.conf") || changed.has("conf/signing-key")) await restartDaemon(directory);
  const listens = stands && listensOn(directory, socketOf(machine));
  if (known && !listens) await stopProcesses([`-f ${directory}/sshd_config`]);
  if (!listens) await startSshd(tools.sshd, machine);
  // Keys are asked for when a connection begins; one that a key opened which counts no more, or at another level, would go on for as
  // long as it is kept.
  const present = read(`${directory}/authorized_keys`).split("\n");
  const former = changed.get("authorized_keys")?.split("\n") ?? [];
  if (former.some((key) => !present.includes(key))) await stopSessions(directory);
  writeGeneration(directory, generation);
}

/** Writes the builder's files. @returns Of each that is another one now, its former text; empty where there was none. */
function writeFiles(machine: LocalMachine, container: Container): Map<string, string> {
  const { directory } = machine;
  const { ids, tools } = container;
  const changed = new Map<string, string>();
  copyProgram(tools.shell, `${directory}/${shellName}`);
  for (const folder of ["etc", "conf"]) mkdirSync(`${directory}/${folder}`, { recursive: true, mode: 0o755 });
  for (const [name, { text, mode }] of Object.entries(
    localMachineFiles(machine, container, thisAccount(directory, tools)),
  )) {
    const path = `${directory}/${name}`;
    const before = read(path);
    if (before !== text || !existsSync(path)) changed.set(name, before);
    // Replaced, not rewritten: what is read meanwhile is whole.
    writeFileSync(`${path}.new`, text, { mode: 0o600 });
    chmodSync(`${path}.new`, mode);
    // Its root signs with it; everybody else of the container must not read it.
    if (name === "conf/signing-key" && ids !== undefined) chownSync(`${path}.new`, ids.first, ids.first);
    renameSync(`${path}.new`, path);
  }
  return changed;
}

/** The folders that the container writes to, as its own root's. */
function makeFolders({ directory, ids }: Container): void {
  const folders = ["root", "state", "log", "run", "tmp"].map((name) => `${directory}/${name}`);
  for (const folder of folders) mkdirSync(folder, { recursive: true });
  if (ids === undefined) return;
  const strange = folders.filter((folder) => statSync(folder).uid !== ids.first);
  // A store from before this builder had a container, or a moved one. No link is followed.
  if (strange.length > 0) execFileSync("chown", ["-hR", `${ids.first}:${ids.first}`, ...strange]);
}

/** Stops a builder and removes its folder, the store included. Safe to repeat. */
export async function removeMachine(directory: string): Promise<void> {
  if (isLeftAlone(resolve(directory, "../.."))) return;
  await endLeftStart(directory);
  await stopProcesses(marksOfMachine(directory));
  removeTree(directory);
}

/**
 * Removes whatever is left of a stack on this machine: builders and client files that a deployment made but was killed
 * before it could write them down, and processes that use them. Safe to repeat.
 *
 * @param directory The stack's folder when it was deployed; if the checkout was moved or copied since, the one in this checkout goes too.
 * @param owner Owner of the emulations that the stack may have registered.
 */
export async function sweep(directory: string, owner: string): Promise<void> {
  const here = placeHere(directory);
  const isHere = placeOf(here)?.directory === directory;
  if (!isLeftAlone(directory)) {
    await endAll({ directory, owner });
    removeTree(directory);
  }
  if (isHere) removeTree(here);
}

/**
 * Takes the stack's folder as the place that it is deployed from, and ends what still runs from where the checkout was
 * before it was moved: nothing else knows of it any more. Safe to repeat.
 *
 * @param generation See `generation.ts`.
 */
export async function claimPlace(place: Place, generation: string): Promise<void> {
  const former = formerPlace(place.directory);
  if (former !== undefined) await endAll(former);
  writePlace(place);
  writeGeneration(place.directory, generation);
}

/** Ends all processes of a stack and removes its emulations, whether or not its folder is still there. */
async function endAll({ directory, owner }: Place): Promise<void> {
  const machines = `${directory}/machines`;
  if (existsSync(machines)) for (const name of readdirSync(machines)) await endLeftStart(`${machines}/${name}`);
  await stopProcesses([
    `-f ${machines}/`,
    markOfContainer(machines),
    // Builders, and smoke tests under way.
    `root=${directory}/`,
    // ssh, also when it keeps a connection for the next build: its title is the socket's path then.
    `-F ${directory}/client/ssh_config`,
    `ssh: ${directory}/client/`,
  ]);
  for (const system of systems) unregisterEmulation(owner, system);
}

/**
 * Refuses an address and port that something else listens on than the builder itself.
 *
 * @param directory The builder's folder.
 * @throws Error naming the builder, both, and what to do.
 */
export async function refuseTakenSocket(directory: string, { address, port }: Socket): Promise<void> {
  const problem = (reason: string): Error =>
    new Error(`builder '${basename(directory)}': ${address} port ${port} can't be listened on (${reason}`);
  const socket = socketOf({ address, port });
  if (listensOn(directory, socket)) return;
  const server = createServer();
  const error = await new Promise<NodeJS.ErrnoException | undefined>((resolve) => {
    server.once("error", resolve);
    server.listen({ host: address, port, exclusive: true }, () => {
      resolve(undefined);
    });
  });
  if (error === undefined) await new Promise((resolve) => server.close(resolve));
  else {
    const listener = listenerOn(dirname(directory), socket);
    if (listener === basename(directory)) return;
    if (listener === undefined) throw problem(`${portProblem(error.code)}); give it another port`);
    throw problem(
      `builder '${listener}' of this stack still does); give it another address, for good or for one deployment`,
    );
  }
}

function portProblem(code: string | undefined): string {
  if (code === "EADDRINUSE") return "another program does";
  if (code === "EACCES") return "only root may use ports below 1024";
  return code ?? "unknown error";
}

/** Renamed into place: builds under way go on with the old one. */
function copyProgram(from: string, to: string): void {
  if (existsSync(to) && readFileSync(to).equals(readFileSync(from))) return;
  copyFileSync(from, `${to}.new`);
  chmodSync(`${to}.new`, 0o755);
  renameSync(`${to}.new`, to);
}

function socketOf({ address, port }: Socket): string {
  return `${address}:${port}`;
}

const sshdVariables = ["PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ"] as const;

async function startSshd(sshd: string, { directory, address, port }: LocalMachine): Promise<void> {
  // Root's sshd wants its empty folder for privilege separation; packages leave making it to the boot. It stays: others may use it by then.
  if (process.getuid?.() === 0) mkdirSync("/run/sshd", { recursive: true, mode: 0o755 });
  rmSync(`${directory}/sshd.pid`, { force: true });
  const log = openSync(`${directory}/sshd.log`, "w", 0o600);
  // Its command line says what it listens on: see `listenerOn`.
  const listen = `ListenAddress=${socketOf({ address, port })}`;
  const child = spawn(sshd, ["-D", "-e", "-f", `${directory}/sshd_config`, "-o", listen], {
    detached: true,
    stdio: ["ignore", log, log],
    // It lives on after the deployment, whose environment may hold tokens and the state's passphrase.
    env: Object.fromEntries(sshdVariables.map((name) => [name, process.env[name]])),
  });
  closeSync(log);
  const ended = new Promise<true>((resolve) => {
    child.once("error", () => {
      resolve(true);
    });
    child.once("exit", () => {
      resolve(true);
    });
  });
  const deadline = Date.now() + 10_000;
  // It writes its pid when it listens (`main` in OpenSSH's sshd.c); to try a connection would cost it a process.
  while (runningSshd(directory) === undefined) {
    if ((await Promise.race([ended, delay(10)])) === true || Date.now() > deadline) {
      throw new Error(
        `sshd for ${directory} does not start: ${read(`${directory}/sshd.log`).trim() || "it said nothing"}`,
      );
    }
  }
  child.unref();
}

function thisAccount(directory: string, tools: LocalTools): LocalAccount {
  const { bsize, blocks, bavail } = statfsSync(directory);
  const root = process.getuid?.() === 0;
  return {
    user: userInfo().username,
    usePam: root && /^root:!/m.test(read("/etc/shadow")),
    penalties: knowsPenalties(tools.sshd),
    namesBuildDirectory: hasOpenParent(directory) && isAtLeast(versionOf(tools.nixDaemon), "2.22"),
    size: {
      cpus: availableParallelism(),
      memoryMiB: Math.floor(totalmem() / 2 ** 20),
      diskMiB: Math.floor((blocks * bsize) / 2 ** 20),
      diskFreeMiB: Math.floor((bavail * bsize) / 2 ** 20),
    },
  };
}

/** Since 2.30 Nix builds in its state's folder, and as root only if nobody else can write to any folder above. */
function hasOpenParent(directory: string): boolean {
  const parent = dirname(directory);
  return (statSync(parent).mode & 0o002) !== 0 || (parent !== directory && hasOpenParent(parent));
}

function versionOf(nix: string): string {
  const { stdout } = spawnSync(nix, ["--version"], { encoding: "utf8" });
  return /\d+(\.\d+)+/.exec(stdout)?.[0] ?? "0";
}

/** An sshd stops at a setting that it doesn't know: the version tells. */
function knowsPenalties(sshd: string): boolean {
  const { stdout, stderr } = spawnSync(sshd, ["-V"], { encoding: "utf8" });
  const [, major = 0, minor = 0] = (/OpenSSH_(\d+)\.(\d+)/.exec(`${stdout}${stderr}`) ?? []).map(Number);
  return major > 9 || (major === 9 && minor >= 8);
}

function read(path: string): string {
  return existsSync(path) ? readFileSync(path, "utf8") : "";
}
