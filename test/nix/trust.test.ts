/** What each level of trust lets a client do, on real builders, with the installed Nix and a current one. */
import { readFileSync, writeFileSync } from "node:fs";
import { execa } from "execa";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { clientFiles } from "../../src/nix/clientFiles.ts";
import type { Trust } from "../../src/nix/trust.ts";
import { findCurrentNix } from "../support/currentNix.ts";
import { LevelBuilder, levelClient, system } from "../support/levelBuilder.ts";
import { newSigningKey } from "../support/signingKey.ts";
import { readNixConf, temporaryDirectory } from "./realNix.ts";

const found = process.getuid?.() === 0 ? findCurrentNix() : { missing: "only root may have users for each level" };
const current = "bin" in found ? found.bin : "";

/** Two derivations, the second of which reads the first; each on who has its feature. */
function graph(nonce: string, features: readonly [string, string] = ["", ""]): string {
  const derivation = (name: string, feature: string, script: string, attributes: string) =>
    `derivation { name = "trust-${nonce}-${name}"; system = "${system}"; builder = "/bin/sh"; args = [ "-c" ''${script}'' ];
      requiredSystemFeatures = [ ${feature === "" ? "" : `"${feature}"`} ]; ${attributes} }`;
  const first = derivation("first", features[0], `echo ${nonce} > $out`, "");
  return derivation("second", features[1], "read -r x < $first; echo second $x > $out", `first = ${first};`);
}

let nonces = 0;
const newNonce = (): string => `${process.pid}-${Date.now()}-${(nonces += 1)}`;

interface Way {
  readonly bin?: string;
  readonly words?: readonly string[];
}

/** Builds, as a row of `builders`; fails with what Nix said. */
async function build(clientDirectory: string, expression: string, { bin, words = [] }: Way = {}): Promise<string> {
  const { stdout } = await execa(
    "nix-build",
    ["-E", expression, "--no-out-link", "--option", "substituters", "", ...words],
    { env: levelClient(clientDirectory, bin), stdin: "ignore", timeout: 60_000 },
  );
  return readFileSync(`${clientDirectory}/../store${stdout.trim()}`, "utf8");
}

/** Builds on the builder's own store. */
function buildThere(clientDirectory: string, expression: string, { bin, words = [] }: Way = {}) {
  const env = levelClient(clientDirectory, bin);
  const evaluated = ["--eval-store", env["NIX_REMOTE"] ?? "", "--store", "ssh-ng://root@levels"];
  return execa(
    "nix",
    ["build", "--impure", "--no-link", "--expr", expression, "--option", "substituters", "", ...evaluated, ...words],
    { env, stdin: "ignore", timeout: 60_000 },
  );
}

/** Makes a path that only the client has, signed with this key or not at all, and that a builder is then to take as an input. */
async function onlyHere(
  clientDirectory: string,
  nonce: string,
  bin: string | undefined,
  secretKey?: string,
): Promise<string> {
  const key = `${clientDirectory}/signing-key`;
  if (secretKey !== undefined) writeFileSync(key, secretKey, { mode: 0o600 });
  const shell = `/bin/sh=${clientDirectory}/../../busybox`;
  const options = [
    ...[
      "--option",
      "sandbox",
      "true",
      "--option",
      "sandbox-paths",
      shell,
      "--option",
      "builders",
      "",
      "--option",
      "max-jobs",
      "1",
    ],
    ...(secretKey === undefined ? [] : ["--option", "secret-key-files", key]),
  ];
  const first = `derivation { name = "here-${nonce}"; system = "${system}"; builder = "/bin/sh"; args = [ "-c" "echo ${nonce} > $out" ]; }`;
  await build(clientDirectory, first, { ...(bin !== undefined && { bin }), words: options });
  return `derivation { name = "there-${nonce}"; system = "${system}"; builder = "/bin/sh";
    args = [ "-c" "read -r x < $first; echo there $x > $out" ]; first = ${first}; }`;
}

