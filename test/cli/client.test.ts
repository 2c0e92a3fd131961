import { mkdtempSync, readFileSync, rmSync, writeFileSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { describeForms, writeClient } from "../../src/cli/client.ts";
import type { UsableFleet } from "../../src/cli/stack.ts";
import { toPublicHostKey } from "../../src/ssh/hostKey.ts";

const hostKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPIQCZc54poJ8vqawd8TraNryQeJnvH1eLpIDgbiqymM";
const fleet: UsableFleet = {
  stack: "dev",
  builders: [
    {
      alias: "dev-x86",
      hostName: "192.0.2.7",
      port: 22,
      protocol: "ssh-ng",
      systems: ["x86_64-linux"],
      sshUser: "nix-builder",
      maxJobs: 4,
      speedFactor: 1,
      supportedFeatures: [],
      mandatoryFeatures: [],
      publicHostKey: toPublicHostKey(hostKey),
    },
  ],
  verification: {},
  measurement: {},
  administration: {},
  clientSettings: {
    directory: "/etc/nix/fleet",
    localSystems: [],
    caches: [{ url: "https://cache.example.org", publicKey: `c:${"A".repeat(43)}=` }],
    clients: [
      { name: "ci", profile: "remote-only", localSystems: [] },
      { name: "alice", publicKey: hostKey, localSystems: [] },
    ],
  },
  clientPrivateKey: "SHARED\n",
  adminPrivateKey: "ADMIN\n",
  clientPrivateKeys: { ci: "CI\n" },
};

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(`${tmpdir()}/fleet-client-`);
});
afterEach(() => {
  rmSync(directory, { recursive: true });
});
const read = (name: string) => readFileSync(`${directory}/${name}`, "utf8");

describe("fleet client", () => {
  it("prints one form, with the paths of the configured directory", () => {
    expect(writeClient(fleet, { form: "machines" })).toEqual({
      text: expect.stringContaining("x86_64-linux /etc/nix/fleet/id_ed25519 4 1") as string,
    });
    expect(writeClient(fleet, { form: "nixosModule" })).toEqual({
      text: expect.stringContaining('"/etc/nix/fleet/id_ed25519"') as string,
    });
  });

  it("writes one form under its usual name", () => {
    writeClient(fleet, { form: "nixosModule", directory });
    expect(read("fleet.nix")).toContain("dev-x86");
  });

  it("writes the plain files with the shared key, readable by nobody else, and the caches", () => {
    writeClient(fleet, { directory });
    expect(read("id_ed25519")).toBe("SHARED\n");
    expect(statSync(`${directory}/id_ed25519`).mode & 0o777).toBe(0o600);
    expect(read("machines")).toContain(`${directory}/id_ed25519`);
    expect(read("nix.conf")).toContain("extra-substituters = https://cache.example.org");
  });

  it("gives a client of the configuration its own key and profile", () => {
    writeClient(fleet, { directory, client: "ci" });
    expect(read("id_ed25519")).toBe("CI\n");
    expect(read("nix.conf")).toContain("max-jobs = 0");
  });

  it("writes no key for a client that keeps its own", () => {
    const result = writeClient(fleet, { directory, client: "alice" });
    expect(result).toMatchObject({ needsOwnKey: true, files: ["machines", "nix.conf", "ssh_config", "known_hosts"] });
  });

  it("lets a person choose another profile", () => {
    writeClient(fleet, { directory, profile: "offline" });
    expect(read("machines").trim()).toBe("");
  });

  it("writes again over its own files", () => {
    writeClient(fleet, { directory });
    writeClient({ ...fleet, clientPrivateKey: "NEW\n" }, { directory });
    expect(read("id_ed25519")).toBe("NEW\n");
  });

  it("refuses a folder with another fleet's files, unless forced", () => {
    writeFileSync(`${directory}/machines`, "ssh-ng://root@other-x86 x86_64-linux - 1 1 - - -\n");
    expect(() => writeClient(fleet, { directory })).toThrow(
      /holds machines of something else than stack 'dev'.*--force/,
    );
    expect(read("machines")).toContain("other-x86");
    writeClient(fleet, { directory, force: true });
    expect(read("machines")).toContain("dev-x86");
  });

  it.each([
    ["an unknown form", { form: "toml" }, /form is "toml", but allowed is one of nixosModule, /],
    [
      "an unknown client",
      { directory: "x", client: "bob" },
      /client 'bob' is not in the configuration; the clients are ci, alice/,
    ],
    [
      "an unknown profile",
      { form: "nixConf", profile: "turbo" },
      /profile 'turbo' does not exist; the profiles are remote-only, /,
    ],
    ["neither folder nor form", {}, /name a folder to write to, or a form to print: --form nixosModule \| /],
  ])("says what is allowed instead of %s", (_, choice, message) => {
    expect(() => writeClient(fleet, choice)).toThrow(message);
  });

  it("says with what else a form goes that can't express something", () => {
    const [builder] = fleet.builders;
    if (builder === undefined) throw new Error("no builder");
    const odd = { ...fleet, builders: [{ ...builder, port: 2222 }] };
    expect(() => writeClient(odd, { form: "buildersOption" })).toThrow(/Nix 2.31.*machines and sshConfig/);
    expect(writeClient(odd, { form: "buildersOption", nixVersion: "2.31" })).toEqual({
      text: expect.stringContaining("ssh-ng://nix-builder@192.0.2.7:2222 ") as string,
    });
  });

  it("lists every form with what it is", () => {
    expect(describeForms()).toMatch(/^ {2}nixosModule +a NixOS module/);
  });
});
