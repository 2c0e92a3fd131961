/** `--remote-store` against a builder that answers with what nobody asked for. */
import { existsSync, statfsSync } from "node:fs";
import { execa } from "execa";
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { stops } from "../support/attack.ts";
import { runInRemoteStore } from "../../src/cli/remoteStore.ts";
import { CliError } from "../../src/cli/stack.ts";
import { takeBack, type Taking } from "../../src/cli/takeBack.ts";
import { findCurrentNix, type CurrentNix } from "../support/currentNix.ts";
import { startLyingBuilder, type LyingBuilder } from "../support/lyingBuilder.ts";
import { system } from "../support/localFleet.ts";

/** A path that a client may come to need, and nobody has asked for. */
const planted = (tag: string) => `/nix/store/00000000000000000000000000000001-bash-of-${tag}`;

let builder: LyingBuilder;
beforeAll(async () => {
  builder = await startLyingBuilder("liar");
});
afterAll(async () => {
  await builder.stop();
});

/** The text of a derivation that nobody has built. */
const derivation = (name: string, more = "") =>
  `derivation { name = "${name}"; system = "${system}"; builder = "/bin/sh"; args = [ "-c" "echo ${name} > $out" ]; ${more} }`;

/** One whose output anybody can check. */
const fixed = (tag: string, text: string) =>
  `(derivation {
    name = "fixed-${tag}"; system = "${system}"; builder = "/bin/sh"; args = [ "-c" "printf ${text} > $out" ];
    outputHashAlgo = "sha256"; outputHashMode = "flat"; outputHash = builtins.hashString "sha256" "${text}";
  })`;

/** The path of its output. */
const outputOf = (expression: string) =>
  builder.client("nix-store", "--query", "--outputs", builder.client("nix-instantiate", "-E", expression));

const has = (path: string) => existsSync(`${builder.store}${path}`);

async function run(bin: string | undefined, words: readonly string[], program: "nix-build" | "nix" = "nix-build") {
  const said: string[] = [];
  const problem = vi.spyOn(console, "error").mockImplementation((line: string) => said.push(line));
  const log = vi.spyOn(console, "log").mockImplementation(() => undefined);
  try {
    const exitCode = await runInRemoteStore({
      program,
      words: [...words, program === "nix" ? "--no-link" : "--no-out-link"],
      env: builder.clientEnvironment(bin),
      builder: "a",
      uri: builder.uri,
      store: builder.store,
      explain: () => undefined,
    });
    return { exitCode, said: said.join("\n"), printed: log.mock.calls.flat().join("\n") };
  } catch (error) {
    // As the CLI itself does.
    if (!(error instanceof CliError)) throw error;
    return { exitCode: 1, said: error.message, printed: "" };
  } finally {
    problem.mockRestore();
    log.mockRestore();
  }
}

/** The installed Nix, and a current one, which asks the builder for more. */
const clients = [["the installed Nix"], ["a current Nix"]] as const;

let current: CurrentNix;
beforeAll(() => {
  current = findCurrentNix();
}, 300_000);

