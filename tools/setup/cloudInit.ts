/** cloud-init, for the tests: Debian's package and the Python modules that it needs, unpacked and never installed. */
import { existsSync } from "node:fs";
import { delimiter, join } from "node:path";
import { LaunchError } from "../launch.mjs";
import { unpackPackage } from "./apt.ts";
import { cached } from "./cache.ts";
import { findProgram, type Host } from "./host.ts";
import { step } from "./progress.ts";

/** All that `cloud-init schema` imports; of those with a part in C, each works without it. */
const packages = [
  "cloud-init",
  ...["attr", "configobj", "jinja2", "json-pointer", "jsonpatch", "jsonschema", "markupsafe", "netifaces"],
  ...["oauthlib", "pyrsistent", "requests", "six", "urllib3", "chardet", "certifi", "idna", "yaml"],
].map((name, i) => (i === 0 ? name : `python3-${name}`));

/** How to start it. */
export interface CloudInit {
  readonly python: string;
  /** `PYTHONPATH`. */
  readonly path: string;
}

/**
 * Fetches it once for all checkouts. It runs from the cache: an installed one would run at this machine's next boot.
 *
 * @throws {LaunchError} where there is no Python, or no apt to fetch it with.
 */
export async function findCloudInit(host: Host): Promise<CloudInit> {
  const python = findProgram("python3");
  if (python === undefined) throw new LaunchError("cloud-init needs Python 3: sudo apt-get install python3");
  if (host.distribution === "other")
    throw new LaunchError("cloud-init is fetched with apt, and this is not a Debian or Ubuntu");
  const architecture = host.platform.endsWith("-arm64") ? "arm64" : "amd64";
  const folders = packages.map((name) => `${name}-${architecture}`);
  const directory = await cached(
    `cloud-init-${host.distribution}-${host.codename}-${architecture}`,
    folders,
    async (draft) => {
      await step("fetching cloud-init for a test with apt", async () => {
        for (const name of packages) await unpackPackage(host, name, architecture, draft);
      });
    },
  );
  const path = folders
    .map((folder) => join(directory, folder, "usr/lib/python3/dist-packages"))
    .filter((modules) => existsSync(modules))
    .join(delimiter);
  return { python, path };
}
