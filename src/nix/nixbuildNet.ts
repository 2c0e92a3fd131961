/** nixbuild.net as ordinary builders beside the fleet's own, to try both side by side. */
import { toPublicHostKey } from "../ssh/hostKey.ts";
import { checkBuildMachine, type BuildMachine } from "./buildMachine.ts";

export interface NixbuildNetOptions {
  /** Path, on the client, of the private key that the account knows. It isn't the fleet's. */
  readonly sshKey: string;
  /** Systems to build there. Default: both that the service has. */
  readonly systems?: readonly string[];
  /** Builds at the same time. Default: 100, as the service's own guide says; it has no limit of its own. */
  readonly maxJobs?: number;
  /** Default: 1, so that idle builders of the fleet with a higher one come first. */
  readonly speedFactor?: number;
}

/**
 * nixbuild.net as a builder. As a remote store it is `storeUri` of the same.
 *
 * The user name means nothing to the service: the key says whose account it is.
 * Source: https://docs.nixbuild.net/getting-started/, host key included.
 *
 * @throws InvalidValue if an option can't be used
 */
export function nixbuildNet(options: NixbuildNetOptions): BuildMachine {
  return checkBuildMachine({
    alias: "nixbuild",
    hostName: "eu.nixbuild.net",
    port: 22,
    protocol: "ssh-ng",
    systems: options.systems ?? ["x86_64-linux", "aarch64-linux"],
    sshUser: "root",
    sshKey: options.sshKey,
    maxJobs: options.maxJobs ?? 100,
    speedFactor: options.speedFactor ?? 1,
    supportedFeatures: ["benchmark", "big-parallel"],
    mandatoryFeatures: [],
    publicHostKey: toPublicHostKey("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPIQCZc54poJ8vqawd8TraNryQeJnvH1eLpIDgbiqymM"),
  });
}
