/** Where Nix builds: our rules against Nix's own build hook on generated fleets, and against real builds. */
import { spawn, execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, it, onTestFinished } from "vitest";
import { explainInstallable, renderExplanations, takenSlots } from "../../src/cli/explain.ts";
import { clientEnvironment } from "../../src/client/environment.ts";
import type { BuildMachine } from "../../src/nix/buildMachine.ts";
import { parseRequirements } from "../../src/nix/derivation.ts";
import { renderMachines, storeUri } from "../../src/nix/machinesFile.ts";
import { decide, type Candidate, type ClientCapabilities, type Requirements } from "../../src/nix/scheduling.ts";
import { rowObstacle } from "../../src/nix/trust.ts";
import { LocalFleet, system } from "../support/localFleet.ts";
import { x86 } from "./fleets.ts";
import { askBuildHook, readNixConf, temporaryDirectory } from "./realNix.ts";

const systems = ["x86_64-linux", "aarch64-linux"];
const features = ["kvm", "big-parallel", "benchmark"];
const some = (values: readonly string[], minLength: number) => fc.subarray([...values], { minLength });

/** Fleets in which builders compete: few systems, features and speeds, and slots that are taken. */
const competitors = fc
  .array(
    fc.record({
      systems: some(systems, 1),
      supportedFeatures: some(features, 0),
      mandatoryFeatures: fc.oneof({ weight: 4, arbitrary: fc.constant<string[]>([]) }, some(features, 0)),
      maxJobs: fc.integer({ min: 1, max: 4 }),
      speedFactor: fc.integer({ min: 1, max: 3 }),
      taken: fc.integer({ min: 0, max: 4 }),
    }),
    { minLength: 1, maxLength: 4 },
  )
  .map((all) => all.map((one, index) => ({ ...x86, ...one, alias: `b${index}` })));
const requests = fc.record({
  system: fc.constantFrom(...systems, "builtin"),
  requiredFeatures: some(features, 0),
  amWilling: fc.boolean(),
});

const version = /[\d.]+/.exec(execFileSync("nix", ["--version"], { encoding: "utf8" }))?.[0] ?? "";

/** Locks these slots as builds under way do; resolves once they are locked. */
async function take(directory: string, slots: readonly string[]): Promise<() => Promise<void>> {
  const load = `${directory}/state/current-load`;
  mkdirSync(load, { recursive: true });
  if (slots.length === 0) return () => Promise.resolve();
  const words = slots.flatMap((slot) => ["flock", `${load}/${slot}`]);
  const holder = spawn(words[0] ?? "", [...words.slice(1), "sh", "-c", "echo locked; cat"]);
  const ended = new Promise((resolve) => holder.once("close", resolve));
  await new Promise<void>((resolve) =>
    holder.stdout.once("data", () => {
      resolve();
    }),
  );
  return async () => {
    holder.stdin.end();
    await ended;
  };
}

it("takes every slot for free where the kernel has no list of locks, as on macOS", () => {
  using directory = temporaryDirectory();
  mkdirSync(`${directory.path}/current-load`);
  writeFileSync(`${directory.path}/current-load/ssh-ng:__b1-0`, "");
  expect(takenSlots(undefined, directory.path, "/nonexistent/locks")).toEqual(new Set());
});

