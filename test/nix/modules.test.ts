/** The client modules, evaluated by Nix against the options that they set. */
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { checkBuildMachine, type BuildMachine } from "../../src/nix/buildMachine.ts";
import { defaultDirectory, defaultSshKey, signingKeyName } from "../../src/nix/clientFiles.ts";
import { forms } from "../../src/nix/forms.ts";
import { cacheSettings, cachix, garnix, type Cache } from "../../src/nix/caches.ts";
import { renderDarwinModule } from "../../src/nix/darwinModule.ts";
import { renderHomeManagerModule } from "../../src/nix/homeManagerModule.ts";
import { InvalidValue } from "../../src/nix/invalidValue.ts";
import { parseMachines } from "../../src/nix/machinesFile.ts";
import { renderNix } from "../../src/nix/nixExpression.ts";
import { renderNixosModule, type SystemModuleOptions } from "../../src/nix/nixosModule.ts";
import { toPublicHostKey } from "../../src/ssh/hostKey.ts";
import { parseKnownHosts } from "../../src/ssh/knownHosts.ts";
import { parseSshConfig } from "../../src/ssh/sshConfig.ts";
import { fleets, x86 } from "./fleets.ts";
import { evaluate, temporaryDirectory } from "./realNix.ts";

const stubs = fileURLToPath(new URL("stubs", import.meta.url));
const clientModule = fileURLToPath(new URL("../../nixos/client.nix", import.meta.url));

interface SystemConfig {
  readonly nix: {
    readonly distributedBuilds: boolean;
    readonly settings: Record<string, unknown>;
    readonly buildMachines: readonly ({ readonly hostName: string; readonly sshKey: string } & BuildMachine)[];
  };
  readonly programs: {
    readonly ssh: {
      readonly knownHosts: Record<string, { readonly hostNames: readonly string[]; readonly publicKey: string }>;
      readonly extraConfig: string;
    };
  };
  readonly warnings: readonly string[];
}

/** The configurations that each list of modules (Nix expressions) makes, in one run of Nix. */
function evaluateModules<Config>(
  options: "nixos" | "darwin" | "home",
  configurations: readonly (readonly string[])[],
): Config[] {
  const lists = configurations.map(
    (modules) => `[ ${stubs}/${options}.nix ${modules.map((m) => `(${m})`).join("\n")} ]`,
  );
  return evaluate(`
    let lib = import ${stubs}/lib.nix; in
    map (modules: lib.evalModules { inherit modules; }) [ ${lists.join("\n")} ]
  `) as Config[];
}

/** The fleet that a configuration speaks of. */
function parseSystemConfig({ nix, programs }: SystemConfig, sshKey = defaultSshKey): BuildMachine[] {
  const hosts = parseSshConfig(programs.ssh.extraConfig.replace(/\nHost \*\n$/, ""), { identityFile: sshKey });
  return nix.buildMachines.map(({ hostName: alias, sshKey: key, ...rest }) => {
    const { hostName, port } = hosts.find((host) => host.alias === alias) ?? { hostName: "", port: 0 };
    const machine = checkBuildMachine({ ...rest, ...(key === sshKey ? {} : { sshKey: key }), alias, hostName, port });
    expect(programs.ssh.knownHosts[alias]?.hostNames).toEqual([alias]);
    expect(toPublicHostKey(programs.ssh.knownHosts[alias]?.publicKey ?? "")).toBe(machine.publicHostKey);
    return machine;
  });
}

const sampled = fc.sample(fleets(4), { numRuns: 40, seed: 4 });

/** Each written module, and the flake's own with the same fleet; `offline` has no builders. */
const systems = [
  ["NixOS", "nixos", renderNixosModule],
  ["nix-darwin", "darwin", renderDarwinModule],
] as const;

