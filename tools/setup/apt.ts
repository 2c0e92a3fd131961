/** Debian's and Ubuntu's packages: installed as root, or only fetched and unpacked. */
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { cacheDirectory, LaunchError, withLock } from "../launch.mjs";
import { run } from "./commands.ts";
import type { Host } from "./host.ts";

/**
 * Installs packages system-wide, without recommended ones, and without starting their services: whatever they would
 * start (sshd on port 22) was not asked for.
 */
export async function installPackages(packages: readonly string[]): Promise<void> {
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  const apt = (...args: string[]) =>
    run("apt-get", ["-o", "DPkg::Lock::Timeout=120", "-q", "-y", ...args], { env, seconds: 600 });
  const install = () => apt("install", "--no-install-recommends", ...packages);
  // Package lists may be absent (containers) or outdated: they are renewed only then, as that takes a while.
  const work = () =>
    install().catch(async () => {
      await apt("update");
      await install();
    });
  await withoutServiceStarts(work);
}

/**
 * The version that apt would install, without Debian's epoch; `undefined` where it has none. Package lists that are absent
 * (containers) are fetched by root.
 */
export async function candidateVersion(host: Host, name: string): Promise<string | undefined> {
  if (host.distribution === "other") return undefined;
  const ask = async () => {
    const policy = await run("apt-cache", ["policy", name], { env: { ...process.env, LC_ALL: "C" } }).catch(() => "");
    return /^ *Candidate: (?:\d+:)?(\d\S*)/m.exec(policy)?.[1];
  };
  const known = await ask();
  if (known !== undefined || !host.root) return known;
  await run("apt-get", ["-q", "update"], { seconds: 600 }).catch(() => "");
  return ask();
}

const policyText = "#!/bin/sh\n# Made by nix-builder-fleet for the time of one apt-get install.\nexit 101\n";

/**
 * Debian's own switch for it: /usr/sbin/policy-rc.d says 101 ("action forbidden") while the packages are configured. One that
 * is there already stays, unless it is ours, from a run that was killed.
 *
 * @param policy the file. Default: Debian's.
 */
export async function withoutServiceStarts(
  work: () => Promise<unknown>,
  policy = "/usr/sbin/policy-rc.d",
): Promise<void> {
  // Another set-up at the same time must not take away what this one relies on.
  await withLock(join(cacheDirectory(), "policy-rc.d.lock"), async () => {
    if (existsSync(policy) && readFileSync(policy, "utf8") !== policyText) {
      await work();
      return;
    }
    const remove = () => {
      rmSync(policy, { force: true });
    };
    writeFileSync(policy, policyText);
    chmodSync(policy, 0o755);
    process.on("exit", remove);
    try {
      await work();
    } finally {
      remove();
      process.off("exit", remove);
    }
  });
}

/**
 * Fetches one package of any architecture into `directory` and unpacks it there as `directory/NAME`, without installing it.
 * Nothing of the system's apt is changed: lists and archives are private, so it also works as an ordinary user. apt
 * checks the signatures with the system's keyrings.
 *
 * @param architecture Debian's name: amd64 or arm64.
 * @returns the unpacked tree.
 */
export async function unpackPackage(
  host: Host,
  name: string,
  architecture: string,
  directory: string,
): Promise<string> {
  const state = join(directory, `apt-${architecture}`);
  const options = privateOptions(host, architecture, state);
  const lists = join(state, "lists");
  if (!existsSync(lists)) {
    for (const folder of ["lists/partial", "archives/partial", "sources"])
      mkdirSync(join(state, folder), { recursive: true });
    const config = join(state, "apt.conf");
    // Hooks of the system's configuration would act on the system.
    const hooks = ["APT::Update::Pre-Invoke", "APT::Update::Post-Invoke", "APT::Update::Post-Invoke-Success"];
    writeFileSync(config, hooks.map((hook) => `#clear ${hook};\n`).join(""));
    const foreign = foreignSources(host, architecture);
    if (foreign !== undefined) writeFileSync(join(state, "sources", "foreign.sources"), foreign);
    // A third-party repository that can't be read doesn't matter; without the package, the download fails below.
    await run("apt-get", ["-c", config, ...options, "-q", "update"], { seconds: 300 }).catch(() => "");
  }
  const archives = join(state, "fetched");
  mkdirSync(archives, { recursive: true });
  await run("apt-get", ["-c", join(state, "apt.conf"), ...options, "-q", "download", `${name}:${architecture}`], {
    cwd: archives,
    seconds: 300,
  });
  const archive = readdirSync(archives).find((file) => file.startsWith(`${name}_`) && file.endsWith(".deb"));
  if (archive === undefined) throw new LaunchError(`apt has fetched no ${name} for ${architecture}.`);
  const tree = join(directory, `${name}-${architecture}`);
  mkdirSync(tree, { recursive: true });
  await run("dpkg-deb", ["-x", join(archives, archive), tree]);
  return tree;
}

function privateOptions(host: Host, architecture: string, state: string): string[] {
  const settings = {
    "APT::Architecture": architecture,
    "APT::Architectures": architecture,
    "Dir::State": state,
    "Dir::State::Lists": join(state, "lists"),
    "Dir::State::status": "/dev/null",
    "Dir::Cache": state,
    "Dir::Cache::Archives": join(state, "archives"),
    "Acquire::Languages": "none",
    "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
    "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled": "false",
    // apt's own user can't enter a private cache directory.
    "APT::Sandbox::User": "root",
    ...(foreignSources(host, architecture) === undefined
      ? {}
      : { "Dir::Etc::sourcelist": "/dev/null", "Dir::Etc::sourceparts": join(state, "sources") }),
  };
  return Object.entries(settings).flatMap(([key, value]) => ["-o", `${key}=${value}`]);
}

/** Ubuntu, unlike Debian, keeps amd64 and the other architectures on two hosts. */
export function foreignSources(host: Host, architecture: string): string | undefined {
  const own = host.platform.endsWith("-x64") ? "amd64" : "arm64";
  if (host.distribution !== "ubuntu" || architecture === own) return undefined;
  const uri = architecture === "amd64" ? "http://archive.ubuntu.com/ubuntu" : "http://ports.ubuntu.com/ubuntu-ports";
  const suites = ["", "-updates", "-security"].map((suffix) => host.codename + suffix).join(" ");
  return (
    `Types: deb\nURIs: ${uri}\nSuites: ${suites}\nComponents: main universe\n` +
    `Architectures: ${architecture}\nSigned-By: /usr/share/keyrings/ubuntu-archive-keyring.gpg\n`
  );
}
