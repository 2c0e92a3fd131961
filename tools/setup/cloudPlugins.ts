/** The plugins of clouds: got only when a stack or a test needs one, because building one takes minutes. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { cp, rm } from "node:fs/promises";
import { delimiter, dirname, join } from "node:path";
import { cacheDirectory, checkout } from "../launch.mjs";
import { cached } from "./cache.ts";
import { run } from "./commands.ts";
import { reachesPulumi } from "./download.ts";
import { findGo } from "./go.ts";
import { findProgram, isProgram, thisHost, type Host } from "./host.ts";
import { installOfficial, packageVersion, pluginDirectory } from "./plugins.ts";
import { step } from "./progress.ts";

/** The plugins that the checkout holds a Go module for. */
export const cloudPluginNames = ["hcloud", "aws"] as const;

export type CloudPluginName = (typeof cloudPluginNames)[number];

/** The providers of clouds that any stack of a checkout has builders of, by its stack files. */
export function cloudPluginsInUse(directory: string = checkout): CloudPluginName[] {
  const texts = readdirSync(directory)
    .filter((name) => /^Pulumi\..+\.yaml$/.test(name))
    .map((name) => readFileSync(join(directory, name), "utf8"));
  return cloudPluginNames.filter((name) =>
    texts.some((text) => new RegExp(`\\bprovider["']?\\s*:\\s*["']?${name}\\b`).test(text)),
  );
}

/**
 * Makes sure of the plugins and puts them on PATH. Those that were built before are on it always: a stack that has
 * dropped its last builder in a cloud still needs the plugin to delete it.
 *
 * @param env With Pulumi's CLI on PATH.
 */
export async function withCloudPlugins(
  env: NodeJS.ProcessEnv,
  names: readonly CloudPluginName[] = cloudPluginsInUse(),
): Promise<NodeJS.ProcessEnv> {
  const host = thisHost();
  const directories: string[] = [];
  for (const name of cloudPluginNames) {
    const found = names.includes(name) ? await findCloudPlugin(host, name, env) : builtBefore(host, name);
    if (found !== undefined) directories.push(found);
  }
  return { ...env, PATH: [...directories, env["PATH"] ?? ""].join(delimiter) };
}

/** The directory to be put on PATH; `undefined` where Pulumi finds the plugin by itself. */
async function findCloudPlugin(host: Host, name: CloudPluginName, env: NodeJS.ProcessEnv): Promise<string | undefined> {
  const version = packageVersion(name);
  const program = `pulumi-resource-${name}`;
  const installed = join(pluginDirectory(env), `resource-${name}-v${version}`, program);
  if (isProgram(installed) || findProgram(program) !== undefined) return undefined;
  const built = builtBefore(host, name);
  if (built !== undefined) return built;
  if ((await installOfficial(host, "pulumi", name, version, env, reachesPulumi)) === undefined) return undefined;
  return cached(entryName(host, name), [program], (directory) =>
    step(
      `building the Pulumi plugin ${name} ${version} from Go modules`,
      () => (name === "aws" ? buildAws(host, version, directory) : build(host, name, version, directory)),
      name === "aws" ? "about 8 minutes" : "about 3 minutes",
    ),
  );
}

/**
 * Builds a bridge over a Terraform provider: first the program that writes the schema, then the plugin with the schema in it.
 * Go checks every module against the go.sum that the checkout pins.
 */
async function build(host: Host, name: string, version: string, directory: string): Promise<void> {
  const source = join(directory, "source");
  await cp(join(checkout, "tools", "plugins", name), source, { recursive: true });
  const go = await findGo(host, directory);
  try {
    const env = { ...go.env, CGO_ENABLED: "0" };
    const flags = [
      "-mod=readonly",
      "-trimpath",
      "-buildvcs=false",
      "-ldflags",
      `-s -w -X ${name}plugin.Version=${version}`,
    ];
    const goBuild = (output: string, path: string) =>
      run(go.program, ["build", ...flags, "-o", output, path], { cwd: source, env, seconds: 25 * 60 });
    await goBuild(join(directory, "tfgen"), `./cmd/pulumi-tfgen-${name}`);
    const target = join(source, "cmd", `pulumi-resource-${name}`);
    await run(join(directory, "tfgen"), ["schema", "--out", target, "--skip-docs", "--skip-examples"], {
      cwd: source,
      env,
      seconds: 300,
    });
    await goBuild(join(directory, `pulumi-resource-${name}`), `./cmd/pulumi-resource-${name}`);
  } finally {
    await go.close();
  }
  await rm(join(directory, "tfgen"));
  await rm(source, { recursive: true });
}

/** Builds the part of the plugin that EC2 needs: tools/plugins/aws/README.md. */
async function buildAws(host: Host, version: string, directory: string): Promise<void> {
  const source = join(directory, "source");
  await cp(join(checkout, "tools", "plugins", "aws"), source, { recursive: true });
  const go = await findGo(host, directory);
  try {
    const env = {
      ...go.env,
      PATH: [dirname(go.program), go.env["PATH"] ?? process.env["PATH"] ?? ""].join(delimiter),
      VERSION: version,
      OUT: directory,
    };
    await run("bash", ["build.sh"], { cwd: source, env, seconds: 40 * 60 });
  } finally {
    await go.close();
  }
  await rm(source, { recursive: true });
}

function builtBefore(host: Host, name: CloudPluginName): string | undefined {
  const program = join(cacheDirectory(), entryName(host, name), `pulumi-resource-${name}`);
  return existsSync(program) ? dirname(program) : undefined;
}

/** The plugins that were built here, with the paths of their programs. */
export function builtCloudPlugins(): { readonly name: string; readonly version: string; readonly path: string }[] {
  const host = thisHost();
  return cloudPluginNames.flatMap((name) => {
    const folder = builtBefore(host, name);
    return folder === undefined
      ? []
      : [{ name, version: packageVersion(name), path: join(folder, `pulumi-resource-${name}`) }];
  });
}

function entryName(host: Host, name: CloudPluginName): string {
  return `pulumi-resource-${name}-v${packageVersion(name)}-${host.platform}`;
}