describe.each(systems)("the %s module", (_, system, render) => {
  test("of any fleet is evaluated to an equal fleet", () => {
    const configs = evaluateModules<SystemConfig>(
      system,
      sampled.map((fleet) => [render(fleet)]),
    );
    expect(configs.map((config) => parseSystemConfig(config))).toEqual(sampled);
    expect(configs.map(({ nix }) => nix.distributedBuilds)).toEqual(sampled.map((fleet) => fleet.length > 0));
    expect(configs[0]?.nix.settings["builders-use-substitutes"]).toBe(true);
    expect(configs.flatMap(({ warnings }) => warnings)).toEqual([]);
  });

  test("leaves the path of the key to one line, which a person may change", () => {
    const changed = render([x86]).replace(`"${defaultSshKey}"`, '"/run/secrets/builder"');
    const [config] = evaluateModules<SystemConfig>(system, [[changed]]);
    expect(config?.nix.buildMachines[0]?.sshKey).toBe("/run/secrets/builder");
    expect(config?.programs.ssh.extraConfig).toContain("IdentityFile /run/secrets/builder\n");
    expect(render([x86], { sshKey: "/run/secrets/builder" })).toBe(changed);
  });

  test("stands before other modules' ssh configuration and doesn't swallow it", () => {
    const other = '{ programs.ssh.extraConfig = "StrictHostKeyChecking no\\nUser other\\n"; }';
    const [config] = evaluateModules<SystemConfig>(system, [[other, render([x86])]]);
    using directory = temporaryDirectory();
    const file = `${directory.path}/ssh_config`;
    writeFileSync(file, config?.programs.ssh.extraConfig ?? "");
    const resolve = (host: string) =>
      execFileSync("ssh", ["-G", "-F", file, host], {
        encoding: "utf8",
        timeout: 10_000,
        stdio: ["ignore", "pipe", "pipe"],
      });
    expect(resolve("x86")).toMatch(/^stricthostkeychecking true$/m);
    expect(resolve("x86")).toMatch(/^user nix-builder$/m);
    expect(resolve("elsewhere")).toMatch(/^user other$/m);
  });

  test("adds the key with which the client signs to the keys that a person has", () => {
    const { darwinModule, nixosModule } = forms;
    const form = render === renderDarwinModule ? darwinModule : nixosModule;
    const own = '{ nix.settings = { secret-key-files = [ "/own" ]; extra-secret-key-files = [ "/other" ]; }; }';
    const [config] = evaluateModules<SystemConfig>(system, [[own, form.render([x86], { signs: true })]]);
    const { "secret-key-files": keys, "extra-secret-key-files": more } = config?.nix.settings ?? {};
    expect(keys).toEqual(["/own"]);
    expect((more as string[]).toSorted()).toEqual([`${defaultDirectory}/${signingKeyName}`, "/other"]);
    expect(form.render([x86])).not.toContain("secret-key-files");
  });

  test("says by profile what this machine builds itself", () => {
    const arm = { ...x86, alias: "arm", systems: ["aarch64-linux"] };
    const profiles: SystemModuleOptions[] = [
      { profile: "remote-only" },
      { profile: "balanced" },
      { profile: "local-first", localSystems: ["x86_64-linux"] },
      { profile: "offline" },
    ];
    const configs = evaluateModules<SystemConfig>(
      system,
      profiles.map((options) => [render([x86, arm], options)]),
    );
    expect(
      configs.map(({ nix }) => [
        nix.distributedBuilds,
        nix.buildMachines.map(({ hostName }) => hostName),
        nix.settings["max-jobs"],
      ]),
    ).toEqual([
      [true, ["x86", "arm"], 0],
      [true, ["x86", "arm"], "auto"],
      [true, ["arm"], "auto"],
      [false, [], "auto"],
    ]);
  });

  test.each(["remote-only", "balanced", "local-first", "offline"] as const)(
    "stands beside a person's own settings under %s, which count",
    (profile) => {
      const own = (switched: boolean) => `{
        nix.distributedBuilds = ${switched};
        nix.settings = { max-jobs = 3; builders-use-substitutes = ${switched}; extra-substituters = [ "https://own.example" ]; };
      }`;
      const generated =
        "{ lib, ... }: { nix.settings.max-jobs = lib.mkDefault 8; nix.distributedBuilds = lib.mkDefault false; }";
      const forced = `{ lib, ... }: { nix.buildMachines = lib.mkForce [ ]; nix.settings.extra-substituters = lib.mkForce [ ]; }`;
      const settings = cacheSettings([garnix]);
      using directory = temporaryDirectory();
      const file = `${directory.path}/fleet.json`;
      writeFileSync(file, JSON.stringify([x86]));
      const caches = [{ ...garnix }];
      const modules = [
        [render([x86], { profile, localSystems: ["aarch64-linux"], settings })],
        [
          clientModule,
          `{ nix.builderFleet = ${renderNix({ file, profile, localSystems: ["aarch64-linux"], caches })}; }`,
        ],
      ];
      for (const module of modules) {
        const [on, off, old, none] = evaluateModules<SystemConfig>(
          system,
          [own(true), own(false), generated, forced].map((theirs) => [theirs, ...module]),
        );
        for (const [config, switched] of [
          [on, true],
          [off, false],
        ] as const) {
          expect(config?.nix.distributedBuilds).toBe(switched);
          expect(config?.nix.settings).toMatchObject({ "max-jobs": 3, "builders-use-substitutes": switched });
          expect(config?.nix.settings["extra-substituters"]).toEqual([
            "https://own.example",
            "https://cache.garnix.io",
          ]);
        }
        expect(old?.nix.settings["max-jobs"]).toBe(profile === "remote-only" ? 0 : "auto");
        expect(old?.nix.distributedBuilds).toBe(profile !== "offline");
        expect([none?.nix.buildMachines, none?.nix.settings["extra-substituters"]]).toEqual([[], []]);
      }
    },
  );

  test("says that it can do nothing where Nix isn't the system's own", () => {
    using directory = temporaryDirectory();
    const file = `${directory.path}/fleet.json`;
    writeFileSync(file, JSON.stringify([x86]));
    const flake = [clientModule, `{ nix.builderFleet.file = ${renderNix(file)}; }`];
    for (const module of [[render([x86])], flake]) {
      const configs = evaluateModules<SystemConfig>(system, [["{ nix.enable = false; }", ...module], module]);
      expect(configs.map(({ warnings }) => warnings)).toEqual([
        [expect.stringMatching(/^nix-builder-fleet: nix\.enable is false, .* plain files, .*docs\/clients\.md/)],
        [],
      ]);
    }
    expect(evaluateModules<SystemConfig>(system, [["{ nix.enable = false; }", clientModule]])[0]?.warnings).toEqual([]);
  });
});

