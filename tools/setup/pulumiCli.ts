/** The Pulumi CLI and the host that runs its Node programs. */
import { chmod, cp, rename, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { atLeast } from "../launch.mjs";
import { cached } from "./cache.ts";
import { run, versionOf } from "./commands.ts";
import { download, pinnedSha256 } from "./download.ts";
import { build, findGo } from "./go.ts";
import { findProgram, type Host } from "./host.ts";
import { say, step } from "./progress.ts";
import { languageHost, origins, pulumi as pinned } from "./versions.ts";

/**
 * The directory that holds `pulumi` and `pulumi-language-nodejs`: that of the `pulumi` on PATH if it is new enough, else
 * the official release if its checksum is pinned, else both built from Go modules.
 *
 * @param official whether Pulumi's downloads can be reached.
 */
export async function findPulumi(host: Host, official: () => Promise<boolean>): Promise<string> {
  const own = findProgram("pulumi");
  if (own !== undefined && findProgram("pulumi-language-nodejs", [dirname(own)]) !== undefined) {
    const version = await versionOf(own, "version");
    if (version !== undefined && atLeast(version, pinned.minimum)) return dirname(own);
    say(`the Pulumi CLI on PATH is ${version ?? "broken"}, at least ${pinned.minimum} is needed: getting another one`);
  }
  const programs = ["pulumi", "pulumi-language-nodejs"];
  return cached(`pulumi-v${pinned.version}-${host.platform}`, programs, async (directory) => {
    if (pinnedSha256(archiveOf(host)) !== undefined && (await official())) {
      try {
        await step(`downloading the Pulumi CLI ${pinned.version}`, () => downloadRelease(host, directory));
        return;
      } catch (error) {
        say(`${error instanceof Error ? error.message : String(error)} Building it instead.`);
        await rm(join(directory, "pulumi"), { recursive: true, force: true });
      }
    }
    await buildFromModules(host, directory);
  });
}

function archiveOf(host: Host): string {
  return `pulumi-v${pinned.version}-${host.platform}.tar.gz`;
}

async function downloadRelease(host: Host, directory: string): Promise<void> {
  const file = archiveOf(host);
  await download(`${origins.pulumi}/releases/sdk/${file}`, join(directory, file));
  await run("tar", ["-xzf", file], { cwd: directory, seconds: 120 });
  await rm(join(directory, file));
  await flatten(directory);
}

/** The archive holds everything below pulumi/. */
async function flatten(directory: string): Promise<void> {
  const inner = join(directory, "unpacked");
  await rename(join(directory, "pulumi"), inner);
  await cp(inner, directory, { recursive: true });
  await rm(inner, { recursive: true });
}

async function buildFromModules(host: Host, directory: string): Promise<void> {
  const go = await findGo(host, directory);
  try {
    const version = "-X github.com/pulumi/pulumi/sdk/v3/go/common/version.Version=v";
    await step("building Pulumi's Node language host from Go modules", () =>
      build(go, {
        module: "pulumi-language-nodejs",
        package: "github.com/pulumi/pulumi/sdk/v3/nodejs/cmd/pulumi-language-nodejs",
        output: join(directory, "pulumi-language-nodejs"),
        linkerFlags: version + languageHost.version,
      }),
    );
    await step(
      `building the Pulumi CLI ${pinned.version} from Go modules`,
      () =>
        build(go, {
          module: "pulumi",
          package: "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi",
          output: join(directory, "pulumi"),
          linkerFlags: version + pinned.version,
        }),
      "about 4 minutes",
    );
  } finally {
    await go.close();
  }
  const dynamicProvider = join(directory, "pulumi-resource-pulumi-nodejs");
  await writeFile(dynamicProvider, dynamicProviderScript);
  await chmod(dynamicProvider, 0o755);
}

/** Does what nodejs/dist/pulumi-resource-pulumi-nodejs of the SDK does: serves Pulumi's dynamic resources. */
const dynamicProviderScript = `#!/bin/sh
script=$(node -p "require.resolve('@pulumi/pulumi/cmd/dynamic-provider')") && exec node "$script" "$@"
`;
