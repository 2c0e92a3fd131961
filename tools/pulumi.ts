/** `npm run pulumi -- ARGS`: the Pulumi CLI with this checkout's backend, passphrase and plugins. */
import { spawn, type SpawnOptions, spawnSync } from "node:child_process";
import { once } from "node:events";
import { randomBytes } from "node:crypto";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { constants } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { checkout, fail, LaunchError, withLock } from "./launch.mjs";
import { discreetArguments, discreetEnvironment, privately } from "./discretion.ts";
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
  stackNames,
} from "./stack.ts";
import { endOrphans, markRun } from "./orphans.ts";
import { dropStaleLocks, noteRun } from "./staleLocks.ts";

/**
 * The environment in which every tool of this project runs the CLI. Unless the person has chosen a backend (by a
 * variable or by `pulumi login`), state and passphrase are this checkout's own, in .fleet.
 *
 * @param directory the checkout. Default: this one.
 */
export async function pulumiEnvironment(
  toolchain: Toolchain,
  directory: string = checkout,
): Promise<NodeJS.ProcessEnv> {
  const env: NodeJS.ProcessEnv = {
    PULUMI_SKIP_UPDATE_CHECK: "true",
    // Otherwise the CLI downloads the plugins of all @pulumi packages, used or not, whatever their checksums.
    PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION: "true",
    ...discreetEnvironment(toolchain.env, say),
  };
  keepPrivate(join(directory, ".fleet"));
  if (hasOwnBackend(env)) return env;
  mkdirSync(join(directory, ".fleet", "state"), { recursive: true });
  env["PULUMI_BACKEND_URL"] = ownBackend(directory);
  if (env["PULUMI_CONFIG_PASSPHRASE"] === undefined && env["PULUMI_CONFIG_PASSPHRASE_FILE"] === undefined)
    env["PULUMI_CONFIG_PASSPHRASE_FILE"] = await passphraseFile(directory);
  // What is selected the CLI knows itself, and says so in its lists.
  if (!env["PULUMI_STACK"] && plainStack(env, directory) === defaultStack) env["PULUMI_STACK"] = defaultStack;
  return env;
}

/** Ends what runs left that were killed: it would go on beside the next one. */
export async function endLeftProcesses(): Promise<void> {
  sayEnded(await endOrphans());
}

/** Says which programs of a killed run were ended. */
export function sayEnded(programs: readonly string[]): void {
  if (programs.length > 0) say(`ended what a killed run of the CLI had left: ${programs.join(", ")}`);
}

/** Takes back the locks of runs that were killed; the state itself has what they did. */
export function unlock(env: NodeJS.ProcessEnv): void {
  const { dropped, unknown } = dropStaleLocks(env["PULUMI_BACKEND_URL"]);
  for (const pid of dropped) say(`dropped the lock of an earlier run (process ${pid}) that was killed`);
  for (const { pid, stack } of unknown)
    say(
      `stack ${stack} has a lock of a process ${pid} that this checkout hasn't started here; it may run in another container. ` +
        `Once you know that it has ended: npm run pulumi -- cancel --yes --stack ${stack}`,
    );
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
  const folder = join(directory, ".fleet", "state", ".pulumi", "stacks", project);
  if (!existsSync(folder)) return [];
  return readdirSync(folder).flatMap((name) => /^(.+?)\.json(\.gz)?$/.exec(name)?.[1] ?? []);
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
      throw new LaunchError(`The stack "${stack}" could not be made: ${made.error?.message ?? made.stderr.trim()}`);
  });
}

/** Held while what only the first start in a checkout makes is made. */
function firstStartLock(directory: string): string {
  return join(directory, ".fleet", "first-start.lock");
}

function pulumiSync(args: readonly string[], env: NodeJS.ProcessEnv, directory: string) {
  const options = { cwd: directory, env, encoding: "utf8", timeout: 60_000 } as const;
  return privately(() => spawnSync("pulumi", [...args, "--non-interactive"], options));
}

/**
 * Takes the line `encryptionsalt:` out of stack files that git tracks. The CLI writes it there for every stack with a
 * passphrase, and makes a new one when it is missing; the state keeps its own. A file with `secure:` values, or one
 * whose salt is committed, needs the line and is left alone.
 */
export function tidyStackFiles(directory: string = checkout): void {
  for (const file of readdirSync(directory).filter((name) => /^Pulumi\..+\.yaml$/.test(name))) {
    const path = join(directory, file);
    const text = readFileSync(path, "utf8");
    const tidy = withoutSalt(text);
    if (tidy === text) continue;
    const committed = spawnSync("git", ["show", `:./${file}`], { cwd: directory, encoding: "utf8", timeout: 10_000 });
    if (committed.status === 0 && !hasSalt(committed.stdout)) writeFileSync(path, tidy);
  }
}

/** A stack file's text without the salt, or unchanged if the salt is needed to read values in it. */
export function withoutSalt(text: string): string {
  return /^\s*(- )?secure:/m.test(text) ? text : text.replace(/^encryptionsalt:.*(\n|$)/gm, "");
}

function hasSalt(text: string): boolean {
  return /^encryptionsalt:/m.test(text);
}

