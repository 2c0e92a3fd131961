/** Runs Nix as a client of the fleet: with the emitted files, and nothing of the machine's own configuration. */
import { spawnSync } from "node:child_process";

/** Where a client's Nix reads and writes. */
export interface ClientLocation {
  /** Folder with the emitted files: `machines`, `nix.conf`, `ssh_config`, `known_hosts`, `id_ed25519`. */
  readonly clientDirectory: string;
  /** Folder for a store of its own; `undefined`: the machine's store. */
  readonly store: string | undefined;
  /** Whether a person's arguments let Nix build here after all. Default: false. */
  readonly localBuilds?: boolean;
}

/**
 * Environment in which Nix and ssh read the client's files alone, and build nothing on this machine.
 *
 * All by variables, so that a person's own arguments reach Nix untouched.
 */
export function clientEnvironment({
  clientDirectory,
  store,
  localBuilds = false,
}: ClientLocation): Record<string, string> {
  return {
    NIX_CONF_DIR: clientDirectory,
    NIX_USER_CONF_FILES: "",
    NIX_CONFIG: [
      "max-jobs = 0",
      "extra-experimental-features = nix-command flakes",
      // Without a way out, Nix would retry every cache for 5 s; the builders ask the caches as well.
      "download-attempts = 1",
      "connect-timeout = 5",
      // Where nobody builds, Nix would warn of a missing group all the same. Where somebody does, it must refuse to build as root.
      ...(store !== undefined || (!localBuilds && !hasBuildUsers()) ? ["build-users-group ="] : []),
      "",
    ].join("\n"),
    NIX_SSHOPTS: `-F ${clientDirectory}/ssh_config`,
    // Not the machine's daemon: it would read its own configuration and root's ssh_config.
    NIX_REMOTE: store === undefined ? "local" : `local?root=${store}`,
    ...(store !== undefined && { NIX_STATE_DIR: `${store}/state`, NIX_LOG_DIR: `${store}/log` }),
  };
}

let buildUsers: boolean | undefined;

/** Whether the machine has the group of which Nix's build users are by default, or nobody can tell (macOS has no `getent`). */
function hasBuildUsers(): boolean {
  const notFound = 2;
  return (buildUsers ??= spawnSync("getent", ["group", "nixbld"], { stdio: "ignore" }).status !== notFound);
}