describe("the flake's module", () => {
  test("makes of fleet.json what the written module says", () => {
    using directory = temporaryDirectory();
    const cases: { fleet: BuildMachine[]; options: SystemModuleOptions; caches?: Cache[]; signs?: true }[] = [
      ...sampled.map((fleet) => ({ fleet, options: {} })),
      ...sampled.slice(0, 6).map((fleet) => ({ fleet, options: { profile: "offline" as const, sshKey: "/run/k" } })),
      ...sampled
        .slice(0, 6)
        .map((fleet) => ({ fleet, options: { profile: "remote-only" as const, maxSessions: 100 } })),
      ...sampled.slice(0, 3).map((fleet) => ({ fleet, options: {}, caches: [garnix, cachix("nix-community")] })),
      ...sampled.slice(0, 3).map((fleet) => ({ fleet, options: {}, caches: [garnix], signs: true as const })),
      ...sampled.map((fleet) => ({
        fleet,
        options: { profile: "local-first" as const, localSystems: ["x86_64-linux"] },
      })),
    ];
    const files = cases.map(({ fleet }, i) => {
      const file = `${directory.path}/fleet-${i}.json`;
      writeFileSync(file, JSON.stringify(fleet));
      return file;
    });
    const configs = evaluateModules<SystemConfig & { nix: { builderFleet?: unknown } }>(
      "nixos",
      cases.map(({ options, caches = [], signs }, i) => [
        clientModule,
        `{ nix.builderFleet = ${renderNix({
          file: files[i] ?? "",
          caches: caches.map((cache) => ({ ...cache })),
          ...(signs && { signingKey: `${defaultDirectory}/${signingKeyName}` }),
          ...options,
        })}; }`,
      ]),
    );
    const written = evaluateModules<SystemConfig>(
      "nixos",
      cases.map(({ fleet, options, caches = [], signs = false }) => [
        signs
          ? forms.nixosModule.render(fleet, { caches, signs })
          : renderNixosModule(fleet, { ...options, settings: cacheSettings(caches) }),
      ]),
    );
    for (const config of configs) delete config.nix.builderFleet;
    expect(configs).toEqual(written);
  });

  test("stands beside a person's own settings too", () => {
    using directory = temporaryDirectory();
    const file = `${directory.path}/fleet.json`;
    writeFileSync(file, JSON.stringify([x86]));
    const own = "{ nix.distributedBuilds = true; nix.settings.max-jobs = 3; }";
    const settings = renderNix({ file, profile: "offline" });
    const [config] = evaluateModules<SystemConfig>("nixos", [
      [clientModule, own, `{ nix.builderFleet = ${settings}; }`],
    ]);
    expect([config?.nix.distributedBuilds, config?.nix.settings["max-jobs"]]).toEqual([true, 3]);
  });

  test.each([
    ["alias", "x86\n  ProxyCommand touch /tmp/x"],
    ["hostName", "127.0.0.1\nProxyCommand touch /tmp/x"],
    ["hostName", "a b"],
    ["sshUser", "root x"],
    ["sshKey", "/k\nHost *"],
    ["sshKey", "/a b"],
    ["publicHostKey", "AAAA AAAA"],
    ["supportedFeatures", ["kvm big-parallel"]],
    ["mandatoryFeatures", ["a\nb"]],
    ["systems", ["x86_64-linux -"]],
    ["protocol", "ssh-ng://x"],
    ["port", "22\nProxyCommand x"],
    ["maxJobs", "1"],
  ])("refuses a file whose %s is %j, as checkBuildMachine does", (field, value) => {
    using directory = temporaryDirectory();
    const file = `${directory.path}/fleet.json`;
    const machine = { ...x86, [field]: value };
    expect(() => checkBuildMachine(machine)).toThrow(InvalidValue);
    writeFileSync(file, JSON.stringify([machine]));
    expect(() => evaluateModules("nixos", [[clientModule, `{ nix.builderFleet = ${renderNix({ file })}; }`]])).toThrow(
      `nix.builderFleet.file: ${field} `,
    );
  });

  test("does nothing without a file, and refuses local-first without systems", () => {
    const [config] = evaluateModules<SystemConfig>("nixos", [[clientModule]]);
    expect(config?.programs.ssh.extraConfig).toBe("");
    using directory = temporaryDirectory();
    writeFileSync(`${directory.path}/fleet.json`, JSON.stringify([x86]));
    const settings = renderNix({ file: `${directory.path}/fleet.json`, profile: "local-first" });
    expect(() => evaluateModules("nixos", [[clientModule, `{ nix.builderFleet = ${settings}; }`]])).toThrow(
      /localSystems/,
    );
  });

  test.each(["nixos/flake.nix", "flake.nix"])(
    "is what %s exports for both, beside a shell for every system",
    (name) => {
      const flake = fileURLToPath(new URL(`../../${name}`, import.meta.url));
      const outputs = evaluate(`
      let
        lib.genAttrs = names: f: builtins.listToAttrs (map (name: { inherit name; value = f name; }) names);
        pkgs = { mkShell = shell: map (package: package.name) shell.packages; pulumiPackages.pulumi-nodejs.name = "pulumi-nodejs"; }
          // lib.genAttrs [ "nodejs_24" "pulumi" "nix" "openssh" "git" "jq" "actionlint" ] (name: { inherit name; });
        nixpkgs = { inherit lib; legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" "x86_64-darwin" "aarch64-darwin" ] (_: pkgs); };
        outputs = (import ${flake}).outputs { inherit nixpkgs; self = { }; nix-darwin = { }; home-manager = { }; };
      in
      {
        modules = map toString [ outputs.nixosModules.default outputs.darwinModules.default ];
        shells = builtins.mapAttrs (_: shells: shells.default) outputs.devShells;
      }
    `) as { modules: string[]; shells: Record<string, string[]> };
      expect(outputs.modules).toEqual([clientModule, clientModule]);
      expect(Object.keys(outputs.shells)).toHaveLength(4);
      expect(outputs.shells["x86_64-linux"]).toContain("pulumi-nodejs");
    },
  );
});

