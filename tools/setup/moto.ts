/** The EC2 emulator that tests use: moto, from PyPI, in the versions that the checkout pins. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { checkout, fingerprint, LaunchError } from "../launch.mjs";
import { cached } from "./cache.ts";
import { run } from "./commands.ts";
import { findProgram } from "./host.ts";
import { step } from "./progress.ts";

/**
 * Moto's own version and all that it needs, with checksums:
 * `uv pip compile --no-deps --generate-hashes --no-header --no-annotate --only-binary :all: --python-version 3.11`.
 */
const requirements = join(checkout, "test", "support", "aws", "requirements.txt");

/** Wheels run nothing when they are installed. */
const install = ["-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"];

/** How to start it. */
export interface Moto {
  readonly python: string;
  /** `PYTHONPATH`. */
  readonly path: string;
}

/**
 * Fetches it once for all checkouts.
 *
 * @throws {LaunchError} where there is no Python with pip.
 */
export async function findMoto(): Promise<Moto> {
  const python = findProgram("python3");
  if (python === undefined)
    throw new LaunchError("The EC2 emulator needs Python 3 with pip: sudo apt-get install python3 python3-pip");
  const name = `moto-${fingerprint(readFileSync(requirements, "utf8"), python, process.arch).slice(0, 12)}`;
  const path = await cached(name, ["moto"], async (directory) => {
    await step(
      "fetching the EC2 emulator moto from PyPI",
      () => run(python, [...install, "--target", directory, "--requirement", requirements], { seconds: 600 }),
      "about half a minute",
    );
  });
  return { python, path };
}
