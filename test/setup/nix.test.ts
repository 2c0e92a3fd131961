/** Which Nix set-up takes or has installed: with programs on PATH that stand in for Nix and apt. */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import type { Host } from "../../tools/setup/host.ts";
import { findNix } from "../../tools/setup/nix.ts";

const { installPackages } = vi.hoisted(() => ({ installPackages: vi.fn() }));
vi.mock("../../tools/setup/apt.ts", async (original) => ({ ...(await original<object>()), installPackages }));

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "nix-test-"));
  vi.stubEnv("PATH", directory);
  installPackages.mockReset();
});
afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(directory, { recursive: true, force: true });
});

/** Nix where PATH doesn't lead would be found anyway. */
const elsewhere = ["/nix/var/nix/profiles/default/bin/nix", "/run/current-system/sw/bin/nix"].find((path) =>
  existsSync(path),
);

function program(name: string, script: string): void {
  writeFileSync(join(directory, name), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
}
const nix = (version: string) => {
  program("nix", `echo 'nix (Nix) ${version}'`);
};
const aptHas = (candidate: string) => {
  program("apt-cache", `echo "$2:"; echo '  Installed: (none)'; echo '  Candidate: ${candidate}'`);
};
const host = (more: Partial<Host> = {}): Host => ({
  platform: "linux-x64",
  root: true,
  distribution: "ubuntu",
  codename: "jammy",
  ...more,
});

it("is the one on PATH if it is new enough, and apt isn't asked", async () => {
  nix("2.8.0");
  program("apt-cache", `: > ${directory}/asked`);
  expect(await findNix(host())).toBe(directory);
  expect(existsSync(join(directory, "asked"))).toBe(false);
});

it("is not one that is too old: one sentence says so, and what to install", async () => {
  nix("2.7.0");
  aptHas("2.18.1+dfsg-1ubuntu5");
  await expect(findNix(host())).rejects.toThrow(
    "Nix 2.8 or newer is needed to build through the fleet (2.8 is the oldest that was tried), and " +
      `${directory}/nix is 2.7.0. Please install it: sudo apt-get install --no-install-recommends nix-bin`,
  );
  expect(installPackages).not.toHaveBeenCalled();
});

it("is installed with apt by root where there is none, if apt's is new enough", async ({ skip }) => {
  skip(elsewhere !== undefined, `this machine has ${elsewhere ?? ""}`);
  aptHas("2.18.1+dfsg-1ubuntu5");
  installPackages.mockImplementation(() => {
    nix("2.18.1");
  });
  expect(await findNix(host())).toBe(directory);
  expect(installPackages.mock.calls).toEqual([[["nix-bin"]]]);
});

it("is not installed where apt has one that is too old, as on Ubuntu 22.04: the official installer is named", async ({
  skip,
}) => {
  skip(elsewhere !== undefined, `this machine has ${elsewhere ?? ""}`);
  aptHas("2.6.0+dfsg-3");
  await expect(findNix(host())).rejects.toThrow(
    /there is none on PATH\. Please install it: sh <\(curl -L https:\/\/nixos\.org\/nix\/install\) --daemon .*; apt has 2\.6\.0\+dfsg-3 only$/,
  );
  expect(installPackages).not.toHaveBeenCalled();
});

it("is asked for after root has fetched absent package lists", async ({ skip }) => {
  skip(elsewhere !== undefined, `this machine has ${elsewhere ?? ""}`);
  aptHas("(none)");
  program(
    "apt-get",
    `printf '#!/bin/sh\\necho "  Candidate: 2.34.0"\\n' > ${directory}/apt-cache; test "$*" = "-q update"`,
  );
  installPackages.mockImplementation(() => {
    nix("2.34.0");
  });
  expect(await findNix(host())).toBe(directory);
});

it("is left to an ordinary user, with the command", async ({ skip }) => {
  skip(elsewhere !== undefined, `this machine has ${elsewhere ?? ""}`);
  aptHas("2.34.0");
  await expect(findNix(host({ root: false }))).rejects.toThrow("sudo apt-get install --no-install-recommends nix-bin");
  await expect(findNix(host({ distribution: "other" }))).rejects.not.toThrow("apt-get");
  expect(installPackages).not.toHaveBeenCalled();
});
