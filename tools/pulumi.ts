/** `npm run pulumi -- ARGS`: the Pulumi CLI with this checkout's backend, passphrase and plugins. */
import { spawn, type SpawnOptions, spawnSync } from "node:child_process";
import { once } from "node:events";
import { chmodSync, existsSync, mkdirSync, readdirSync, realpathSync, statSync } from "node:fs";
import { constants } from "node:os";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { checkout, fail, keepPrivate, LaunchError, withLock } from "./launch.mjs";
import { discreetArguments, discreetEnvironment, privately } from "./discretion.ts";
import {
  describeWrongPassphrase,
  ensurePassphrase,
  firstStartLock,
  isWrongPassphrase,
  passphrasePath,
} from "./passphrase.ts";
import { keepStates, refuseWithoutRoom, repairStates, savedStates } from "./savedState.ts";
import { say } from "./setup/progress.ts";
import { builtCloudPlugins, withCloudPlugins } from "./setup/cloudPlugins.ts";
import { withInstalledPlugins } from "./setup/plugins.ts";
import { setUp, type Toolchain } from "./setup/index.ts";
import {
  backendOf,
  defaultStack,
  hasOwnBackend,
  noSuchStack,
  ownBackend,
  plainStack,
  project,
  pulumiHome,
  stackNames,
  whichStack,
} from "./stack.ts";
import { endOrphans, markRun } from "./orphans.ts";
import { tidyStackFiles } from "./stackFile.ts";
import { stackNameProblem } from "../src/stackName.ts";
import { describeLock, dropStaleLocks, lockOwners, noteRun } from "./staleLocks.ts";

/** What a command works with, when all is ready for it. */
export interface Prepared {
  readonly toolchain: Toolchain;
  /** Of {@link pulumiEnvironment}, with the plugins of clouds. */
  readonly env: NodeJS.ProcessEnv;
  readonly stack: string;
}

/**
 * What every command begins with: sets up what is missing, ends what killed runs left running, as it would go on beside this one, and then
 * takes back what they left in the state's folder.
 *
 * @param choice as for {@link pulumiEnvironment}.
 * @throws {LaunchError} as {@link setUp}, {@link pulumiEnvironment} and {@link recover}.
 */
export async function prepare(choice: StackChoice): Promise<Prepared> {
  const toolchain = await setUp();
  const env = await withCloudPlugins(await pulumiEnvironment(toolchain, checkout, choice));
  sayEnded(await endOrphans());
  recover(env);
  return { toolchain, env, stack: whichStack(env, choice.stack) };
}

/** What a command says of the stack that it works on. */
export interface StackChoice {
  /** That it names. */
  readonly stack?: string | undefined;
  /** Whether it does without the passphrase of what is encrypted. Default: no. */
  readonly withoutPassphrase?: boolean;
}

/**
 * The environment in which every tool of this project runs the CLI. Unless the person has chosen a backend (by a
 * variable or by `pulumi login`), state and passphrase are this checkout's own, in .fleet.
 *
 * @param directory the checkout. Default: this one.
 * @throws {LaunchError} for a stack's name that none may have, and where the passphrase is lost.
 */
export async function pulumiEnvironment(
  toolchain: Toolchain,
  directory: string = checkout,
  choice: StackChoice = {},
): Promise<NodeJS.ProcessEnv> {
  const env = engineEnvironment(discreetEnvironment(toolchain.env, say));
  keepPrivate(join(directory, ".fleet"));
  const stack = whichStack(env, choice.stack, directory);
  if (hasOwnBackend(env)) return env;
  mkdirSync(join(directory, ".fleet", "state"), { recursive: true, mode: 0o700 });
  closeFolder(join(directory, ".fleet", "state"));
  env["PULUMI_BACKEND_URL"] = ownBackend(directory);
  if (env["PULUMI_CONFIG_PASSPHRASE"] === undefined && env["PULUMI_CONFIG_PASSPHRASE_FILE"] === undefined) {
    if (choice.withoutPassphrase !== true) await ensurePassphrase(directory, stack);
    env["PULUMI_CONFIG_PASSPHRASE_FILE"] = passphrasePath(directory);
  }
  // What is selected the CLI knows itself, and says so in its lists.
  if (!env["PULUMI_STACK"] && plainStack(env, directory) === defaultStack) env["PULUMI_STACK"] = defaultStack;
  return env;
}

/**
 * A person's environment as the CLI, its plugins and the commands that these run get it: whole, so it must not be merged with that of
 * this process again.
 */
