/** The client directory's files, read back by this project and by the Nix that is installed. */
import { mkdirSync, writeFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { clientFiles, parseClientFiles } from "../../src/nix/clientFiles.ts";
import type { BuildMachine } from "../../src/nix/buildMachine.ts";
import { parseMachines, renderBuildersLine, renderMachines } from "../../src/nix/machinesFile.ts";
import { parseNixConf, renderNixConf, renderSettings } from "../../src/nix/nixConf.ts";
import { toHostKey } from "../../src/ssh/hostKey.ts";
import { directories, ed25519, fleets, x86 } from "./fleets.ts";
import { askBuildHook, expectedTable, machineTable, readNixConf, temporaryDirectory } from "./realNix.ts";

test("the files of any fleet are read back to an equal fleet", () => {
  fc.assert(
    fc.property(fleets(), directories, (fleet, directory) => {
      expect(parseClientFiles(clientFiles(fleet, { directory }), { directory })).toEqual(fleet);
    }),
  );
});

test("files that contradict each other are refused", () => {
  const directory = "/fleet";
  const files = clientFiles([x86], { directory });
  const others = clientFiles([{ ...x86, alias: "arm" }], { directory });
  expect(() => parseClientFiles({ ...files, ssh_config: others.ssh_config }, { directory })).toThrow(
    /ssh_config is "x86"/,
  );
  expect(() => parseClientFiles({ ...files, known_hosts: others.known_hosts }, { directory })).toThrow(
    /known_hosts is "x86"/,
  );
  const otherKeys = clientFiles([{ ...x86, publicHostKey: ed25519(new Uint8Array(32)) }], { directory });
  expect(() => parseClientFiles({ ...files, known_hosts: otherKeys.known_hosts }, { directory })).toThrow(
    /known_hosts is "x86", but allowed is the same host key as in machines/,
  );
});

describe("machines", () => {
  test("has eight columns, with the systems and the alias always written", () => {
    expect(renderBuildersLine({ ...x86, supportedFeatures: [] }, { sshKey: "/k" })).toBe(
      `ssh-ng://nix-builder@x86 x86_64-linux /k 4 2 - - ${x86.publicHostKey}`,
    );
    expect(renderBuildersLine({ ...x86, sshKey: "/own" }, { sshKey: "/k" }).split(" ")[2]).toBe("/own");
  });

  test("repeats mandatory features among the supported ones, where Nix looks for them", () => {
    const line = renderBuildersLine({ ...x86, supportedFeatures: ["kvm"], mandatoryFeatures: ["gpu"] });
    expect(line.split(" ").slice(5, 7)).toEqual(["kvm,gpu", "gpu"]);
  });

  test("of no builders is empty, and empty again when read", () => {
    expect([renderMachines([]), parseMachines("")]).toEqual(["", []]);
  });

  test("may hold comments, empty lines and several builders on a line, as Nix allows", () => {
    const [one, two] = [x86, { ...x86, alias: "arm" }].map((machine) => renderBuildersLine(machine));
    const aliases = parseMachines(`# fleet\n\n${one ?? ""} ; ${two ?? ""} # second\n`).map(({ alias }) => alias);
    expect(aliases).toEqual(["x86", "arm"]);
  });

  test.each(["x86", "ssh-ng://x86 x86_64-linux", "ssh-ng://u@x86 a-b - 1 1 - - - more"])("%j is refused", (line) => {
    expect(() => parseMachines(line)).toThrow(/machines is ".*", but allowed is eight columns/);
  });
});

describe("the build hook of the installed Nix", () => {
  function writeFiles(directory: string, fleet: readonly BuildMachine[]): void {
    for (const [name, text] of Object.entries(clientFiles(fleet, { directory })))
      writeFileSync(`${directory}/${name}`, text);
  }

  test("reads of every builder what was meant", { timeout: 60_000 }, () => {
    fc.assert(
      fc.property(fleets(4), (fleet) => {
        using directory = temporaryDirectory();
        writeFiles(directory.path, fleet);
        // No builder has this system, so that the hook lists all it knows. Of none it says nothing at all.
        const { messages, ssh } = askBuildHook(directory.path, { system: "none-none" });
        expect(ssh).toEqual([]);
        expect(machineTable(messages)).toEqual(expectedTable(fleet));
      }),
      { numRuns: 12 },
    );
  });

  test("connects to the alias, as the user, with the key, pinned under the alias", () => {
    using directory = temporaryDirectory();
    writeFiles(directory.path, [x86]);
    const { ssh, pins } = askBuildHook(directory.path, { system: "x86_64-linux", requiredFeatures: ["kvm"] });
    expect(ssh).toHaveLength(1);
    expect(ssh[0]).toEqual(expect.arrayContaining(["nix-builder@x86", "-i", `${directory.path}/id_ed25519`]));
    expect(pins).toEqual([`x86 ${toHostKey(x86.publicHostKey)}`]);
  });

  test("gives a builder with mandatory features only what requires them", () => {
    using directory = temporaryDirectory();
    writeFiles(directory.path, [{ ...x86, mandatoryFeatures: ["gpu"] }]);
    const ask = (...requiredFeatures: string[]) =>
      askBuildHook(directory.path, { system: "x86_64-linux", requiredFeatures }).ssh.length;
    expect([ask(), ask("kvm"), ask("kvm", "gpu")]).toEqual([0, 0, 1]);
  });
});

describe("nix.conf", () => {
  test("is read by the installed Nix as meant", () => {
    using directory = temporaryDirectory();
    const settings = { "max-jobs": 0, substituters: "https://a.example https://b.example" };
    writeFileSync(`${directory.path}/nix.conf`, renderNixConf({ directory: directory.path, settings }));
    const read = readNixConf(directory.path);
    expect(read["builders"]?.value).toBe(`@${directory.path}/machines`);
    expect(read["builders-use-substitutes"]?.value).toBe(true);
    expect(read["max-jobs"]?.value).toBe(0);
    expect(read["substituters"]?.value).toEqual(["https://a.example", "https://b.example"]);
  });

  test("names the machines file of any directory", () => {
    fc.assert(
      fc.property(directories, (directory) => {
        expect(parseNixConf(renderNixConf({ directory })).get("builders")).toBe(`@${directory}/machines`);
      }),
    );
    using parent = temporaryDirectory();
    const directory = `${parent.path}/ä+@b=c,d:e`;
    mkdirSync(directory);
    writeFileSync(`${directory}/nix.conf`, renderNixConf({ directory }));
    expect(readNixConf(directory)["builders"]?.value).toBe(`@${directory}/machines`);
  });

  test.each(["a#b", "a\nb", "a  b", " a", "a\tb"])("a value like %j is refused", (value) => {
    expect(() => renderSettings({ substituters: value })).toThrow(/nix.conf substituters is/);
  });

  test("a name that is none is refused", () => {
    expect(() => renderSettings({ "a b": 1 })).toThrow(/the name of a Nix setting/);
  });

  test("an empty value stays one", () => {
    expect(parseNixConf(renderSettings({ builders: "" }))).toEqual(new Map([["builders", ""]]));
  });
});
