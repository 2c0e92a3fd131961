import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { spawnSync } from "node:child_process";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, beforeEach, describe, expect, it, onTestFinished, vi } from "vitest";
import { atLeast, checkout } from "../../tools/launch.mjs";
import { foreignSources, withoutServiceStarts } from "../../tools/setup/apt.ts";
import { cached } from "../../tools/setup/cache.ts";
import { run, versionOf } from "../../tools/setup/commands.ts";
import { build } from "../../tools/setup/go.ts";
import { findProgram, type Host, isStaticallyLinked } from "../../tools/setup/host.ts";
import { checksums, go, languageHost, pulumi } from "../../tools/setup/versions.ts";

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "setup-test-"));
  vi.stubEnv("XDG_CACHE_HOME", directory);
});
afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(directory, { recursive: true, force: true });
});

describe("an entry of the shared cache", () => {
  const entry = () => join(directory, "nix-builder-fleet", "tool-1");
  const make = vi.fn(async (path: string) => {
    await Promise.resolve();
    writeFileSync(join(path, "tool"), "made");
  });
  beforeEach(() => {
    make.mockClear();
  });

  it("is made once, however many ask at the same time", async () => {
    const paths = await Promise.all([cached("tool-1", ["tool"], make), cached("tool-1", ["tool"], make)]);
    expect(paths).toEqual([entry(), entry()]);
    expect(await cached("tool-1", ["tool"], make)).toBe(entry());
    expect(make).toHaveBeenCalledTimes(1);
  });

  it("isn't there when it could not be made, and the next attempt starts afresh", async () => {
    const failing = (path: string) => {
      writeFileSync(join(path, "half"), "");
      return Promise.reject(new Error("no space"));
    };
    await expect(cached("tool-1", ["tool"], failing)).rejects.toThrow("no space");
    expect(existsSync(entry())).toBe(false);
    await cached("tool-1", ["tool"], make);
    expect(existsSync(join(entry(), "half"))).toBe(false);
  });

  it.each(["", "another-file"])("is made anew where its program is gone (left: '%s')", async (left) => {
    mkdirSync(entry(), { recursive: true });
    if (left !== "") writeFileSync(join(entry(), left), "");
    expect(await cached("tool-1", ["tool"], make)).toBe(entry());
    expect(readdirSync(entry())).toEqual(["tool"]);
  });

  it("isn't there, and is complained of, when it was made without its program", async () => {
    await expect(cached("tool-1", ["tool", "helper"], make)).rejects.toThrow(
      "tool-1 was made for the cache without its helper.",
    );
    expect(existsSync(entry())).toBe(false);
  });

  it("is made anew where a killed run left a draft", async () => {
    mkdirSync(`${entry()}.draft`, { recursive: true });
    writeFileSync(`${entry()}.draft/half`, "");
    await cached("tool-1", ["tool"], make);
    expect(existsSync(join(entry(), "half"))).toBe(false);
  });
});

describe("a program that set-up runs", () => {
  it("says why it failed, with its last lines and where the rest is", async () => {
    const failing = run("sh", ["-c", "for i in 1 2 3 4 5 6 7 8 9 10; do echo line $i; done; exit 3"]);
    await expect(failing).rejects.toThrow(/sh -c failed \(exit code 3\).*sh\.log, this was last:\n {2}line 3\n/s);
  });
  it("is ended when it takes too long", async () => {
    await expect(run("sleep", ["30"], { seconds: 0.2 })).rejects.toThrow(/ended by SIGTERM \(limit: 0\.2 s\)/);
  });
  it("may be absent", async () => {
    await expect(run("no-such-program", [])).rejects.toThrow(/no-such-program.*ENOENT/s);
  });
});