export function engineEnvironment(person: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const env: NodeJS.ProcessEnv = {
    PULUMI_SKIP_UPDATE_CHECK: "true",
    // Otherwise the CLI downloads the plugins of all @pulumi packages, used or not, whatever their checksums.
    PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION: "true",
    ...person,
    PULUMI_HOME: pulumiHome(person),
  };
  // Every connection has a key of the fleet's. The genuine plugin `command` dials the agent all the same, and fails where it is gone.
  delete env["SSH_AUTH_SOCK"];
  return env;
}

/** Says which programs of a killed run were ended. */
export function sayEnded(programs: readonly string[]): void {
  if (programs.length > 0) say(`ended what a killed run of the CLI had left: ${programs.join(", ")}`);
}

/**
 * Takes back what runs that were killed, or found no room, left in the state's folder: their locks, and states that are cut off.
 *
 * @throws {LaunchError} where a state can't be put back.
 */
function recover(env: NodeJS.ProcessEnv): void {
  const backend = backendOf(env);
  const { dropped, empty } = dropStaleLocks(backend);
  for (const pid of dropped) say(`dropped the lock of an earlier run (process ${pid}) that was killed`);
  for (const stack of empty) say(`dropped a lock of stack ${stack} that says nothing: a run found no room to write it`);
  for (const sentence of repairStates(backend)) say(sentence);
}

/**
 * Refuses to begin a change that can't come to its end: while another run works on the stack, or without room for the state.
 *
 * @param removes Whether the state only gets smaller.
 * @throws {LaunchError} in words.
 */
export function refuseHopeless(env: NodeJS.ProcessEnv, stack: string, removes = false): void {
  const backend = backendOf(env);
  const [owner] = lockOwners(backend, stack);
  if (owner !== undefined) throw new LaunchError(describeLock(stack, owner));
  refuseWithoutRoom(backend, stack, removes);
}

/** Looks after a run of the CLI: notes it, and keeps what it writes. To be called when it has begun; what is returned, when it has ended. */
export function accompany(pid: number | undefined, env: NodeJS.ProcessEnv): () => void {
  const backend = backendOf(env);
  noteRun(pid, backend);
  const finish = keepStates(backend);
  return () => {
    finish();
    recover(env);
    tidyStackFiles();
  };
}

/**
 * Makes the default stack in the checkout's own state, if it isn't there. In a backend of the person's own choice
 * nothing is made unasked.
 *
 * @param env of {@link pulumiEnvironment}.
 */
export async function ensureStack(env: NodeJS.ProcessEnv, directory: string = checkout): Promise<void> {
  if (backendOf(env, directory) !== ownBackend(directory) || env["PULUMI_STACK"] !== defaultStack) return;
  if (!ownStacks(directory).includes(defaultStack)) await initStack(defaultStack, env, directory);
}

/**
 * Makes sure that the stack of `PULUMI_STACK` is there. In the checkout's own state it is made if there is a
 * configuration for it.
 *
 * @param env of {@link pulumiEnvironment}, with a stack.
 * @throws {LaunchError} naming the command that makes it, and the stacks that there are.
 */
export async function requireStack(env: NodeJS.ProcessEnv, directory: string = checkout): Promise<void> {
  const stack = env["PULUMI_STACK"] ?? defaultStack;
  const backend = backendOf(env, directory);
  const own = backend === ownBackend(directory);
  const known = own ? ownStacks(directory) : listStacks(env, directory);
  // In a shared backend a stack may be named ORGANIZATION/PROJECT/NAME, or by its last part.
  if (known.some((name) => name === stack || name.split("/").at(-1) === stack.split("/").at(-1))) return;
  if (own && existsSync(join(directory, `Pulumi.${stack}.yaml`))) await initStack(stack, env, directory);
  else throw new LaunchError(noSuchStack(stack, backend, known));
}

function ownStacks(directory: string): string[] {
  return savedStates(ownBackend(directory)).flatMap(({ stack }) =>
    dirname(stack) === project ? [basename(stack)] : [],
  );
}

function listStacks(env: NodeJS.ProcessEnv, directory: string): string[] {
  const list = pulumiSync(["stack", "ls", "--json"], env, directory);
  if (list.status === 0) return stackNames(list.stdout);
  throw new LaunchError(
    `The stacks in ${backendOf(env, directory)} can't be listed: ${list.error?.message ?? list.stderr.trim()}`,
  );
}