describe("the builder that is picked", () => {
  it("is the one that Nix's own hook picks", { timeout: 120_000 }, async () => {
    using configuration = temporaryDirectory();
    writeFileSync(`${configuration.path}/nix.conf`, "");
    const own = readNixConf(configuration.path);
    const list = (name: string): string[] => own[name]?.value as string[];
    let picked = 0;
    await fc.assert(
      fc.asyncProperty(competitors, requests, async (fleet, request) => {
        using directory = temporaryDirectory();
        writeFileSync(`${directory.path}/machines`, renderMachines(fleet));
        writeFileSync(`${directory.path}/nix.conf`, "");
        const slots = fleet.flatMap((builder) =>
          Array.from(
            { length: Math.min(builder.taken, builder.maxJobs) },
            (_, index) => `${storeUri(builder).replaceAll("/", "_")}-${index}`,
          ),
        );
        const release = await take(directory.path, slots);
        try {
          expect(takenSlots(undefined, `${directory.path}/state`)).toEqual(new Set(slots));
          const answer = askBuildHook(directory.path, request);
          const asked = answer.ssh.map((words) =>
            words.find((word) => /^(\w[\w-]*@)?b\d$/.test(word))?.replace(/.*@/, ""),
          );

          const candidates: Candidate[] = fleet.map((builder) => ({
            ...builder,
            load: Math.min(builder.taken, builder.maxJobs),
          }));
          const client: ClientCapabilities = {
            systems: [String(own["system"]?.value), ...list("extra-platforms")],
            features: list("system-features"),
            maxJobs: request.amWilling ? 1 : 0,
            nixVersion: version,
          };
          const required: Requirements = { ...request, preferLocal: false };
          const decision = decide(required, candidates, client);
          if (decision.place === "builder") picked += 1;
          expect(asked[0]).toBe(decision.alias);
          if (decision.place !== "builder")
            expect(answer.messages.includes("# postpone")).toBe(decision.place === "wait");
        } finally {
          await release();
        }
      }),
      { numRuns: 60 },
    );
    // A property that nothing is ever picked for would hold without our rules.
    expect(picked).toBeGreaterThan(5);
  });

  it("is the one on which real builds then are", { timeout: 120_000 }, async () => {
    const fleet = await LocalFleet.start(
      { alias: "t-slow", speedFactor: 1, supportedFeatures: ["kvm-like"] },
      { alias: "t-fast", speedFactor: 3, supportedFeatures: ["big-parallel"] },
      { alias: "t-odd", speedFactor: 9, supportedFeatures: [], mandatoryFeatures: ["benchmark"] },
    );
    onTestFinished(() => fleet.stop());
    const store = `${fleet.directory}/store`;
    const own = clientEnvironment({ clientDirectory: fleet.clientDirectory, store });
    // What can be fetched isn't built, but there is no cache to ask here.
    const env = { ...own, NIX_CONFIG: `${own["NIX_CONFIG"] ?? ""}\nsubstituters =\n` };
    for (const [name, required, place] of [
      ["plain", [], "t-fast"],
      ["slow", ["kvm-like"], "t-slow"],
      ["odd", ["benchmark"], "t-odd"],
      ["none", ["kvm-like", "big-parallel"], undefined],
    ] as const) {
      const expression = `derivation { name = "${name}"; system = "${system}"; builder = "/bin/sh"; args = [ "-c" "echo > $out" ]; requiredSystemFeatures = [ ${required.map((one) => `"${one}"`).join(" ")} ]; }`;
      const [explanation] = await explainInstallable(["-E", expression], env, store);
      expect(explanation).toMatchObject(
        place === undefined ? { place: "nowhere" } : { place: "builder", alias: place },
      );
      const build = await fleet.nixBuild(expression);
      expect(build.failed, build.all).toBe(place === undefined);
      if (place === undefined || explanation === undefined) continue;
      for (const { machine, local } of fleet.builders) {
        const has = execFileSync(
          "sh",
          ["-c", `test -e '${local.directory}/root${build.stdout.trim()}' && echo yes || echo no`],
          { encoding: "utf8" },
        );
        expect(`${machine.alias} ${has.trim()}`).toBe(`${machine.alias} ${machine.alias === place ? "yes" : "no"}`);
      }
      expect(await explainInstallable(["-E", expression], env, store)).toEqual([]);
    }
  });
});