describe.each(clients)("with %s, a client", (which) => {
  stops({
    attack: "a builder plants paths in the client's store",
    tried:
      "--remote-store: names other paths as references or results, sends content that the hash doesn't fit, sends without end",
    stopped:
      "only outputs of what was evaluated come back, by name; the rest is refused, or checked by hash or signature",
  });

  let bin: string | undefined;
  const tag = which.replaceAll(" ", "-");
  beforeEach((context) => {
    if (which === "the installed Nix") return;
    if ("missing" in current) context.skip(current.missing);
    else bin = current.bin;
  });

  it("takes what it asked for", async () => {
    const expression = derivation(`honest-${tag}`);
    const taken = await run(bin, ["-E", expression]);
    expect(taken).toMatchObject({ exitCode: 0, printed: outputOf(expression) });
    expect(builder.read(outputOf(expression))).toBe(`honest-${tag}\n`);
    const byNix = derivation(`by-nix-${tag}`);
    expect(await run(bin, ["build", "--impure", "--expr", byNix], "nix")).toMatchObject({
      exitCode: 0,
      printed: outputOf(byNix),
    });
    expect(builder.read(outputOf(byNix))).toBe(`by-nix-${tag}\n`);
  });

  it("takes all that a result refers to, be it built, fetched or a source", async () => {
    const part = `(${derivation(`part-${tag}`)})`;
    const source = `builtins.toFile "source-${tag}" "text"`;
    const expression = `derivation {
      name = "whole-${tag}"; system = "${system}"; builder = "/bin/sh"; outputs = [ "out" "dev" ];
      part = ${part}; fixed = ${fixed(tag, "right")}; source = ${source};
      args = [ "-c" "echo $part $fixed $source $dev > $out; echo > $dev" ];
    }`;
    const { exitCode } = await run(bin, ["-E", expression, "--option", "keep-failed", "false"]);
    expect(exitCode).toBe(0);
    const out =
      outputOf(expression)
        .split("\n")
        .find((path) => !path.endsWith("-dev")) ?? "";
    const references = builder.read(out).trim().split(" ");
    expect(references).toHaveLength(4);
    expect(references.filter((path) => !has(path))).toEqual([]);
  });

  it("takes a path that was not asked for if a trusted cache has signed it", async () => {
    const expression = derivation(`signed-${tag}`);
    const path = `${planted(tag)}-signed`;
    builder.claim([
      { path, text: "of a cache" },
      { path: outputOf(expression), text: "result", references: [path] },
    ]);
    builder.sign(path);
    const { exitCode } = await run(bin, ["-E", expression]);
    expect([exitCode, has(path)]).toEqual([0, true]);
  });

  it("stops a builder that sends without end, and one that says nothing", async () => {
    const expression = derivation(`endless-${tag}`);
    const out = outputOf(expression);
    builder.claim([{ path: out, text: "" }]);
    // A terabyte of nothing, which takes no room there.
    builder.onBuilder("sh", ["-c", `chmod u+w ${builder.inStore(out)} && truncate -s 1T ${builder.inStore(out)}`]);
    const { bavail, bsize } = statfsSync(builder.directory);
    const taking = {
      env: builder.clientEnvironment(bin),
      uri: builder.uri,
      store: builder.store,
      results: [{ path: out, of: { derivation: builder.client("nix-instantiate", "-E", expression), output: "out" } }],
    };
    const free = bavail * bsize - 2 ** 28;
    await expect(takeBack({ ...taking, reserve: { bytes: free } })).rejects.toThrow("sends more than the disk of");
    expect(has(out)).toBe(false);
    const restore = builder.replaceCommand("exec sleep 60");
    await expect(takeBack({ ...taking, patience: 1000 })).rejects.toThrow("has not said within 1 s");
    restore();
  });

  describe("from a builder whose connections are slow after the first", () => {
    /** What a result is taken from, with the first of its connections as fast as it can be. */
    const slow = async (name: string, make: string, bytesPerSecond: number, limits: Partial<Taking>) => {
      const expression = derivation(`${name}-${tag}`);
      const out = outputOf(expression);
      builder.claim([{ path: out, text: "" }]);
      builder.onBuilder("sh", ["-c", `cd ${builder.inStore("/nix/store")} && rm -f "$0" && ${make}`, out.slice(11)]);
      builder.nowHas(out);
      const restore = builder.throttle(bytesPerSecond);
      const taking = {
        env: builder.clientEnvironment(bin),
        uri: builder.uri,
        store: builder.store,
        results: [
          { path: out, of: { derivation: builder.client("nix-instantiate", "-E", expression), output: "out" } },
        ],
        ...limits,
      };
      try {
        return { out, exitCode: await takeBack(taking), problem: "" };
      } catch (error) {
        if (!(error instanceof CliError)) throw error;
        return { out, exitCode: undefined, problem: error.message };
      } finally {
        restore();
      }
    };

    it.each([
      ["falls silent", 0],
      ["drips", 50_000],
    ])("gives up where it %s", async (what, rate) => {
      const { out, problem } = await slow(what.replace(" ", "-"), 'truncate -s 20M "$0"', rate, { patience: 3000 });
      expect(problem).toContain("has sent less than a MiB of the results in 3 s");
      expect(has(out)).toBe(false);
    });

    it("takes what comes slowly", async () => {
      const { out, exitCode } = await slow("slow", 'truncate -s 8M "$0"', 1_500_000, { patience: 2000 });
      expect([exitCode, has(out)]).toEqual([0, true]);
    });

    it("gives up where it sends files without end", async () => {
      const { ffree } = statfsSync(builder.directory);
      const make = 'mkdir "$0" && cd "$0" && seq 8000 | xargs touch';
      const { out, problem } = await slow("files", make, 200_000, { reserve: { files: ffree - 2000 } });
      expect(problem).toContain("sends more than the disk of");
      expect(has(out)).toBe(false);
    });
  });

  it("builds what prints more than fits into memory", { timeout: 120_000 }, async () => {
    const line = "x".repeat(1000);
    const expression = derivation(`chatty-${tag}`).replace("echo", `yes ${line} | head -c 120000000; echo`);
    expect(await run(bin, ["-E", expression, "--quiet"])).toMatchObject({
      exitCode: 0,
      printed: outputOf(expression),
    });
  });

  it.each(["nix-build", "nix"] as const)("refuses one result in the place of another of %s", async (program) => {
    const [one, other] = ["one", "other"].map((name) => derivation(`${name}-${program}-${tag}`)) as [string, string];
    builder.claim([{ path: outputOf(other), text: "evil" }]);
    for (const expression of [one, other]) builder.receive(builder.client("nix-instantiate", "-E", expression));
    builder.sql(`update DerivationOutputs set path = '${outputOf(other)}' where path = '${outputOf(one)}'`);
    const both = `{ a = ${one}; b = ${other}; }`;
    const words =
      program === "nix" ? ["build", "--impure", "--expr", both, "a", "b"] : ["-E", both, "-A", "a", "-A", "b"];
    const { exitCode, said, printed } = await run(bin, words, program);
    if (exitCode === 0) expect(printed.split("\n").sort()).toEqual([outputOf(one), outputOf(other)].sort());
    else expect(said).toContain(outputOf(other));
  });

  it("says of a derivation whose content decides its path that nobody here could tell", async () => {
    const floating = `__contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";`;
    const feature = ["--option", "extra-experimental-features", "ca-derivations"];
    const { exitCode, said } = await run(bin, ["-E", derivation(`floating-${tag}`, floating), ...feature]);
    expect(exitCode).toBe(1);
    expect(said).toMatch(/^which path the output 'out' of \S+\.drv has, its content decides/);
  });

  it("refuses a path that the builder calls a reference of a result", async () => {
    const expression = derivation(`reference-${tag}`);
    const out = outputOf(expression);
    builder.claim([
      { path: planted(tag), text: "evil" },
      { path: out, text: "result", references: [planted(tag)] },
    ]);
    const { exitCode, said } = await run(bin, ["-E", expression]);
    expect(has(planted(tag))).toBe(false);
    expect(has(out)).toBe(false);
    expect(exitCode).toBe(1);
    expect(said).toContain(planted(tag));
  });

  it("refuses more references than a command line holds, and names some", async () => {
    const expression = derivation(`many-${tag}`);
    const out = outputOf(expression);
    builder.claim([{ path: out, text: "result" }]);
    builder.sql(`
      with recursive numbers(n) as (select 1 union all select n + 1 from numbers where n < 30000)
        insert or ignore into ValidPaths (path, hash, registrationTime, narSize)
        select printf('/nix/store/%032d-one-of-many', n), 'sha256:' || printf('%064d', 0), 1, 1 from numbers;
      insert or ignore into Refs (referrer, reference)
        select (select id from ValidPaths where path = '${out}'), id from ValidPaths where path like '%-one-of-many'`);
    const { exitCode, said } = await run(bin, ["-E", expression]);
    expect([exitCode, has(out)]).toEqual([1, false]);
    expect(said).toMatch(/-one-of-many(, \S+-one-of-many){4} and 29995 more/);
  });

  it.each(["nix-build", "nix"] as const)("refuses another path in the place of a result of %s", async (program) => {
    const expression = derivation(`instead-${program}-${tag}`);
    const drv = builder.client("nix-instantiate", "-E", expression);
    const other = `${planted(tag)}-${program}`;
    builder.claim([{ path: other, text: "evil" }]);
    builder.receive(drv);
    builder.sql(`update DerivationOutputs set path = '${other}' where path = '${outputOf(expression)}'`);
    const words = program === "nix" ? ["build", "--impure", "--expr", expression] : ["-E", expression];
    const { exitCode, said, printed } = await run(bin, words, program);
    expect(has(other)).toBe(false);
    // Only a current nix-build asks the builder which path it is.
    if (exitCode === 0) expect(printed).toBe(outputOf(expression));
    else expect(said).toContain(other);
  });

  it.each(["nix-build", "nix"] as const)("refuses it for what the evaluation by %s has to read", async (program) => {
    const early = derivation(`early-${program}-${tag}`);
    const expression = derivation(`late-${program}-${tag}`, `text = builtins.readFile (${early});`);
    const path = `${planted(tag)}-early-${program}`;
    builder.claim([
      { path, text: "evil" },
      { path: outputOf(early), text: "result", references: [path] },
    ]);
    const words = program === "nix" ? ["build", "--impure", "--expr", expression] : ["-E", expression];
    const { exitCode } = await run(bin, words, program);
    expect([exitCode === 0, has(path)]).toEqual([false, false]);
  });

  it("has nothing built on this machine while nix evaluates", async () => {
    // By Nix itself, so that this machine could.
    const early = `derivation { name = "here-${tag}"; system = "builtin"; builder = "builtin:buildenv"; derivations = ""; manifest = "/x"; }`;
    const expression = derivation(`after-here-${tag}`, `text = builtins.attrNames (builtins.readDir (${early}));`);
    const { exitCode } = await run(bin, ["build", "--impure", "--expr", expression], "nix");
    expect([exitCode === 0, has(outputOf(early))]).toEqual([false, false]);
  });

  it("refuses content of a fixed-output derivation that its hash doesn't fit", async () => {
    const source = fixed(`bad-${tag}`, "wrong");
    const expression = derivation(`needs-fixed-${tag}`, `source = ${source};`);
    builder.claim([
      { path: outputOf(source), text: "something else" },
      { path: outputOf(expression), text: "result", references: [outputOf(source)] },
    ]);
    const { exitCode, said } = await run(bin, ["-E", expression]);
    expect(has(outputOf(source))).toBe(false);
    expect(exitCode).toBe(1);
    expect(said).toContain(outputOf(source));
  });

  describe("and the builder as one of `builders`", () => {
    const build = (expression: string) =>
      execa("nix-build", ["-E", expression, "--no-out-link"], {
        env: builder.clientEnvironment(bin),
        reject: false,
        all: true,
      });

    it("refuses a path that the builder calls a reference of a result", async () => {
      const expression = derivation(`row-${tag}`);
      const path = `${planted(tag)}-row`;
      builder.claim([
        { path, text: "evil" },
        { path: outputOf(expression), text: "result", references: [path] },
      ]);
      const { exitCode, all } = await build(expression);
      expect([exitCode === 0, has(path)]).toEqual([false, false]);
      expect(all).toContain(`path '${path}' is not valid`);
    });

    it("takes content of a fixed-output derivation unchecked, which is Nix's own doing: docs/clients.md says so", async () => {
      const source = fixed(`row-${tag}`, "right");
      builder.claim([{ path: outputOf(source), text: "something else" }]);
      const { exitCode } = await build(source);
      expect([exitCode, builder.read(outputOf(source))]).toEqual([0, "something else"]);
    });
  });
});
