/** Nix, for the builders on this machine and for the client. */
import { dirname } from "node:path";
import { atLeast, LaunchError } from "../launch.mjs";
import { installPackages } from "./apt.ts";
import { versionOf } from "./commands.ts";
import { findProgram, type Host } from "./host.ts";
import { step } from "./progress.ts";
import { nix as pinned } from "./versions.ts";

/**
 * The directory with Nix's programs. The official installer is never run unattended: it makes users, edits shell
 * profiles and can't be undone by us.
 *
 * @throws {LaunchError} if there is none new enough and apt may not or can't install it.
 */
export async function findNix(host: Host): Promise<string> {
  const find = () => findProgram("nix", ["/nix/var/nix/profiles/default/bin", "/run/current-system/sw/bin"]);
  let program = find();
  if (program === undefined && host.root && host.distribution !== "other") {
    await step("installing Nix (nix-bin) with apt", () => installPackages(["nix-bin"]));
    program = find();
  }
  if (program === undefined)
    throw new LaunchError(
      `Nix ${pinned.minimum} or newer is needed to build through the fleet, and there is none on PATH. ` +
        `Please install it: ${howToInstall(host)}`,
    );
  const version = await versionOf(program, "--version");
  if (version === undefined || !atLeast(version, pinned.minimum))
    throw new LaunchError(
      `${program} is Nix ${version ?? "of an unknown version"}; at least ${pinned.minimum} is needed, the oldest with ` +
        `which this fleet's builders and files are known to work. Please install a newer one: ${howToInstall(host)}`,
    );
  return dirname(program);
}

function howToInstall(host: Host): string {
  const official = "sh <(curl -L https://nixos.org/nix/install) --daemon   (https://nixos.org/download)";
  return host.distribution === "other"
    ? official
    : `sudo apt-get install --no-install-recommends nix-bin   — or: ${official}`;
}