describe.each([
  ["the installed Nix", undefined],
  ["a current Nix", current],
])("a builder with %s", (_, builderBin) => {
  const client = newSigningKey("the-client");
  let builder: LevelBuilder;
  beforeAll(async () => {
    if ("missing" in found) return;
    builder = await LevelBuilder.start({
      ...(builderBin !== undefined && { bin: builderBin }),
      trusts: [client.publicKey],
    });
  });
  afterAll(() => builder.stop());
  beforeEach((context) => {
    if ("missing" in found) context.skip(found.missing);
  });

  describe.each([
    ["the installed Nix", undefined],
    ["a current Nix", current],
  ])("and a client with %s", (_, bin) => {
    const way = bin === undefined ? {} : { bin };
    const rows = bin !== undefined && builderBin !== undefined;

    it(`as a row, at none: ${rows ? "builds what depends on another build" : "is refused, as both must be 2.16 or newer"}`, async () => {
      const nonce = newNonce();
      const built = build(builder.writeClient("none"), graph(nonce), way);
      if (rows) expect(await built).toBe(`second ${nonce}\n`);
      else await expect(built).rejects.toThrow(/not privileged to build input-addressed derivations/);
    });

    it("as a row, at full: builds", async () => {
      const nonce = newNonce();
      expect(await build(builder.writeClient("full"), graph(nonce), way)).toBe(`second ${nonce}\n`);
    });

    it.each(["none", "full"] as const)("as a store, at %s: builds", async (trust) => {
      await buildThere(builder.writeClient(trust), graph(newNonce()), way);
    });

    it("refuses at none what only the client has, takes it signed at signed, and unsigned at full", async () => {
      const outcome = async (trust: Trust, secretKey?: string) => {
        const nonce = newNonce();
        const directory = builder.writeClient(trust);
        const expression = await onlyHere(directory, nonce, bin, secretKey);
        if (rows || trust === "full") return build(directory, expression, way);
        const env = levelClient(directory, bin);
        const { stdout } = await execa(
          "nix-build",
          ["-E", expression.replace(/.*first = (derivation .*); \}$/s, "$1"), "--no-out-link"],
          { env },
        );
        // An older Nix has no row at this level: the path alone shows it.
        await execa("nix", ["copy", "--to", "ssh-ng://root@levels", stdout.trim()], {
          env,
          stdin: "ignore",
          timeout: 60_000,
        });
        return "there";
      };
      await expect(outcome("none")).rejects.toThrow(/lacks a (valid )?signature/);
      await expect(outcome("signed")).rejects.toThrow(/lacks a (valid )?signature/);
      expect(await outcome("signed", client.secretKey)).toMatch(/^there/);
      await expect(outcome("signed", newSigningKey("the-client").secretKey)).rejects.toThrow(
        /lacks a (valid )?signature/,
      );
      expect(await outcome("full")).toMatch(/^there/);
    });

    it("takes at signed what was built before there was a key, once it is signed as the docs say", async () => {
      const directory = builder.writeClient("signed");
      const nonce = newNonce();
      const expression = await onlyHere(directory, nonce, bin);
      const env = levelClient(directory, bin);
      const key = `${directory}/signing-key`;
      writeFileSync(key, client.secretKey, { mode: 0o600 });
      await execa("nix", ["store", "sign", "--key-file", key, "--all"], { env, stdin: "ignore", timeout: 60_000 });
      const first = expression.replace(/.*first = (derivation .*); \}$/s, "$1");
      const { stdout } = await execa("nix-build", ["-E", first, "--no-out-link"], { env });
      await execa("nix", ["copy", "--to", "ssh-ng://root@levels", stdout.trim()], { env, timeout: 60_000 });
      expect(builder.has(stdout.trim())).toBe(true);
    });
  });
});

it.each([
  ["the installed Nix", undefined],
  ["a current Nix", current],
])("the key with which a client signs is read by %s beside a person's own", (_, bin) => {
  using directory = temporaryDirectory();
  const files = clientFiles([], { directory: directory.path, signs: true });
  writeFileSync(`${directory.path}/fleet.conf`, files["nix.conf"]);
  writeFileSync(`${directory.path}/nix.conf`, `secret-key-files = /own\ninclude ${directory.path}/fleet.conf\n`);
  const read = readNixConf(directory.path, bin === undefined ? {} : { bin });
  expect(read["secret-key-files"]?.value).toEqual(["/own", `${directory.path}/signing-key`]);
});

describe("a graph that spans two builders, at none", () => {
  const key = newSigningKey("builders");
  const two: LevelBuilder[] = [];
  const start = async (...builders: readonly [string, string | undefined, typeof key][]) => {
    for (const [alias, bin, signer] of builders) {
      const settings = [`system-features = ${alias}`];
      two.push(await LevelBuilder.start({ alias, signer, settings, ...(bin !== undefined && { bin }) }));
    }
  };
  afterAll(() => Promise.all(two.map((builder) => builder.stop())));
  beforeEach((context) => {
    if ("missing" in found) context.skip(found.missing);
  });

  const spanning = (first: LevelBuilder, second: LevelBuilder): string => {
    const row = (builder: LevelBuilder) => {
      return {
        ...builder.machine("none"),
        supportedFeatures: [builder.alias],
        sshKey: `${builder.directory}/client-key`,
      };
    };
    for (const builder of [first, second])
      writeFileSync(`${builder.directory}/client-key`, builder.keys.none.privateKey, { mode: 0o600 });
    return first.writeClient("none", row(first), [row(second)]);
  };

  it("is built where they share a signing key, and not where they don't", async () => {
    await start(["one", current, key], ["two", current, key], ["three", current, newSigningKey("three")]);
    const [one, second, three] = two as [LevelBuilder, LevelBuilder, LevelBuilder];
    const nonce = newNonce();
    expect(await build(spanning(one, second), graph(nonce, ["one", "two"]), { bin: current })).toBe(
      `second ${nonce}\n`,
    );
    await expect(build(spanning(one, three), graph(newNonce(), ["one", "three"]), { bin: current })).rejects.toThrow(
      /lacks a (valid )?signature/,
    );
  }, 60_000);
});
