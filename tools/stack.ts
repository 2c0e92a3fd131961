/** Which stack a command works on, and in which backend: one answer for `npm start`, `npm run pulumi` and `npx fleet`. */
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { homedir, userInfo } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { stackNameProblem } from "../src/stackName.ts";
import { readJson } from "./files.ts";
import { checkout, LaunchError } from "./launch.mjs";
import { ownValue } from "../src/record.ts";

/** The stack that is made and used until another one is selected. */
export const defaultStack = "dev";

/** The project's name in Pulumi.yaml. */
export const project = "nix-builder-fleet";

/**
 * The stack that a command works on: the one it names, else that of `PULUMI_STACK`, else what {@link plainStack} says,
 * else {@link defaultStack}.
 *
 * @param named by the command's own `--stack`.
 * @throws {LaunchError} for a name that no stack may have.
 */
export function whichStack(env: NodeJS.ProcessEnv, named?: string, directory: string = checkout): string {
  const stack = named ?? (env["PULUMI_STACK"] || plainStack(env, directory)) ?? defaultStack;
  const problem = stackNameProblem(stack);
  if (problem !== undefined) throw new LaunchError(problem);
  return stack;
}

/**
 * The stack of a command that names none, in a shell that sets none: the selected one, and in the checkout's own
 * backend {@link defaultStack} until one is selected. `undefined`: the CLI would ask.
 */
export function plainStack(env: NodeJS.ProcessEnv, directory: string = checkout): string | undefined {
  return (
    selectedStack(env, directory) ?? (backendOf(env, directory) === ownBackend(directory) ? defaultStack : undefined)
  );
}

/** How a command has to name a stack, to be put behind it: ` --stack NAME`, or nothing where a plain call takes it anyway. */
export function stackOption(env: NodeJS.ProcessEnv, stack: string, directory: string = checkout): string {
  return plainStack(env, directory) === stack ? "" : ` --stack ${stack}`;
}

/**
 * What to say of the stack under sudo, where the person's own selection and login don't count: root's do, in root's `~/.pulumi`.
 * `undefined`: it was named, or this is no sudo.
 *
 * @param named as for {@link whichStack}.
 */
export function stackUnderSudo(
  env: NodeJS.ProcessEnv,
  named?: string,
  directory: string = checkout,
): string | undefined {
  if (named !== undefined || env["PULUMI_STACK"] || !env["SUDO_USER"]) return undefined;
  const stack = whichStack(env, named, directory);
  return `working on stack '${stack}' in ${backendOf(env, directory)}: under sudo your own selection and login don't count (--stack NAME)`;
}

/** `PULUMI_BACKEND_URL` of the state inside the checkout. */
export function ownBackend(directory: string = checkout): string {
  return `file://${join(directory, ".fleet", "state")}`;
}

/** The backend's own folder; `undefined`: it is no folder. */
export function pulumiFolder(backend: string | undefined): string | undefined {
  return backend?.startsWith("file:///") === true ? join(fileURLToPath(new URL(backend)), ".pulumi") : undefined;
}

/** Path of a stack below each of the backend's folders: `PROJECT/NAME`. */
export function stackPath(stack: string): string {
  const parts = stack.split("/");
  return [(parts.length === 3 && parts[1]) || project, parts.at(-1)].join("/");
}

/** Whether the person has chosen a backend: a variable, or a login that the CLI remembers. */
export function hasOwnBackend(env: NodeJS.ProcessEnv): boolean {
  return Boolean(env["PULUMI_BACKEND_URL"] || env["PULUMI_ACCESS_TOKEN"] || login(env));
}

/** The backend that the CLI works with: the person's own choice, else the checkout's. */
export function backendOf(env: NodeJS.ProcessEnv, directory: string = checkout): string {
  if (env["PULUMI_BACKEND_URL"]) return env["PULUMI_BACKEND_URL"];
  return login(env) ?? (env["PULUMI_ACCESS_TOKEN"] ? "https://api.pulumi.com" : ownBackend(directory));
}

/** What is wrong with a stack that isn't there, and the command that makes it. */
export function noSuchStack(stack: string, backend: string, known: readonly string[]): string {
  const others = known.length === 0 ? "there is none" : `there are ${known.join(", ")}`;
  return (
    `stack '${stack}' does not exist in ${backend} (${others}); make it with ` +
    `\`npm run pulumi -- stack init ${stack}\` and write Pulumi.${stack}.yaml (docs/configuration.md)`
  );
}

/** Names of stacks in the answer to `pulumi stack ls --json`. */
export function stackNames(json: string): string[] {
  return (JSON.parse(json) as { name: string }[]).map(({ name }) => shortName(name)).sort();
}

/** What the CLI calls a stack of this project in a folder or bucket, where every organization is called `organization`. */
function shortName(stack: string): string {
  return stack.replace(new RegExp(`^organization/${project}/`), "");
}

/** The stack that the person has selected in this checkout, by the CLI's own record of it. */
function selectedStack(env: NodeJS.ProcessEnv, directory: string): string | undefined {
  const key = createHash("sha1").update(join(directory, "Pulumi.yaml")).digest("hex");
  const path = join(pulumiHome(env), "workspaces", `${project}-${key}-workspace.json`);
  const settings = readJson(path) as { stack?: string; stacks?: Record<string, string> } | undefined;
  const selected = ownValue(settings?.stacks ?? {}, backendOf(env, directory)) ?? settings?.stack;
  return selected ? shortName(selected) : undefined;
}

/** The backend of `pulumi login`. */
function login(env: NodeJS.ProcessEnv): string | undefined {
  const directory = env["PULUMI_CREDENTIALS_PATH"] ?? pulumiHome(env);
  const credentials = readJson(join(directory, "credentials.json")) as { current?: string } | undefined;
  return credentials?.current || undefined;
}

/**
 * Where the CLI keeps logins, selected stacks and plugins: the folder of `PULUMI_HOME`, else `.pulumi` in the account's home, wherever
 * `HOME` points. Only where the account has no home, so that the CLI by itself would fail, it is `.pulumi` in `HOME`.
 *
 * @param account The account's home, empty where the user has no account. Default: that of this process's user.
 */
export function pulumiHome(env: NodeJS.ProcessEnv, account: string = accountHome()): string {
  if (env["PULUMI_HOME"]) return env["PULUMI_HOME"];
  return join(existsSync(account) ? account : env["HOME"] || homedir(), ".pulumi");
}

/** By the account database, as the CLI asks it; a container's user may have no entry there. */
function accountHome(): string {
  try {
    return userInfo().homedir;
  } catch {
    return "";
  }
}
