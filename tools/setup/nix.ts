/** Nix, for the builders on this machine and for the client. */
import { dirname } from "node:path";
import { oldestNix } from "../../src/local/tools.ts";
import { atLeast, LaunchError } from "../launch.mjs";
import { candidateVersion, installPackages } from "./apt.ts";
import { versionOf } from "./commands.ts";
import { findProgram, type Host } from "./host.ts";
import { step } from "./progress.ts";

/**
 * The directory with Nix's programs. The official installer is never run unattended: it makes users, edits shell
 * profiles and can't be undone by us.
 *
 * @throws {LaunchError} if there is none new enough and apt may not or can't install it.
 */
export async function findNix(host: Host): Promise<string> {
  const find = () => findProgram("nix", ["/nix/var/nix/profiles/default/bin", "/run/current-system/sw/bin"]);
  const found = find();
  const version = found === undefined ? undefined : await versionOf(found, "--version");
  if (found !== undefined && version !== undefined && atLeast(version, oldestNix)) return dirname(found);
  const offered = await candidateVersion(host, "nix-bin");
  if (found === undefined && host.root && offered !== undefined && atLeast(offered, oldestNix)) {
    await step("installing Nix (nix-bin) with apt", () => installPackages(["nix-bin"]));
    const installed = find();
    if (installed !== undefined) return dirname(installed);
  }
  const here = found === undefined ? "there is none on PATH" : `${found} is ${version ?? "of an unknown version"}`;
  throw new LaunchError(
    `Nix ${oldestNix} or newer is needed to build through the fleet (${oldestNix} is the oldest that was tried), and ${here}. ` +
      `Please install it: ${howToInstall(host, offered)}`,
  );
}

/** @param offered what apt would install. */
function howToInstall(host: Host, offered: string | undefined): string {
  const official = "sh <(curl -L https://nixos.org/nix/install) --daemon   (https://nixos.org/download)";
  if (host.distribution === "other") return official;
  if (offered !== undefined && !atLeast(offered, oldestNix)) return `${official}; apt has ${offered} only`;
  return `sudo apt-get install --no-install-recommends nix-bin   — or: ${official}`;
}