/** Makes a stack of the checkout's own state, unless another run is faster. */
async function initStack(stack: string, env: NodeJS.ProcessEnv, directory: string): Promise<void> {
  await withLock(firstStartLock(directory), () => {
    if (ownStacks(directory).includes(stack)) return;
    // What the person has selected stays so.
    const made = pulumiSync(["stack", "init", stack, "--no-select"], env, directory);
    tidyStackFiles(directory);
    if (made.status !== 0)
      throw new LaunchError(
        isWrongPassphrase(made.stderr)
          ? describeWrongPassphrase(env, stack, directory)
          : `The stack "${stack}" could not be made: ${made.error?.message ?? made.stderr.trim()}`,
      );
  });
}

/** What is wrong with the passphrase of a stack, asked of the CLI (its history needs it in any case); `undefined`: nothing. */
export function passphraseProblem(
  env: NodeJS.ProcessEnv,
  stack: string,
  directory: string = checkout,
): string | undefined {
  if (env["PULUMI_CONFIG_PASSPHRASE"] === undefined && env["PULUMI_CONFIG_PASSPHRASE_FILE"] === undefined)
    return undefined;
  const said = pulumiSync(["stack", "history", "--show-secrets", "--stack", stack], env, directory).stderr;
  return isWrongPassphrase(said) ? describeWrongPassphrase(env, stack, directory) : undefined;
}

function pulumiSync(args: readonly string[], env: NodeJS.ProcessEnv, directory: string) {
  const options = { cwd: directory, env, encoding: "utf8", timeout: 60_000 } as const;
  return privately(() => spawnSync("pulumi", [...args, "--non-interactive"], options));
}

/** Runs the CLI as if it had been called directly, and returns its exit code. */
export async function runPulumi(args: readonly string[], env: NodeJS.ProcessEnv): Promise<number> {
  // It needs the terminal, if there is one, to ask its questions.
  const terminal = process.stdin.isTTY;
  const told = discreetArguments(args, say);
  const run = markRun(env);
  const options: SpawnOptions = { cwd: checkout, env: run.env, stdio: "inherit", detached: !terminal };
  const { cli: child, release } = startCancellable(
    () => privately(() => spawn("pulumi", told, options)),
    terminal ? ["SIGTERM", "SIGHUP"] : undefined,
  );
  const finish = accompany(child.pid, env);
  try {
    const [code, signal] = (await once(child, "exit")) as [number | null, NodeJS.Signals | null];
    sayEnded(await run.ended(code));
    return code ?? 128 + (signal === null ? 0 : constants.signals[signal]);
  } finally {
    release();
    finish();
  }
}

const endingSignals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/** Milliseconds in which all that comes is one Ctrl-C: from the terminal, from npm, and from the launcher. */
const oneKeystroke = 1000;

/**
 * Starts the CLI, and asks it to cancel where a signal would end this process, until `release` is called. The CLI then begins nothing
 * new, waits for what is under way and writes the state. A second request ends it at once, and SIGHUP kills it: what was under way is
 * then in no state. So it gets SIGINT only, one for each Ctrl-C, and runs in a process group of its own, which no terminal and no
 * `timeout` signals as well. One that shares the terminal gets Ctrl-C from there.
 *
 * @param start Starts it. It runs before `start` returns, so signals are listened for before that; they are delivered after it.
 * @param signals that are passed on; the others are ignored. Default: all three.
 * @param asked called when it is asked for the first time.
 */
export function startCancellable<Cli extends { kill(signal: "SIGINT"): unknown }>(
  start: () => Cli,
  signals: readonly NodeJS.Signals[] = endingSignals,
  asked: () => void = () => undefined,
): { readonly cli: Cli; readonly release: () => void } {
  let last: number | undefined;
  const pass = (signal: NodeJS.Signals): void => {
    if (!signals.includes(signal)) return;
    const now = performance.now();
    if (last !== undefined && now - last < oneKeystroke) return;
    if (last === undefined) asked();
    last = now;
    cli.kill("SIGINT");
  };
  const release = (): void => {
    for (const signal of endingSignals) process.off(signal, pass);
  };
  for (const signal of endingSignals) process.on(signal, pass);
  let cli: Cli;
  try {
    cli = start();
  } catch (error) {
    release();
    throw error;
  }
  return { cli, release };
}

