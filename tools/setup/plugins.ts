/** The resource plugins that every stack needs: genuine ones, or this project's substitutes. */
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { delimiter, dirname, join } from "node:path";
import { shellWord } from "../../src/process.ts";
import { privately } from "../discretion.ts";
import { checkout, LaunchError } from "../launch.mjs";
import { run } from "./commands.ts";
import { pinnedSha256 } from "./download.ts";
import { findProgram, type Host, isProgram } from "./host.ts";
import { say, step } from "./progress.ts";
import { pulumiHome } from "../stack.ts";

/** The plugins for which tools/plugins holds a substitute. */
export const pluginNames = ["command", "tls"] as const;

export interface Plugin {
  readonly name: string;
  readonly version: string;
  readonly kind: "genuine" | "substitute";
  /** The file whose presence shows that the plugin is there. */
  readonly path: string;
}

/**
 * Makes sure of each plugin, in the version of its npm package: an installed one, else the official one, else the
 * substitute.
 *
 * @param pulumi the CLI that installs official plugins.
 * @param official whether Pulumi's downloads can be reached.
 */
export async function findPlugins(host: Host, pulumi: string, official: () => Promise<boolean>): Promise<Plugin[]> {
  const plugins: Plugin[] = [];
  for (const name of pluginNames) plugins.push(await findPlugin(host, pulumi, official, name));
  return plugins;
}

/** Where the CLI keeps installed plugins. */
export function pluginDirectory(env: NodeJS.ProcessEnv = process.env): string {
  return join(pulumiHome(env), "plugins");
}

/** The directory of this checkout's own programs. */
export const ownPrograms = join(checkout, ".fleet", "bin");

/**
 * Lets the CLI find this project's plugins as installed ones, in a Pulumi home of the checkout's own: of each that it
 * finds on PATH it warns in every run. Selected stacks and logins stay in the person's home. Where that has plugins,
 * which would not be found any more, nothing changes.
 *
 * @param env For commands that run plugins only; `pulumi plugin` and `pulumi login` are about the person's home.
 * @param plugins Substitutes and those built here, with the paths of their programs.
 */
export function withInstalledPlugins(
  env: NodeJS.ProcessEnv,
  plugins: readonly Pick<Plugin, "name" | "version" | "path">[],
  directory: string = checkout,
): NodeJS.ProcessEnv {
  if (plugins.length === 0 || hasPlugins(pluginDirectory(env))) return env;
  const home = join(directory, ".fleet", "pulumi");
  for (const { name, version, path } of plugins)
    linkTo(path, join(home, "plugins", `resource-${name}-v${version}`, `pulumi-resource-${name}`));
  const person = dirname(pluginDirectory(env));
  mkdirSync(join(person, "workspaces"), { recursive: true });
  linkTo(join(person, "workspaces"), join(home, "workspaces"));
  const folders = new Set(plugins.map(({ path }) => dirname(path)));
  const path = (env["PATH"] ?? "").split(delimiter).filter((entry) => !folders.has(entry));
  return { PULUMI_CREDENTIALS_PATH: person, ...env, PULUMI_HOME: home, PATH: path.join(delimiter) };
}

function hasPlugins(folder: string): boolean {
  return existsSync(folder) && readdirSync(folder).some((name) => name.startsWith("resource-"));
}

function linkTo(target: string, path: string): void {
  if (existsSync(path) && realpathSync(path) === realpathSync(target)) return;
  mkdirSync(dirname(path), { recursive: true });
  rmSync(path, { force: true });
  symlinkSync(target, path);
}

async function findPlugin(host: Host, pulumi: string, official: () => Promise<boolean>, name: string): Promise<Plugin> {
  const version = packageVersion(name);
  const program = `pulumi-resource-${name}`;
  const launcher = join(ownPrograms, program);
  const genuine = (path: string): Plugin => {
    rmSync(launcher, { force: true });
    return { name, version, kind: "genuine", path };
  };
  const installed = join(pluginDirectory(), `resource-${name}-v${version}`, program);
  if (isProgram(installed)) return genuine(installed);
  const onPath = findProgram(program);
  if (onPath !== undefined && onPath !== launcher) return genuine(onPath);
  const refusal = await installOfficial(host, pulumi, name, version, process.env, official);
  if (refusal === undefined) return genuine(installed);
  const known = existsSync(launcher);
  writeLauncher(launcher, join(checkout, "tools", "plugins", name, "main.ts"));
  if (!known) say(`using this project's substitute for the Pulumi plugin ${name} ${version}: ${refusal}`);
  return { name, version, kind: "substitute", path: launcher };
}

/**
 * Has the CLI install the official plugin, if its checksum is pinned and its origin can be reached.
 *
 * @param env for the CLI.
 * @returns why not; `undefined`: it is installed.
 */
export async function installOfficial(
  host: Host,
  pulumi: string,
  name: string,
  version: string,
  env: NodeJS.ProcessEnv,
  official: () => Promise<boolean>,
): Promise<string | undefined> {
  const sha256 = pinnedSha256(`pulumi-resource-${name}-v${version}-${host.platform.replace("x64", "amd64")}.tar.gz`);
  if (sha256 === undefined) return "no checksum of its official download is pinned here";
  if (!(await official())) return "its official download can't be reached";
  const args = ["plugin", "install", "resource", name, `v${version}`, "--checksum", sha256];
  const options = { env: { ...env, PULUMI_HOME: pulumiHome(env), PULUMI_SKIP_UPDATE_CHECK: "true" }, seconds: 300 };
  const work = () => privately(() => run(pulumi, args, options));
  try {
    await step(`downloading the Pulumi plugin ${name} ${version}`, work);
    return undefined;
  } catch (error) {
    if (error instanceof LaunchError) return error.message;
    throw error;
  }
}

/** That of the npm package, by which the CLI looks for the plugin. */
export function packageVersion(name: string): string {
  const text = readFileSync(join(checkout, "node_modules", "@pulumi", name, "package.json"), "utf8");
  const { version } = JSON.parse(text) as { version: string };
  return version;
}

/** The launcher belongs to the checkout, not to the shared cache, because it points into the checkout. */
function writeLauncher(path: string, main: string): void {
  mkdirSync(ownPrograms, { recursive: true });
  writeFileSync(path, `#!/bin/sh\nexec node ${shellWord(main)} "$@"\n`);
  chmodSync(path, 0o755);
}
