/** Makes sure that this machine has everything the project needs, and says where it lies. */
import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { delimiter, dirname, join } from "node:path";
import { cacheDirectory, checkout, fingerprint, LaunchError, withLock } from "../launch.mjs";
import { reachesPulumi } from "./download.ts";
import { type Emulation, findEmulation } from "./emulation.ts";
import { findProgram, isProgram, thisHost } from "./host.ts";
import { findNix } from "./nix.ts";
import { findPlugins, ownPrograms, type Plugin, pluginDirectory, pluginNames } from "./plugins.ts";
import { say } from "./progress.ts";
import { findPulumi } from "./pulumiCli.ts";
import { findSsh, type Ssh } from "./ssh.ts";

/** The programs that were found or made, by absolute path. */
export interface Toolchain {
  /** The directory with `pulumi` and `pulumi-language-nodejs`. */
  readonly pulumi: string;
  readonly plugins: readonly Plugin[];
  /** The directory with Nix's programs. */
  readonly nix: string;
  readonly ssh: Ssh;
  readonly emulation: Emulation;
  /** This process's environment, with all of these on PATH. */
  readonly env: NodeJS.ProcessEnv;
}

export interface SetUpOptions {
  /**
   * Look at everything again, and retry official downloads that were out of reach, instead of trusting what the last
   * set-up found. Default: false.
   */
  readonly renew?: boolean;
}

type Found = Omit<Toolchain, "env">;

/**
 * Finds, fetches or builds what is missing; a few milliseconds when nothing is.
 *
 * @throws {LaunchError} for what can't be had: what it is, why it is needed, the command that would supply it.
 */
export async function setUp(options: SetUpOptions = {}): Promise<Toolchain> {
  const known = options.renew === true ? undefined : remembered();
  if (known !== undefined) return { ...known, env: environmentWith(known) };
  const found = await withLock(
    join(checkout, ".fleet", "set-up.lock"),
    async () => (options.renew === true ? undefined : remembered()) ?? remember(await findAll()),
    () => {
      say("another set-up of this checkout is running: waiting for it");
    },
  );
  return { ...found, env: environmentWith(found) };
}

async function findAll(): Promise<Found> {
  const host = thisHost();
  if (!host.platform.startsWith("linux-"))
    throw new LaunchError(
      `This set-up is for Linux, this is ${host.platform}: please install Pulumi (https://www.pulumi.com/docs/install) ` +
        "and Nix (https://nixos.org/download), then use `pulumi up` with a fleet without `local` builders.",
    );
  // What only a person can supply comes first, all of it at once, and before anything that takes minutes.
  const problems: string[] = [];
  const collect = (error: unknown) => {
    if (!(error instanceof LaunchError)) throw error;
    problems.push(error.message);
    return undefined;
  };
  const nix = await findNix(host).catch(collect);
  const ssh = await findSsh(host).catch(collect);
  if (nix === undefined || ssh === undefined) throw new LaunchError(problems.join("\n"));
  const emulation = await findEmulation(host);
  let reachable: Promise<boolean> | undefined;
  const official = () => (reachable ??= reachesPulumi());
  const pulumi = await findPulumi(host, official);
  const plugins = await findPlugins(host, join(pulumi, "pulumi"), official);
  return { pulumi, plugins, nix, ssh, emulation };
}

/** What belongs to this project comes first on PATH; the directories of the system's programs only where they are not on it. */
function environmentWith(found: Found): NodeJS.ProcessEnv {
  const path = process.env["PATH"] ?? "";
  const first = [
    ...(found.plugins.some(({ kind }) => kind === "substitute") ? [ownPrograms] : []),
    ...(findProgram("pulumi") === join(found.pulumi, "pulumi") ? [] : [found.pulumi]),
    join(cacheDirectory(), "bin"),
  ];
  const last = [found.nix, found.ssh.client, dirname(found.ssh.sshd)];
  const all = [...first, ...path.split(delimiter), ...last];
  return { ...process.env, PATH: [...new Set(all)].join(delimiter) };
}

const memory = join(checkout, ".fleet", "toolchain.json");

/** What the last set-up found, if it was asked the same and all of it is still there. */
function remembered(): Found | undefined {
  try {
    const { key, found } = JSON.parse(readFileSync(memory, "utf8")) as { key: string; found: Found };
    return key === question() && programsOf(found).every(isProgram) ? found : undefined;
  } catch {
    return undefined;
  }
}

function remember(found: Found): Found {
  mkdirSync(dirname(memory), { recursive: true });
  const draft = `${memory}.${String(process.pid)}`;
  writeFileSync(draft, JSON.stringify({ key: question(), found }, undefined, 2));
  renameSync(draft, memory);
  return found;
}

function programsOf({ pulumi, plugins, nix, ssh, emulation }: Found): string[] {
  return [
    join(pulumi, "pulumi"),
    join(pulumi, "pulumi-language-nodejs"),
    ...plugins.map(({ path }) => path),
    join(nix, "nix"),
    ssh.sshd,
    join(ssh.client, "ssh"),
    ...Object.values(emulation.busybox),
    ...[emulation.qemu, emulation.pasta].filter((path) => path !== undefined),
  ];
}

/** Everything that the answer depends on, apart from the programs themselves. */
function question(): string {
  const file = (...path: string[]) => readFileSync(join(checkout, ...path), "utf8");
  return fingerprint(
    file("tools", "setup", "versions.ts"),
    file("tools", "setup", "emulation.ts"),
    ...pluginNames.map((name) => file("node_modules", "@pulumi", name, "package.json")),
    JSON.stringify([checkout, cacheDirectory(), pluginDirectory(), process.getuid?.(), process.arch]),
  );
}
