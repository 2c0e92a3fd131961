/** What a person would read: each form of one fleet, as files to look at. What matters in them is said by the other tests. */
import { expect, test } from "vitest";
import type { BuildMachine } from "../../src/nix/buildMachine.ts";
import { garnix } from "../../src/nix/caches.ts";
import { defaultDirectory, formNames, formOptions, forms } from "../../src/nix/forms.ts";
import { nixbuildNet } from "../../src/nix/nixbuildNet.ts";
import { ed25519 } from "./fleets.ts";

const fleet: readonly BuildMachine[] = [
  {
    alias: "x86",
    hostName: "203.0.113.7",
    port: 22,
    protocol: "ssh-ng",
    systems: ["x86_64-linux", "i686-linux"],
    sshUser: "nix-builder",
    maxJobs: 8,
    speedFactor: 2,
    supportedFeatures: ["benchmark", "big-parallel", "kvm", "nixos-test"],
    mandatoryFeatures: [],
    publicHostKey: ed25519(new Uint8Array(32).fill(1)),
  },
  {
    alias: "arm",
    hostName: "2001:db8::7",
    port: 2222,
    protocol: "ssh-ng",
    systems: ["aarch64-linux"],
    sshUser: "nix-builder",
    maxJobs: 16,
    speedFactor: 1,
    supportedFeatures: ["big-parallel"],
    mandatoryFeatures: ["arm-only"],
    publicHostKey: ed25519(new Uint8Array(32).fill(2)),
  },
  nixbuildNet({ sshKey: "/run/secrets/nixbuild" }),
];

/** Made as for the stack's outputs and `fleet client`. */
const options = formOptions({
  directory: defaultDirectory,
  localSystems: [],
  caches: [garnix],
  profile: "balanced",
  maxSessions: 12,
  nixVersion: "2.34.0",
});

test.each(formNames)("%s looks as it did", async (name) => {
  // The workflow has no words for a builder with a key of its own.
  const expressible = name === "githubWorkflow" ? fleet.filter(({ sshKey }) => sshKey === undefined) : fleet;
  await expect(forms[name].render(expressible, options)).toMatchFileSnapshot(
    `../golden/${name}/${forms[name].fileName}`,
  );
});
