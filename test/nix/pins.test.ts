/** Every form against a real builder: it builds with the pinned host key, and with another one it refuses to connect. */
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { BuildMachine } from "../../src/nix/buildMachine.ts";
import { clientFiles } from "../../src/nix/clientFiles.ts";
import { renderHomeManagerModule } from "../../src/nix/homeManagerModule.ts";
import { renderMachines } from "../../src/nix/machinesFile.ts";
import { renderNixosModule } from "../../src/nix/nixosModule.ts";
import { renderKnownHosts } from "../../src/ssh/knownHosts.ts";
import { startLocalBuilder, type LocalBuilder } from "../support/localBuilder.ts";
import { ed25519 } from "./fleets.ts";
import { build, writeClient } from "./realBuild.ts";
import { evaluate } from "./realNix.ts";

let builder: LocalBuilder;
beforeAll(async () => {
  builder = await startLocalBuilder();
});
afterAll(async () => {
  await builder.stop();
});

const otherKey = ed25519(new Uint8Array(32).fill(1));
const write = (files: Parameters<typeof writeClient>[1]) => writeClient(builder, files);
const plain = (machine: BuildMachine) => (directory: string) =>
  clientFiles([machine], { directory, multiplexing: false });

describe("the plain files", () => {
  test.each(["builders", "remote store"] as const)("build as %s with the pinned key", async (store) => {
    await expect(build(builder, write(plain(builder.machine)), { store })).resolves.toContain("pinned-");
  });

  test("share one connection, and build", async () => {
    const directory = write((path) => clientFiles([builder.machine], { directory: path }));
    await build(builder, directory);
    const ssh = (...args: string[]) =>
      execFileSync("ssh", ["-F", `${directory}/ssh_config`, ...args, "here"], {
        encoding: "utf8",
        stdio: "pipe",
        timeout: 10_000,
      });
    // Fails unless the connection is still open, waiting for the next build.
    ssh("-O", "check");
    await build(builder, directory);
    await build(builder, directory, { store: "remote store" });
    ssh("-O", "exit");
  });

  test.each(["builders", "remote store"] as const)("refuse as %s with another key", async (store) => {
    const directory = write(plain({ ...builder.machine, publicHostKey: otherKey }));
    await expect(build(builder, directory, { store })).rejects.toThrow(
      /Host key verification failed|HOST IDENTIFICATION HAS CHANGED/,
    );
  });

  test.each(["machines", "known_hosts"])("refuse with another key in %s alone", async (name) => {
    const directory = write(plain(builder.machine));
    const other = { ...builder.machine, publicHostKey: otherKey };
    const text =
      name === "machines" ? renderMachines([other], { sshKey: `${directory}/id_ed25519` }) : renderKnownHosts([other]);
    writeFileSync(`${directory}/${name}`, text);
    // A remote store has no column 8, and where there is one it is asked instead of the file.
    await expect(
      build(builder, directory, { store: name === "machines" ? "builders" : "remote store" }),
    ).rejects.toThrow(/Host key verif|HOST IDENT/);
  });

  test.each(["builders", "remote store"] as const)(
    "refuse another key as %s without HostKeyAlias too",
    async (store) => {
      const directory = write(plain({ ...builder.machine, publicHostKey: otherKey }));
      const config = clientFiles([builder.machine], { directory, multiplexing: false }).ssh_config;
      writeFileSync(`${directory}/ssh_config`, config.replace(/^ *HostKeyAlias .*\n/m, ""));
      await expect(build(builder, directory, { store })).rejects.toThrow(/Host key verif|HOST IDENT/);
    },
  );

  test("refuse a builder that nothing is known of", async () => {
    const directory = write(plain(builder.machine));
    writeFileSync(`${directory}/known_hosts`, "");
    await expect(build(builder, directory, { store: "remote store" })).rejects.toThrow(
      /Host key verification failed|No .* host key is known/,
    );
  });
});

describe.each([
  ["NixOS", "builders"],
  ["NixOS", "remote store"],
  ["home-manager", "builders"],
  ["home-manager", "remote store"],
] as const)("what the %s module configures, as %s", (system, store) => {
  /** The module's values where NixOS and home-manager would put them; ssh's own files stand in for those of the system. */
  const files = (machine: BuildMachine) => (directory: string) => {
    // No shared connections: their sockets would lie in the home directory of whoever runs the tests.
    const options = { sshKey: `${directory}/id_ed25519`, maxSessions: 1 };
    const nixConf = { "nix.conf": `builders = @${directory}/machines\n` };
    const evaluateModule = (module: string) =>
      evaluate(`(${module}) { lib = { mkBefore = x: x; mkDefault = x: x; }; }`) as Record<
        string,
        Record<string, unknown>
      >;
    if (system === "home-manager") {
      // ssh takes ~ from the passwd file, so that the test has to name its own directory.
      const text = renderHomeManagerModule([machine], options).replaceAll("~/.ssh/nix-builder-fleet", directory);
      const { home } = evaluateModule(text) as { home: { file: Record<string, { text: string }> } };
      const read = (name: string) => home.file[`.ssh/nix-builder-fleet/${name}`]?.text ?? "";
      return { ...nixConf, machines: read("machines"), ssh_config: read("config"), known_hosts: read("known_hosts") };
    }
    const { nix, programs } = evaluateModule(renderNixosModule([machine], options)) as {
      nix: { buildMachines: Record<string, string & string[]>[] };
      programs: {
        ssh: { extraConfig: string; knownHosts: Record<string, { hostNames: string[]; publicKey: string }> };
      };
    };
    const known = Object.values(programs.ssh.knownHosts).map(
      (host) => `${host.hostNames.join(",")} ${host.publicKey}\n`,
    );
    const rows = nix.buildMachines.map((m) =>
      // As nixos/modules/config/nix-remote-build.nix writes them.
      [
        `${m["protocol"] ?? ""}://${m["sshUser"] ?? ""}@${m["hostName"] ?? ""}`,
        m["systems"]?.join(","),
        m["sshKey"],
        m["maxJobs"],
      ]
        .concat([m["speedFactor"], m["supportedFeatures"]?.join(","), "-", m["publicHostKey"]])
        .join(" "),
    );
    return {
      ...nixConf,
      machines: `${rows.join("\n")}\n`,
      ssh_config: `${programs.ssh.extraConfig}\n  GlobalKnownHostsFile ${directory}/known_hosts\n`,
      known_hosts: known.join(""),
    };
  };

  test("builds with the pinned key, and refuses with another", async () => {
    const good = write(files(builder.machine));
    await expect(build(builder, good, { store })).resolves.toContain("pinned-");
    const bad = write(files({ ...builder.machine, publicHostKey: otherKey }));
    await expect(build(builder, bad, { store })).rejects.toThrow(
      /Host key verification failed|HOST IDENTIFICATION HAS CHANGED/,
    );
  });
});