describe("a program on this machine", () => {
  it("is found in further places than PATH, but not by relative ones", () => {
    vi.stubEnv("PATH", ".:/nowhere");
    expect(findProgram("sh")).toBeUndefined();
    expect(findProgram("sh", ["/bin"])).toBe("/bin/sh");
  });
  it("is statically linked or not", () => {
    expect(isStaticallyLinked(findProgram("sh") ?? "")).toBe(false);
    expect(isStaticallyLinked(join(checkout, "package.json"))).toBe(false);
    // The smallest static program: an ELF header for 64 bit, with one PT_LOAD program header.
    const elf = Buffer.alloc(120);
    elf.write("\x7fELF\x02\x01\x01", "latin1");
    elf.writeBigUInt64LE(64n, 32);
    elf.writeUInt16LE(56, 54);
    elf.writeUInt16LE(1, 56);
    elf.writeUInt32LE(1, 64);
    writeFileSync(join(directory, "static"), elf);
    expect(isStaticallyLinked(join(directory, "static"))).toBe(true);
    elf.writeUInt32LE(3, 64);
    writeFileSync(join(directory, "dynamic"), elf);
    expect(isStaticallyLinked(join(directory, "dynamic"))).toBe(false);
  });
});

describe("services, while apt installs packages,", () => {
  const policy = () => join(directory, "policy-rc.d");
  const text = () => (existsSync(policy()) ? readFileSync(policy(), "utf8") : "nothing");
  /** What is there during the work. */
  async function during(): Promise<string> {
    let seen = "";
    await withoutServiceStarts(() => {
      seen = text();
      return Promise.resolve();
    }, policy());
    return seen;
  }

  it("are not started, and nothing is left of that", async () => {
    expect(await during()).toContain("exit 101");
    expect(text()).toBe("nothing");
    await expect(withoutServiceStarts(() => Promise.reject(new Error("no")), policy())).rejects.toThrow("no");
    expect(text()).toBe("nothing");
  });

  it("are started again after a run that was killed: what it left is known as ours, and goes", async () => {
    const left = await during();
    writeFileSync(policy(), left);
    expect(await during()).toBe(left);
    expect(text()).toBe("nothing");
  });

  it("stay as somebody else has decided", async () => {
    writeFileSync(policy(), "#!/bin/sh\nexit 0\n");
    expect(await during()).toBe("#!/bin/sh\nexit 0\n");
    expect(text()).toBe("#!/bin/sh\nexit 0\n");
  });
});

describe("packages of the foreign architecture", () => {
  const host = (platform: string, distribution: Host["distribution"]): Host => ({
    platform,
    distribution,
    root: false,
    codename: "noble",
  });

  it("come from Ubuntu's other host, signed by Ubuntu", () => {
    const sources = foreignSources(host("linux-x64", "ubuntu"), "arm64") ?? "";
    expect(sources).toContain(
      "URIs: http://ports.ubuntu.com/ubuntu-ports\nSuites: noble noble-updates noble-security\n",
    );
    expect(sources).toContain("Signed-By: /usr/share/keyrings/ubuntu-archive-keyring.gpg");
    expect(foreignSources(host("linux-arm64", "ubuntu"), "amd64")).toContain(
      "URIs: http://archive.ubuntu.com/ubuntu\n",
    );
  });
  it("come from the system's own sources otherwise", () => {
    expect(foreignSources(host("linux-x64", "ubuntu"), "amd64")).toBeUndefined();
    expect(foreignSources(host("linux-x64", "debian"), "arm64")).toBeUndefined();
  });
});

describe("the checksums of official downloads", () => {
  const versionOf = (name: string) =>
    (JSON.parse(readFileSync(join(checkout, "node_modules", name, "package.json"), "utf8")) as { version: string })
      .version;
  const platforms = ["linux-amd64", "linux-arm64"];
  const files = [
    ...platforms.map((platform) => `go${go.version}.${platform}.tar.gz`),
    ...["linux-x64", "linux-arm64"].map((platform) => `pulumi-v${pulumi.version}-${platform}.tar.gz`),
    ...["command", "tls", "hcloud", "aws"].flatMap((name) =>
      platforms.map((platform) => `pulumi-resource-${name}-v${versionOf(`@pulumi/${name}`)}-${platform}.tar.gz`),
    ),
  ];

  it.each(Object.entries(checksums))("%s is of a version that is downloaded", (file, sha256) => {
    expect(files).toContain(file);
    expect(sha256).toMatch(/^[0-9a-f]{64}$/);
  });
});