/** Options of every command that take the next word as their value, by `pulumi --help`; `--cwd` is another checkout's matter. */
const globalOptionsWithValue = [
  ...["--color", "--memprofilerate", "--otel-traces", "--profiling", "--tracing"],
  ...["-v", "--verbose"],
];

/** The first two words of a command, without options. */
function commandOf(args: readonly string[]): string[] {
  const words = args.filter((arg, i) => !arg.startsWith("-") && !globalOptionsWithValue.includes(args[i - 1] ?? ""));
  return words.slice(0, 2);
}

/** Whether a command works on the selected stack, so that there has to be one. */
export function usesStack(args: readonly string[]): boolean {
  if (args.some((arg) => /^(-h|--help|-s|--stack|--stack=.*|-C|--cwd|--cwd=.*|--version)$/.test(arg))) return false;
  const [command, subcommand] = commandOf(args);
  if (command === "stack") return !["init", "select", "ls", "new"].includes(subcommand ?? "");
  return [...changing, "preview", "pre", "config", "export", "state", "cancel", "watch", "logs", "console"].includes(
    command ?? "",
  );
}

/** Commands that lock the stack, and write its state for as long as they run. */
const changing = ["up", "update", "destroy", "down", "dn", "refresh", "import"];

/**
 * The stack that a command names itself.
 *
 * @throws {LaunchError} for one that no stack may be called, also where the command makes, selects or renames it.
 */
export function namedStack(args: readonly string[]): string | undefined {
  const named = args.flatMap((arg, i) => {
    if (arg === "-s" || arg === "--stack") return args.slice(i + 1, i + 2);
    return /^(?:--stack=|-s=?)(.+)$/.exec(arg)?.[1] ?? [];
  });
  const [command, subcommand] = commandOf(args);
  const end = args.indexOf("--");
  const words = [
    ...args.slice(0, end === -1 ? undefined : end).filter((arg) => !arg.startsWith("-")),
    ...(end === -1 ? [] : args.slice(end + 1)),
  ];
  const made =
    command === "stack" && subcommand !== undefined ? words.slice(2).filter((word) => !word.includes(":")) : [];
  for (const stack of [...named, ...made]) {
    const problem = stackNameProblem(stack);
    if (problem !== undefined) throw new LaunchError(problem);
  }
  return named.at(-1);
}

/** Whether a command reads and writes nothing that is encrypted, so that it works where the passphrase is lost. */
export function worksWithoutPassphrase(args: readonly string[]): boolean {
  if (args.some((arg) => /^(-h|--help|--version)$/.test(arg))) return true;
  const [command = "", subcommand = ""] = commandOf(args);
  if (command === "stack") return ["rm", "ls", "select", "unselect", "export", "history"].includes(subcommand);
  return ["cancel", "help", "version", "whoami", "about", "plugin", "login", "logout"].includes(command);
}

/** Closes to others what an older version of this project let them read. The folder comes last: while it is open, there is something to do. */
function closeFolder(folder: string): void {
  if ((statSync(folder).mode & 0o077) === 0) return;
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) closeFolder(path);
    else if (entry.isFile()) chmodSync(path, 0o600);
  }
  chmodSync(folder, 0o700);
}

/** Whether a command is one of those that change resources. */
function runsPlugins(args: readonly string[]): boolean {
  const commands = [...changing, "preview", "pre"];
  return args.some((arg) => commands.includes(arg)) && !args.includes("plugin");
}

if (process.argv[1] !== undefined && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  try {
    const args = process.argv.slice(2);
    const withoutPassphrase = worksWithoutPassphrase(args);
    const { toolchain, env, stack } = await prepare({ stack: namedStack(args), withoutPassphrase });
    // A stack is made with the passphrase.
    if (usesStack(args) && !withoutPassphrase) await ensureStack(env);
    const [command = ""] = commandOf(args);
    if (changing.includes(command) && !args.some((arg) => /^(-h|--help)$/.test(arg)))
      refuseHopeless(env, stack, ["destroy", "down", "dn"].includes(command));
    const plugins = [...toolchain.plugins.filter(({ kind }) => kind === "substitute"), ...builtCloudPlugins()];
    const quiet = runsPlugins(args) && backendOf(env) === ownBackend();
    process.exitCode = await runPulumi(args, quiet ? withInstalledPlugins(env, plugins) : env);
    if (process.exitCode !== 0 && !withoutPassphrase) {
      const why = passphraseProblem(env, stack);
      if (why !== undefined) say(why);
    }
  } catch (error) {
    fail(error);
  }
}
