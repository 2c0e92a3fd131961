/** What the other tests ask the installed Nix, asked of a current one. */
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import fc from "fast-check";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { renderBuildersOption } from "../../src/nix/buildersOption.ts";
import { clientFiles } from "../../src/nix/clientFiles.ts";
import { renderNix } from "../../src/nix/nixExpression.ts";
import { renderNixosModule } from "../../src/nix/nixosModule.ts";
import { toHostKey } from "../../src/ssh/hostKey.ts";
import { findCurrentNix, type CurrentNix } from "../support/currentNix.ts";
import { startLocalBuilder, type LocalBuilder } from "../support/localBuilder.ts";
import { ed25519, fleets, x86 } from "./fleets.ts";
import { build, writeClient } from "./realBuild.ts";
import { askBuildHook, evaluate, expectedTable, machineTable, readNixConf, temporaryDirectory } from "./realNix.ts";

let found: CurrentNix;
let bin = "";
beforeAll(() => {
  found = findCurrentNix();
  if ("bin" in found) bin = found.bin;
}, 300_000);
beforeEach((context) => {
  if ("missing" in found) context.skip(found.missing);
});

test("is newer than 2.31, so that it reads ports", () => {
  const version = execFileSync(`${bin}/nix`, ["--version"], { encoding: "utf8" });
  const [, major = "0", minor = "0"] = /(\d+)\.(\d+)/.exec(version) ?? [];
  expect(Number(major) * 100 + Number(minor)).toBeGreaterThan(231);
});

test("reads of every builder what was meant", { timeout: 60_000 }, () => {
  fc.assert(
    fc.property(fleets(4), (fleet) => {
      using directory = temporaryDirectory();
      const files = clientFiles(fleet, { directory: directory.path });
      for (const [name, text] of Object.entries(files)) writeFileSync(`${directory.path}/${name}`, text);
      const { messages } = askBuildHook(directory.path, { system: "none-none" }, { bin });
      expect(machineTable(messages)).toEqual(expectedTable(fleet));
    }),
    { numRuns: 12 },
  );
});

test("reads nix.conf as meant", () => {
  using directory = temporaryDirectory();
  const files = clientFiles([x86], { directory: directory.path, profile: "remote-only" });
  writeFileSync(`${directory.path}/nix.conf`, files["nix.conf"]);
  const read = readNixConf(directory.path, { bin });
  expect(read["builders"]?.value).toBe(`@${directory.path}/machines`);
  expect([read["builders-use-substitutes"]?.value, read["max-jobs"]?.value]).toEqual([true, 0]);
});

test("understands --builders with a port, and pins the host", () => {
  using directory = temporaryDirectory();
  const option = renderBuildersOption([{ ...x86, hostName: "192.0.2.1" }], { nixVersion: "2.31" });
  writeFileSync(`${directory.path}/machines`, option);
  const { ssh, pins } = askBuildHook(directory.path, { system: "x86_64-linux" }, { bin });
  expect(ssh[0]).toEqual(expect.arrayContaining(["nix-builder@192.0.2.1", "-p2201"]));
  // It asks ssh for a shared connection too, with the same pin.
  expect([...new Set(pins)]).toEqual([`192.0.2.1 ${toHostKey(x86.publicHostKey)}`]);
});

test("evaluates the module and the data in it", () => {
  const values = fc.sample(fc.string({ unit: fc.constantFrom("$", "{", '"', "'", "\\", "\n", " ", "a") }), 200);
  expect(evaluate(renderNix(values), { bin })).toEqual(values);
  const lib = "{ mkBefore = x: x; mkOverride = _: x: x; optional = _: _: [ ]; }";
  const config = evaluate(`(${renderNixosModule([x86])}) { lib = ${lib}; config = { }; }`, { bin });
  expect(config).toMatchObject({ nix: { buildMachines: [{ hostName: "x86", publicHostKey: x86.publicHostKey }] } });
});

describe("as the client of a builder with the installed Nix", () => {
  let builder: LocalBuilder;
  beforeAll(async () => {
    builder = await startLocalBuilder();
  });
  afterAll(async () => {
    await builder.stop();
  });
  const otherKey = ed25519(new Uint8Array(32).fill(1));

  test.each(["builders", "remote store"] as const)("builds as %s, and refuses another host key", async (store) => {
    const files = (publicHostKey: string) =>
      writeClient(builder, (directory) =>
        clientFiles([{ ...builder.machine, publicHostKey }], { directory, multiplexing: false }),
      );
    await expect(build(builder, files(builder.machine.publicHostKey), { bin, store })).resolves.toContain("pinned-");
    await expect(build(builder, files(otherKey), { bin, store })).rejects.toThrow(/Host key verif|HOST IDENT/);
  });

  test("builds over one shared connection, first opened and then used", async () => {
    const directory = writeClient(builder, (path) => clientFiles([builder.machine], { directory: path }));
    await build(builder, directory, { bin });
    const ssh = (...args: string[]) =>
      execFileSync("ssh", ["-F", `${directory}/ssh_config`, ...args, "here"], { stdio: "pipe", timeout: 10_000 });
    ssh("-O", "check");
    await build(builder, directory, { bin });
    await build(builder, directory, { bin, store: "remote store" });
    ssh("-O", "exit");
  });

  test("builds with --builders alone, and refuses another host key", async () => {
    const client = () =>
      writeClient(builder, () => ({ "nix.conf": "", ssh_config: "BatchMode yes\nUpdateHostKeys no\n" }));
    const option = (directory: string, publicHostKey: string) => [
      "--builders",
      renderBuildersOption([{ ...builder.machine, publicHostKey }], {
        sshKey: `${directory}/id_ed25519`,
        nixVersion: "2.31",
      }),
    ];
    const good = client();
    const goodArgs = option(good, builder.machine.publicHostKey);
    await expect(build(builder, good, { bin, args: goodArgs })).resolves.toContain("pinned-");
    const bad = client();
    await expect(build(builder, bad, { bin, args: option(bad, otherKey) })).rejects.toThrow(
      /Host key verif|HOST IDENT/,
    );
  });
});