describe("what is built from Go modules", () => {
  /** A module proxy that serves other modules than those which the checkout pins, under their names. */
  async function tamperingProxy(): Promise<string> {
    const server = createServer((request, response) => {
      const [path = "", file = ""] = (request.url ?? "").slice(1).split("/@v/");
      if (file.endsWith(".mod"))
        response.end(`module ${path.replaceAll(/!(.)/g, (_, c: string) => c.toUpperCase())}\n`);
      else response.writeHead(404).end();
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    onTestFinished(() => {
      server.close();
    });
    return `http://127.0.0.1:${String((server.address() as AddressInfo).port)}`;
  }

  it("has the checksums of go.sum, whatever the proxy serves and the person's environment says", async ({ skip }) => {
    const program = findProgram("go");
    const version = program === undefined ? undefined : await versionOf(program, "version");
    skip(program === undefined || version === undefined || !atLeast(version, go.minimum), "there is no new enough Go");
    const env = {
      ...process.env,
      GOPROXY: await tamperingProxy(),
      GOMODCACHE: join(directory, "modules"),
      GOFLAGS: "-mod=mod -modcacherw",
      GONOSUMDB: "*",
      GONOSUMCHECK: "1",
      GOSUMDB: "off",
      GOWORK: "off",
    };
    const work = build(
      { program: program ?? "", env, close: () => Promise.resolve() },
      {
        module: "pulumi-language-nodejs",
        package: "github.com/pulumi/pulumi/sdk/v3/nodejs/cmd/pulumi-language-nodejs",
        output: join(directory, "program"),
      },
    );
    await expect(work).rejects.toThrow(/SECURITY ERROR/);
    expect(existsSync(join(directory, "program"))).toBe(false);
  });

  it("has the provider of the aws plugin in the pinned form only, which is in no go.sum", () => {
    const bin = join(directory, "bin");
    mkdirSync(bin);
    const answer = JSON.stringify({ Dir: directory, Sum: "h1:other=" });
    writeFileSync(join(bin, "go"), `#!/bin/sh\necho '${answer}'\n`, { mode: 0o755 });
    const result = spawnSync("bash", [join(checkout, "tools", "plugins", "aws", "build.sh")], {
      encoding: "utf8",
      env: { ...process.env, PATH: `${bin}:${process.env["PATH"] ?? ""}`, OUT: join(directory, "out") },
    });
    expect(result.stderr).toMatch(
      /^github\.com\/upbound\/\S+ has the checksum h1:other=, expected h1:\S+: it was not used\.\n$/,
    );
    expect(result.status).toBe(1);
  });

  const file = (...path: string[]) => readFileSync(join(checkout, "tools", "setup", "go", ...path), "utf8");

  it("is pinned to the versions and the Go of versions.ts, with checksums", () => {
    const cli = file("pulumi", "go.mod");
    expect(cli).toContain(`github.com/pulumi/pulumi/pkg/v3 v${pulumi.version}\n`);
    expect(cli).toContain(`\ngo ${go.minimum}\n`);
    expect(file("pulumi", "go.sum")).toContain(`github.com/pulumi/pulumi/pkg/v3 v${pulumi.version} h1:`);
    expect(file("pulumi-language-nodejs", "go.mod")).toContain(
      `github.com/pulumi/pulumi/sdk/v3 v${languageHost.version}\n`,
    );
    expect(file("pulumi-language-nodejs", "go.sum")).toContain(
      `github.com/pulumi/pulumi/sdk/v3 v${languageHost.version} h1:`,
    );
  });
});
