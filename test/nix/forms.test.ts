import { readFileSync, writeFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { checkBuildMachines, type BuildMachine } from "../../src/nix/buildMachine.ts";
import { renderBuildersOption } from "../../src/nix/buildersOption.ts";
import { cacheSettings, cachix, checkCache, garnix } from "../../src/nix/caches.ts";
import { defaultSshKey, parseClientFiles } from "../../src/nix/clientFiles.ts";
import { findForm, formNames, forms, type FormOptions } from "../../src/nix/forms.ts";
import { NotExpressible } from "../../src/nix/invalidValue.ts";
import { storeUri } from "../../src/nix/machinesFile.ts";
import { nixbuildNet } from "../../src/nix/nixbuildNet.ts";
import { parseNixConf } from "../../src/nix/nixConf.ts";
import { applyProfile, profileNames } from "../../src/nix/profiles.ts";
import { toHostKey } from "../../src/ssh/hostKey.ts";
import { fleets, x86 } from "./fleets.ts";
import { askBuildHook, readNixConf, temporaryDirectory } from "./realNix.ts";

/** For a runner of GitHub. */
const isUnreachable = ({ hostName, sshKey }: BuildMachine) =>
  sshKey !== undefined || hostName.startsWith("127.") || hostName === "::1";

const arm: BuildMachine = { ...x86, alias: "arm", hostName: "2001:db8::1", port: 22, systems: ["aarch64-linux"] };

describe("the forms", () => {
  test("render any fleet, in the same way each time", () => {
    fc.assert(
      fc.property(fleets(), (fleet) => {
        for (const name of formNames) {
          const options: FormOptions = { nixVersion: "2.34.0" };
          if (name === "githubWorkflow" && fleet.some(isUnreachable)) {
            expect(() => findForm(name).render(fleet, options)).toThrow(NotExpressible);
            continue;
          }
          const text = findForm(name).render(fleet, options);
          expect(text === "" || text.endsWith("\n"), name).toBe(true);
          expect(findForm(name).render(fleet, options)).toBe(text);
        }
      }),
      { numRuns: 30 },
    );
  });

  test("are listed where one is unknown", () => {
    expect(() => findForm("nixos")).toThrow(
      `form is "nixos", but allowed is one of nixosModule, darwinModule, homeManagerModule, machines, nixConf, sshConfig, ` +
        "knownHosts, githubWorkflow, buildersOption, fleetJson.",
    );
    expect(() => findForm("constructor")).toThrow(/but allowed is one of/);
  });

  test("that are plain files go together, whatever the directory and key", () => {
    const options = { directory: "/srv/fleet", sshKey: "/run/secrets/key" };
    const files = {
      machines: forms.machines.render([x86, arm], options),
      ssh_config: forms.sshConfig.render([x86, arm], options),
      known_hosts: forms.knownHosts.render([x86, arm], options),
    };
    const expected = [x86, arm].map((machine) => ({ ...machine, sshKey: "/run/secrets/key" }));
    expect(parseClientFiles(files, options)).toEqual(expected);
  });

  test("take caches", () => {
    const options = { caches: [garnix] };
    const settings = parseNixConf(forms.nixConf.render([x86], options));
    expect(settings.get("extra-substituters")).toBe("https://cache.garnix.io");
    expect(forms.nixosModule.render([x86], options)).toContain(
      `extra-trusted-public-keys = [\n      "${garnix.publicKey}"\n    ];`,
    );
  });

  test("include the fleet itself, which is read back to an equal one", () => {
    fc.assert(
      fc.property(fleets(), (fleet) => {
        expect(checkBuildMachines(JSON.parse(forms.fleetJson.render(fleet)) as BuildMachine[])).toEqual(fleet);
      }),
    );
  });
});

describe("the workflow", () => {
  const far = { ...x86, hostName: "203.0.113.7" };

  test.each(["127.0.0.1", "127.64.3.2", "::1", "0:0:0:0:0:0:0:1", "localhost", "x.localhost"])(
    "is refused for a builder at %s, which would be the runner itself",
    (hostName) => {
      expect(() => forms.githubWorkflow.render([far, { ...arm, hostName }])).toThrow(
        /^arm is at \S+, an address of its own machine that no runner of GitHub reaches: .*machines and sshConfig\.$/,
      );
    },
  );

  test("is refused for a builder whose key the runner doesn't have", () => {
    const nixbuild = nixbuildNet({ sshKey: "/root/.ssh/nixbuild" });
    expect(() => forms.githubWorkflow.render([far, nixbuild])).toThrow(
      /^nixbuild takes the key \/root\/.ssh\/nixbuild, which a runner of GitHub doesn't have/,
    );
    expect(forms.githubWorkflow.render([far])).toContain("Host x86\n");
  });
});

describe("the path of the key", () => {
  test("is beside the plain files in every form for root, and nixos/client.nix has the same default", () => {
    for (const form of [forms.nixosModule, forms.darwinModule]) {
      expect(form.render([x86])).toContain(`sshKey = "${defaultSshKey}";`);
      expect(form.render([x86], { directory: "/srv/fleet" })).toContain('sshKey = "/srv/fleet/id_ed25519";');
      expect(form.render([x86], { directory: "/srv/fleet", sshKey: "/run/k" })).toContain('sshKey = "/run/k";');
    }
    for (const form of [forms.machines, forms.sshConfig, forms.buildersOption]) {
      expect(form.render([x86], { nixVersion: "2.34" })).toContain(` ${defaultSshKey}`);
    }
    const module = readFileSync(new URL("../../nixos/client.nix", import.meta.url), "utf8");
    expect(module).toContain(`default = "${defaultSshKey}";`);
  });
});

describe("--builders", () => {
  test("is understood by the installed Nix, with user, address, key and pin", () => {
    for (const machine of [{ ...x86, port: 22 }, arm]) {
      using directory = temporaryDirectory();
      writeFileSync(`${directory.path}/machines`, renderBuildersOption([machine], { sshKey: "/k" }));
      const { ssh, pins } = askBuildHook(directory.path, { system: machine.systems[0] ?? "" });
      expect(ssh[0]).toEqual(expect.arrayContaining([`nix-builder@${machine.hostName}`, "-i", "/k"]));
      expect(pins).toEqual([`${machine.hostName} ${toHostKey(machine.publicHostKey)}`]);
    }
  });

  test("holds several builders", () => {
    using directory = temporaryDirectory();
    writeFileSync(`${directory.path}/machines`, renderBuildersOption([{ ...x86, port: 22 }, arm]));
    expect(askBuildHook(directory.path, { system: "none-none" }).messages).toMatch(/2\S* available machines/);
  });

  test("can't say a port before Nix 2.31, and names the forms that can", () => {
    const message =
      "x86 listens on port 2201, which a builders line can say from Nix 2.31 on only: " +
      "say so if the client has it (--nix-version 2.31), or use the forms machines and sshConfig together, where the port stands in ssh_config.";
    expect(() => forms.buildersOption.render([x86])).toThrow(message);
    expect(() => forms.buildersOption.render([x86], { nixVersion: "2.30.2" })).toThrow(message);
    expect(forms.buildersOption.render([x86], { nixVersion: "2.31.0" })).toContain(
      "ssh-ng://nix-builder@127.0.0.1:2201 ",
    );
    expect(forms.buildersOption.render([{ ...arm, port: 2 }], { nixVersion: "3.0" })).toContain("@[2001:db8::1]:2 ");
  });
});

describe("profiles", () => {
  test.each([
    ["remote-only", ["x86", "arm"], "0"],
    ["balanced", ["x86", "arm"], "auto"],
    ["local-first", ["arm"], "auto"],
    ["offline", [], "auto"],
  ] as const)("%s", (profile, aliases, maxJobs) => {
    const options: FormOptions = { profile, localSystems: ["x86_64-linux", "i686-linux"] };
    expect(applyProfile([x86, arm], options).builders.map(({ alias }) => alias)).toEqual(aliases);
    using directory = temporaryDirectory();
    writeFileSync(`${directory.path}/nix.conf`, forms.nixConf.render([x86, arm], options));
    expect(parseNixConf(forms.nixConf.render([x86, arm], options)).get("max-jobs")).toBe(maxJobs);
    expect(typeof readNixConf(directory.path)["max-jobs"]?.value).toBe("number");
    expect(forms.sshConfig.render([x86, arm], options)).toBe(forms.sshConfig.render([x86, arm]));
    expect(forms.knownHosts.render([x86, arm], options)).toBe(forms.knownHosts.render([x86, arm]));
    if (profile === "remote-only" || profile === "balanced") {
      expect(forms.machines.render([x86, arm], options)).toBe(forms.machines.render([x86, arm]));
    }
  });

  test("local-first keeps a builder for the systems that the client lacks", () => {
    const both = { ...x86, systems: ["x86_64-linux", "aarch64-linux"] };
    const { builders } = applyProfile([both], { profile: "local-first", localSystems: ["x86_64-linux"] });
    expect(builders).toEqual([{ ...both, systems: ["aarch64-linux"] }]);
  });

  test("an unknown one lists them, and local-first wants to know the client's systems", () => {
    expect(() => applyProfile([], { profile: "fast" as "offline" })).toThrow(profileNames.join(", "));
    expect(() => applyProfile([], { profile: "local-first" })).toThrow(/localSystems is \[\]/);
  });
});

describe("other systems of the field", () => {
  test("nixbuild.net is a builder like any other, and a remote store", () => {
    const nixbuild = nixbuildNet({ sshKey: "/run/secrets/nixbuild" });
    expect(toHostKey(nixbuild.publicHostKey)).toBe(
      "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPIQCZc54poJ8vqawd8TraNryQeJnvH1eLpIDgbiqymM",
    );
    const files = {
      machines: forms.machines.render([x86, nixbuild]),
      ssh_config: forms.sshConfig.render([x86, nixbuild]),
    };
    expect(files.machines).toMatch(
      /^ssh-ng:\/\/root@nixbuild x86_64-linux,aarch64-linux \/run\/secrets\/nixbuild 100 1 /m,
    );
    expect(files.ssh_config).toMatch(/^Host nixbuild\n {2}HostName eu.nixbuild.net$/m);
    expect(storeUri(nixbuild)).toBe("ssh-ng://root@nixbuild");
  });

  test("caches become settings of Nix", () => {
    const caches = [garnix, cachix("nix-community"), cachix("mine", `mine.cachix.org-1:${"A".repeat(43)}=`)];
    const settings = cacheSettings(caches);
    expect(settings["extra-substituters"]).toBe(
      "https://cache.garnix.io https://nix-community.cachix.org https://mine.cachix.org",
    );
    expect(String(settings["extra-trusted-public-keys"]).split(" ")).toHaveLength(3);
    expect(cacheSettings([])).toEqual({});
  });

  test.each([
    ["a cache without a known key", () => cachix("mine"), /https:\/\/app.cachix.org\/cache\/mine shows/],
    ["a cache's name that is none", () => cachix("a/b", garnix.publicKey), /cachix is "a\/b"/],
    ["a URL with a space", () => checkCache({ ...garnix, url: "https://a b" }), /cache url is/],
    ["a URL of another kind", () => checkCache({ ...garnix, url: "javascript:x" }), /cache url is/],
    ["a key cut short", () => checkCache({ ...garnix, publicKey: "a:AAAA" }), /cache publicKey is/],
    ["a key without its name", () => checkCache({ ...garnix, publicKey: `${"A".repeat(43)}=` }), /cache publicKey is/],
  ])("%s is refused", (_, make, message) => {
    expect(make).toThrow(message);
  });
});
