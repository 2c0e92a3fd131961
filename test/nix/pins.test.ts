/** Every form against a real builder: it builds with the pinned host key, and with another one it refuses to connect. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { renderGithubWorkflow } from "../../src/ci/githubWorkflow.ts";
import type { BuildMachine } from "../../src/nix/buildMachine.ts";
import { clientFiles } from "../../src/nix/clientFiles.ts";
import { formNames, forms, type FormName } from "../../src/nix/forms.ts";
import { renderMachines } from "../../src/nix/machinesFile.ts";
import { renderNix } from "../../src/nix/nixExpression.ts";
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

interface SystemConfig {
  readonly nix: { readonly buildMachines: readonly BuildMachine[] };
  readonly programs: {
    readonly ssh: {
      readonly extraConfig: string;
      readonly knownHosts: Record<string, { hostNames: readonly string[]; publicKey: string }>;
    };
  };
}

/** A module's values where NixOS or nix-darwin would put them; ssh's own files stand in for those of the system. */
function systemFiles({ nix, programs }: SystemConfig, directory: string): Record<string, string> {
  const known = Object.values(programs.ssh.knownHosts).map((host) => `${host.hostNames.join(",")} ${host.publicKey}\n`);
  const rows = nix.buildMachines.map((m) =>
    // As nixos/modules/config/nix-remote-build.nix writes them.
    [`${m.protocol}://${m.sshUser}@${m.hostName}`, m.systems.join(","), m.sshKey, m.maxJobs]
      .concat([m.speedFactor, m.supportedFeatures.join(","), "-", m.publicHostKey])
      .join(" "),
  );
  return {
    "nix.conf": `builders = @${directory}/machines\n`,
    machines: `${rows.join("\n")}\n`,
    ssh_config: `${programs.ssh.extraConfig}\n  GlobalKnownHostsFile ${directory}/known_hosts\n`,
    known_hosts: known.join(""),
  };
}

const stubs = fileURLToPath(new URL("stubs", import.meta.url));
function evaluateModules(options: "nixos" | "darwin" | "home", modules: readonly string[]): unknown {
  const list = [`${stubs}/${options}.nix`, ...modules.map((module) => `(${module})`)].join(" ");
  return evaluate(`(import ${stubs}/lib.nix).evalModules { modules = [ ${list} ]; }`);
}

/** The files that a form comes to in `directory`, with the form's text alone to speak of the builder. */
type Pinned = (machine: BuildMachine, directory: string) => Record<string, string>;

/** No shared connections: their sockets would lie in the home directory of whoever runs the tests. */
const optionsIn = (directory: string) => ({ directory, sshKey: `${directory}/id_ed25519`, maxSessions: 1 });
const systemModule =
  (form: "nixosModule" | "darwinModule", system: "nixos" | "darwin"): Pinned =>
  (machine, directory) =>
    systemFiles(
      evaluateModules(system, [forms[form].render([machine], optionsIn(directory))]) as SystemConfig,
      directory,
    );
/** These four go together, and none does anything without the others. */
const plainFiles: Pinned = (machine, directory) => ({
  machines: forms.machines.render([machine], optionsIn(directory)),
  "nix.conf": forms.nixConf.render([machine], optionsIn(directory)),
  ssh_config: forms.sshConfig.render([machine], optionsIn(directory)),
  known_hosts: forms.knownHosts.render([machine], optionsIn(directory)),
});

/** Every form that there is: a new one neither compiles nor passes until it stands here. */
const pinned: Record<FormName, Pinned> = {
  nixosModule: systemModule("nixosModule", "nixos"),
  darwinModule: systemModule("darwinModule", "darwin"),
  homeManagerModule: (machine, directory) => {
    // ssh takes ~ from the passwd file, so that the test has to name its own directory.
    const text = forms.homeManagerModule
      .render([machine], optionsIn(directory))
      .replaceAll("~/.ssh/nix-builder-fleet", directory);
    const { home } = evaluateModules("home", [text]) as { home: { file: Record<string, { text: string }> } };
    const read = (name: string) => home.file[`.ssh/nix-builder-fleet/${name}`]?.text ?? "";
    return {
      "nix.conf": `builders = @${directory}/machines\n`,
      machines: read("machines"),
      ssh_config: read("config"),
      known_hosts: read("known_hosts"),
    };
  },
  machines: plainFiles,
  nixConf: plainFiles,
  sshConfig: plainFiles,
  knownHosts: plainFiles,
  githubWorkflow: (machine, directory) => {
    // The builder of this test is on a loopback address, which the form refuses; its renderer doesn't.
    const text = renderGithubWorkflow([machine], { maxSessions: 1 });
    const file = (name: string) =>
      new RegExp(`>"\\$FLEET_DIR/${name}" <<'END_OF_FILE'\\n([^]*?) *END_OF_FILE\\n`)
        .exec(text)?.[1]
        ?.replaceAll(/^ {10}/gm, "")
        .replaceAll("/@FLEET_DIR@", directory) ?? "";
    return Object.fromEntries(["machines", "nix.conf", "ssh_config", "known_hosts"].map((name) => [name, file(name)]));
  },
  buildersOption: (machine, directory) => {
    const text = forms.buildersOption.render([machine], { ...optionsIn(directory), nixVersion: "2.31" });
    // The installed Nix may be too old for a port in the URI: ssh is told of the port alone, by the address that the line has.
    const line = /^--builders '(.*)'\n$/.exec(text)?.[1]?.replace(`:${machine.port} `, " ") ?? "";
    return {
      "nix.conf": `builders = ${line}\n`,
      ssh_config: `Host ${machine.hostName}\n  Port ${machine.port}\n  BatchMode yes\n  GlobalKnownHostsFile /dev/null\n`,
    };
  },
  fleetJson: (machine, directory) => {
    const file = join(mkdtempSync(join(builder.directory, "json-")), "fleet.json");
    writeFileSync(file, forms.fleetJson.render([machine]));
    const settings = renderNix({ file, sshKey: `${directory}/id_ed25519`, maxSessions: 1 });
    const module = fileURLToPath(new URL("../../nixos/client.nix", import.meta.url));
    return systemFiles(
      evaluateModules("nixos", [module, `{ nix.builderFleet = ${settings}; }`]) as SystemConfig,
      directory,
    );
  },
};

/** Forms that are files of one folder are tried together, everything else by itself. */
const cases = [...new Set(formNames.map((name) => pinned[name]))].flatMap((render) => {
  const names = formNames.filter((name) => pinned[name] === render);
  // By address there is no alias that could name a remote store.
  const stores = names.includes("buildersOption") ? (["builders"] as const) : (["builders", "remote store"] as const);
  return stores.map((store) => [names.join(", "), store, render] as const);
});

describe.each(cases)("what %s configures, as %s", (_, store, render) => {
  const files = (machine: BuildMachine) => (directory: string) => render(machine, directory);

  test("builds with the pinned key, and refuses with another", async () => {
    const good = write(files(builder.machine));
    await expect(build(builder, good, { store })).resolves.toContain("pinned-");
    const bad = write(files({ ...builder.machine, publicHostKey: otherKey }));
    await expect(build(builder, bad, { store })).rejects.toThrow(
      /Host key verification failed|HOST IDENTIFICATION HAS CHANGED/,
    );
  });
});