describe("the home-manager module", () => {
  interface HomeConfig {
    readonly programs: { readonly ssh: { readonly enable: boolean; readonly includes: readonly string[] } };
    readonly home: { readonly file: Record<string, { readonly text: string }> };
    readonly warnings: readonly string[];
  }

  test("of any fleet puts files below ~/.ssh that speak of an equal fleet", () => {
    const configs = evaluateModules<HomeConfig>(
      "home",
      sampled.map((fleet) => [renderHomeManagerModule(fleet)]),
    );
    const read = configs.map(({ home }) => {
      const text = (name: string) => home.file[`.ssh/nix-builder-fleet/${name}`]?.text ?? "";
      const keys = parseKnownHosts(text("known_hosts"));
      const hosts = parseSshConfig(text("config"), { identityFile: "~/.ssh/nix-builder-fleet_ed25519" });
      return parseMachines(text("machines")).map((entry, i) => {
        expect(keys[i]?.publicHostKey).toBe(entry.publicHostKey);
        return { ...entry, ...hosts[i] };
      });
    });
    expect(read).toEqual(sampled);
  });

  test("leaves ~/.ssh/config to the person, and says nothing of options that aren't its own", () => {
    const [config] = evaluateModules<HomeConfig>("home", [[renderHomeManagerModule([x86])]]);
    expect(Object.keys(config?.home.file ?? {})).toEqual(
      ["config", "known_hosts", "machines"].map((name) => `.ssh/nix-builder-fleet/${name}`),
    );
    expect([config?.programs.ssh.enable, config?.warnings]).toEqual([false, []]);
  });

  test("is included before the user's own blocks where home-manager writes ~/.ssh/config", () => {
    const own = '{ programs.ssh = { enable = true; enableDefaultConfig = false; includes = [ "own" ]; }; }';
    const [config] = evaluateModules<HomeConfig>("home", [[own, renderHomeManagerModule([x86])]]);
    expect(config?.home.file[".ssh/config"]?.text).toBe("Include nix-builder-fleet/config own\n");
    expect(config?.warnings).toEqual([]);
  });

  test("says what it can't do", () => {
    expect(renderHomeManagerModule([x86])).toMatch(/^# It can't make the Nix daemon use the fleet: .*root/m);
  });
});

test("an undeclared option fails the evaluation, so that the stubs can find one", () => {
  expect(() => evaluateModules("nixos", [["{ nix.buildMachine = [ ]; }"]])).toThrow(
    /`nix.buildMachine' does not exist/,
  );
  expect(() => evaluateModules("nixos", [["{ nix.buildMachines = [ { port = 22; } ]; }"]])).toThrow(
    /`nix.buildMachines.\*.port' does not exist/,
  );
});
