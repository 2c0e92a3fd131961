/** Starts and stops one local builder: an sshd of its own in front of a Nix store of its own. */
import { spawn } from "node:child_process";
import {
  chmodSync,
  closeSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statfsSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { availableParallelism, totalmem, userInfo } from "node:os";
import { basename, dirname, resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { registerEmulation, unregisterEmulation } from "./emulation.ts";
import { localMachineFiles, shellName, type LocalAccount } from "./files.ts";
import { removeTree } from "./folders.ts";
import { dropGeneration, presentGeneration, writeGeneration } from "./generation.ts";
import { formerPlace, isLeftAlone, placeHere, placeOf, writePlace, type Place } from "./place.ts";
import { listenerOn, listensOn, marksOfMachine, runningSshd, stopProcesses, stopSessions } from "./processes.ts";
import { systems } from "../nix/system.ts";
import type { LocalMachine } from "./spec.ts";
import { findLocalTools } from "./tools.ts";

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
  const tools = findLocalTools(machine.system);
  // What a start that was cut off has changed is not known, nor which connections count no more since: it begins anew.
  const known = runningSshd(directory) !== undefined && presentGeneration(directory) !== undefined;
  if (!known) await stopProcesses(marksOfMachine(directory));
  // Before anything changes: a builder that can't move goes on where it is.
  await refuseTakenSocket(directory, machine);
  if (machine.emulatedFor !== undefined) registerEmulation(machine.emulatedFor, machine.system);
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  dropGeneration(directory);
  for (const folder of ["root", "state", "log"]) mkdirSync(`${directory}/${folder}`, { recursive: true });
  copyProgram(tools.shell, `${directory}/${shellName}`);
  const keys = read(`${directory}/authorized_keys`).split("\n");
  const before = `${read(`${directory}/sshd_config`)}${read(`${directory}/ssh_host_ed25519_key`)}`;
  for (const [name, { text, mode }] of Object.entries(localMachineFiles(machine, tools, thisAccount(directory)))) {
    writeFileSync(`${directory}/${name}`, text, { mode });
    chmodSync(`${directory}/${name}`, mode);
  }
  // Only these two are read at start; authorized_keys, the forced command and nix.conf count from the next connection on.
  const after = `${read(`${directory}/sshd_config`)}${read(`${directory}/ssh_host_ed25519_key`)}`;
  const stands = before === after && listensOn(directory, socketOf(machine));
  if (known && !stands) await stopProcesses(marksOfMachine(directory));
  if (!known || !stands) await startSshd(tools.sshd, machine);
  // Keys are asked for when a connection begins; one that a key opened which counts no more would go on for as long as it is kept.
  const present = read(`${directory}/authorized_keys`).split("\n");
  if (keys.some((key) => !present.includes(key))) await stopSessions(directory);
  writeGeneration(directory, generation);
}

/** Stops a builder and removes its folder, the store included. Safe to repeat. */
export async function removeMachine(directory: string): Promise<void> {
  if (isLeftAlone(resolve(directory, "../.."))) return;
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
  await stopProcesses([
    `-f ${directory}/machines/`,
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

function thisAccount(directory: string): LocalAccount {
  const { bsize, blocks, bavail } = statfsSync(directory);
  const root = process.getuid?.() === 0;
  return {
    user: userInfo().username,
    usePam: root && /^root:!/m.test(read("/etc/shadow")),
    buildUsersGroup: root && /^nixbld:[^:]*:[^:]*:./m.test(read("/etc/group")) ? "nixbld" : "",
    size: {
      cpus: availableParallelism(),
      memoryMiB: Math.floor(totalmem() / 2 ** 20),
      diskMiB: Math.floor((blocks * bsize) / 2 ** 20),
      diskFreeMiB: Math.floor((bavail * bsize) / 2 ** 20),
    },
  };
}

function read(path: string): string {
  return existsSync(path) ? readFileSync(path, "utf8") : "";
}