/** Runs the CLI as if it had been called directly, and returns its exit code. */
export async function runPulumi(args: readonly string[], env: NodeJS.ProcessEnv): Promise<number> {
  // It needs the terminal, if there is one, to ask its questions.
  const terminal = process.stdin.isTTY;
  const told = discreetArguments(args, say);
  const run = markRun(env);
  const options: SpawnOptions = { cwd: checkout, env: run.env, stdio: "inherit", detached: !terminal };
  const child = privately(() => spawn("pulumi", told, options));
  const release = passCancellation(child, terminal ? ["SIGTERM", "SIGHUP"] : undefined);
  noteRun(child.pid, env["PULUMI_BACKEND_URL"]);
  try {
    const [code, signal] = (await once(child, "exit")) as [number | null, NodeJS.Signals | null];
    sayEnded(await run.ended(code));
    return code ?? 128 + (signal === null ? 0 : constants.signals[signal]);
  } finally {
    release();
    tidyStackFiles();
  }
}

const endingSignals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/** Milliseconds in which all that comes is one Ctrl-C: from the terminal, from npm, and from the launcher. */
const oneKeystroke = 1000;

/**
 * Asks a running CLI to cancel where a signal would end this process, until the returned function is called. The CLI then begins nothing
 * new, waits for what is under way and writes the state. A second request ends it at once, and SIGHUP kills it: what was under way is
 * then in no state. So it gets SIGINT only, one for each Ctrl-C, and runs in a process group of its own, which no terminal and no
 * `timeout` signals as well. One that shares the terminal gets Ctrl-C from there.
 *
 * @param signals that are passed on; the others are ignored. Default: all three.
 * @param asked called when it is asked for the first time.
 */
export function passCancellation(
  cli: { kill(signal: "SIGINT"): unknown },
  signals: readonly NodeJS.Signals[] = endingSignals,
  asked: () => void = () => undefined,
): () => void {
  let last: number | undefined;
  const pass = (signal: NodeJS.Signals): void => {
    if (!signals.includes(signal)) return;
    const now = performance.now();
    if (last !== undefined && now - last < oneKeystroke) return;
    if (last === undefined) asked();
    last = now;
    cli.kill("SIGINT");
  };
  for (const signal of endingSignals) process.on(signal, pass);
  return () => {
    for (const signal of endingSignals) process.off(signal, pass);
  };
}

/** Options of every command that take the next word as their value, by `pulumi --help`; `--cwd` is another checkout's matter. */
const globalOptionsWithValue = [
  ...["--color", "--memprofilerate", "--otel-traces", "--profiling", "--tracing"],
  ...["-v", "--verbose"],
];

/** Whether a command works on the selected stack, so that there has to be one. */
export function usesStack(args: readonly string[]): boolean {
  if (args.some((arg) => /^(-h|--help|-s|--stack|--stack=.*|-C|--cwd|--cwd=.*|--version)$/.test(arg))) return false;
  const [command, subcommand] = args.filter(
    (arg, i) => !arg.startsWith("-") && !globalOptionsWithValue.includes(args[i - 1] ?? ""),
  );
  if (command === "stack") return !["init", "select", "ls", "new"].includes(subcommand ?? "");
  const stackCommands = [
    "up",
    "update",
    "preview",
    "pre",
    "destroy",
    "down",
    "dn",
    "refresh",
    "config",
    "import",
    "export",
  ];
  return [...stackCommands, "state", "cancel", "watch", "logs", "console"].includes(command ?? "");
}

/** Makes the folder of state, keys and passphrase one that other users can't look into. */
function keepPrivate(folder: string): void {
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  if ((statSync(folder).mode & 0o077) === 0) return;
  try {
    chmodSync(folder, 0o700);
  } catch {
    throw new LaunchError(
      `${folder} can be read by others and belongs to another user: run this as its owner, or use a checkout of your own.`,
    );
  }
}

/** Whether a command is one of those that change resources. */
function runsPlugins(args: readonly string[]): boolean {
  const commands = ["up", "update", "preview", "pre", "destroy", "down", "dn", "refresh"];
  return args.some((arg) => commands.includes(arg)) && !args.includes("plugin");
}

/** The checkout's passphrase, made on first use: it protects the secrets in .fleet/state, readable to this user only. */
async function passphraseFile(directory: string): Promise<string> {
  const path = join(directory, ".fleet", "passphrase");
  const made = () => existsSync(path) && statSync(path).size > 0;
  if (made()) return path;
  await withLock(firstStartLock(directory), () => {
    if (!made()) writeFileSync(path, randomBytes(32).toString("base64url"), { mode: 0o600 });
  });
  return path;
}

if (process.argv[1] !== undefined && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  try {
    const args = process.argv.slice(2);
    const toolchain = await setUp();
    const env = await withCloudPlugins(await pulumiEnvironment(toolchain));
    await endLeftProcesses();
    unlock(env);
    if (usesStack(args)) await ensureStack(env);
    const plugins = [...toolchain.plugins.filter(({ kind }) => kind === "substitute"), ...builtCloudPlugins()];
    const quiet = runsPlugins(args) && backendOf(env) === ownBackend();
    process.exitCode = await runPulumi(args, quiet ? withInstalledPlugins(env, plugins) : env);
  } catch (error) {
    fail(error);
  }
}