describe("what is said", () => {
  const candidate = (machine: Partial<BuildMachine>, load = 0): Candidate => ({ ...x86, ...machine, load });
  const client: ClientCapabilities = { systems: ["x86_64-linux"], features: [], maxJobs: 0, nixVersion: "2.8.0" };
  const plain: Requirements = { system: "x86_64-linux", requiredFeatures: [], preferLocal: false };

  it("names every reason of every refusal", () => {
    const decision = decide(
      { ...plain, system: "aarch64-linux", requiredFeatures: ["nixos-test"] },
      [
        candidate({ alias: "a", supportedFeatures: [] }),
        candidate({
          alias: "b",
          systems: ["aarch64-linux"],
          mandatoryFeatures: ["gpu"],
          supportedFeatures: ["nixos-test"],
        }),
      ],
      client,
    );
    const derivation = {
      derivation: "/nix/store/x.drv",
      ...plain,
      system: "aarch64-linux",
      requiredFeatures: ["nixos-test"],
    };
    expect(renderExplanations([{ ...derivation, ...decision }])).toMatchInlineSnapshot(`
      "/nix/store/x.drv (aarch64-linux, requires nixos-test)
        → can't be built: no builder accepts it, and this machine builds nothing itself (max-jobs = 0)
          a  refuses: builds x86_64-linux, not aarch64-linux; lacks the feature nixos-test
          b  refuses: takes only what requires its mandatory feature gpu"
    `);
  });

  it("says where a build would fail because the client's Nix has no rows at its level, though Nix picks the builder", () => {
    const row = { ...x86, load: 0, trust: "signed" } as const;
    const noRow = rowObstacle(row, "2.8.0", "2.31.2");
    const { place, why } = decide(
      { system: "x86_64-linux", requiredFeatures: [], preferLocal: false },
      [{ ...row, noRow }],
      { systems: ["x86_64-linux"], features: [], maxJobs: 0, nixVersion: "2.8.0" },
    );
    expect(place).toBe("nowhere");
    expect(why).toMatch(
      /^Nix picks .*which refuses: at trust signed .* 2\.16 or newer on both sides, and here it is 2\.8\.0; use it as a store$/,
    );
    expect(rowObstacle(row, "2.18.1", "2.15.0")).toContain("there it is 2.15.0");
    expect(rowObstacle({ ...row, protocol: "ssh" }, "2.34", "2.34")).toContain("only ssh-ng");
    for (const trust of ["full", undefined] as const) expect(rowObstacle({ ...row, trust }, "2.8.0")).toBeUndefined();
  });

  it("tells a full builder from one that refuses, and when Nix would build here", () => {
    const full = candidate({ maxJobs: 2 }, 2);
    expect(decide(plain, [full], client)).toMatchObject({
      place: "wait",
      why: "all slots of the builders that accept it are taken",
    });
    expect(decide(plain, [full], { ...client, maxJobs: 1 })).toMatchObject({ place: "here" });
    expect(decide({ ...plain, preferLocal: true }, [candidate({})], { ...client, maxJobs: 1 }).why).toContain(
      "preferLocalBuild",
    );
    expect(decide({ ...plain, preferLocal: true }, [candidate({})], client).place).toBe("builder");
  });

  it("follows the client's version in comparing loads", () => {
    // 1 ÷ 2: nothing to a Nix that divides whole numbers, a load to one that doesn't.
    const candidates = [
      candidate({ alias: "busy", speedFactor: 2, maxJobs: 4 }, 1),
      candidate({ alias: "idle", speedFactor: 1 }),
    ];
    expect(decide(plain, candidates, client).alias).toBe("busy");
    expect(decide(plain, candidates, { ...client, nixVersion: "2.34.1" }).alias).toBe("idle");
  });
});

it.each([
  [
    "plain",
    `Derive([("out","/nix/store/o","","")],[],[],"x86_64-linux","/bin/sh",["-c","echo \\"(],[\\" > $out"],[("name","n"),("requiredSystemFeatures","kvm  big-parallel"),("preferLocalBuild","1")])`,
    ["kvm", "big-parallel"],
    true,
  ],
  [
    "with structured attributes",
    `Derive([("out","/nix/store/o","","")],[("/nix/store/i.drv",["out"])],[],"x86_64-linux","/bin/sh",[],[("__json","{\\"requiredSystemFeatures\\":[\\"kvm\\"],\\"preferLocalBuild\\":false}")])`,
    ["kvm"],
    false,
  ],
  [
    "content-addressed",
    `Derive([("out","","r:sha256","")],[],[],"x86_64-linux","/bin/sh",[],[("name","n")])`,
    ["ca-derivations"],
    false,
  ],
])("reads a derivation: %s", (_, text, requiredFeatures, preferLocal) => {
  expect(parseRequirements(text)).toEqual({ system: "x86_64-linux", requiredFeatures, preferLocal });
});

it("refuses what is no derivation, in words", () => {
  expect(() => parseRequirements("nonsense")).toThrow("the content of a .drv file");
});
