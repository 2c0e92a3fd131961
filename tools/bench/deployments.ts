/** How long deployments take: `npm start` against an empty Pulumi program, and many builders against two. */
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { execa } from "execa";
import { stringify } from "yaml";
import { cleanEnvironment, copyOfCheckout } from "../../test/support/checkoutCopy.ts";
import { checkout } from "../launch.mjs";
import { setUp } from "../setup/index.ts";
import { time, type Claim } from "./measure.ts";

/** Pulumi's own template `typescript`, without a resource. */
const emptyProgram: Readonly<Record<string, string>> = {
  "Pulumi.yaml": "name: empty\nruntime: nodejs\n",
  "package.json": `{ "name": "empty", "main": "index.ts", "devDependencies": { "typescript": "*" }, "dependencies": { "@pulumi/pulumi": "*" } }`,
  "tsconfig.json": `{ "compilerOptions": { "strict": true, "outDir": "bin", "target": "es2020", "module": "nodenext", "moduleResolution": "nodenext", "sourceMap": true }, "files": ["index.ts"] }`,
  "index.ts": `import * as pulumi from "@pulumi/pulumi";\nexport const stack = pulumi.getStack();\n`,
};

/**
 * Measures in `rounds` rounds, each command once a round.
 *
 * @param say Called with a line for each thing measured.
 */
export async function benchDeployments(rounds: number, say: (line: string) => void): Promise<Claim[]> {
  const { env } = await setUp();
  const folder = mkdtempSync(join(tmpdir(), "fleet-bench-"));
  const clone = copyOfCheckout(join(folder, "clone"));
  const emptyEnv = {
    // Pulumi as it comes: the compile cache is this project's doing.
    ...cleanEnvironment(env),
    PULUMI_CONFIG_PASSPHRASE: "bench",
    PULUMI_SKIP_UPDATE_CHECK: "true",
    // Where the download site is out of reach, looking for it would make the baseline slow.
    PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION: "true",
  };
  const pulumiIn =
    (project: string) =>
    (...words: string[]) =>
      execa("pulumi", [...words, "--non-interactive"], {
        cwd: project,
        env: { ...emptyEnv, PULUMI_BACKEND_URL: `file://${project}` },
        extendEnv: false,
      });
  const run = (...words: string[]) =>
    execa("npm", ["run", "--silent", ...words], { cwd: clone, env: cleanEnvironment(env) });
  const start = () => run("start");
  const destroy = () => run("pulumi", "--", "destroy", "--yes", "--skip-preview");
  const configure = (count: number) => {
    writeFileSync(
      join(clone, "Pulumi.dev.yaml"),
      stringify({ config: { "nix-builder-fleet:builders": localBuilders(count) } }),
    );
  };
  const times = { emptyFirst: [], first: [], emptySecond: [], second: [], two: [], sixteen: [] } as Record<
    "emptyFirst" | "first" | "emptySecond" | "second" | "two" | "sixteen",
    number[]
  >;
  const measure = async (name: keyof typeof times, work: () => Promise<unknown>): Promise<void> => {
    const milliseconds = await time(work);
    times[name].push(milliseconds);
    say(`${name}: ${(milliseconds / 1000).toFixed(2)} s`);
  };
  try {
    await run("setup");
    for (let round = 0; round < rounds; round++) {
      // A new one each round: Pulumi compiles a program once for its folder, and keeps that.
      const pulumi = pulumiIn(emptyProject(join(folder, `empty${round}`)));
      await pulumi("stack", "init", "bench");
      await measure("emptyFirst", () => pulumi("up", "--yes", "--skip-preview"));
      copyFileSync(join(checkout, "Pulumi.dev.yaml"), join(clone, "Pulumi.dev.yaml"));
      await measure("first", start);
      await measure("emptySecond", () => pulumi("up", "--yes", "--skip-preview"));
      await measure("second", start);
      await destroy();
      configure(2);
      await measure("two", start);
      await destroy();
      configure(16);
      await measure("sixteen", start);
      await destroy();
    }
  } finally {
    await destroy();
    rmSync(folder, { recursive: true, force: true });
  }
  return [
    {
      claim: "npm start, from nothing to two verified builders / an empty program's up",
      measured: times.first,
      baseline: times.emptyFirst,
      limit: { atMost: 3 },
    },
    {
      claim: "npm start with nothing to do / an empty program's up with nothing to do",
      measured: times.second,
      baseline: times.emptySecond,
      limit: { atMost: 1.5 },
    },
    {
      claim: "16 local builders / 2 local builders",
      measured: times.sixteen,
      baseline: times.two,
      limit: { atMost: 2.5 },
    },
  ];
}

/** Half of them emulated, as in the default fleet. */
function localBuilders(count: number): object[] {
  const half = { provider: "local", count: count / 2 };
  return [
    { name: "x86", system: "x86_64-linux", ...half },
    { name: "arm", system: "aarch64-linux", ...half },
  ];
}

function emptyProject(folder: string): string {
  mkdirSync(folder);
  for (const [name, text] of Object.entries(emptyProgram)) writeFileSync(join(folder, name), text);
  symlinkSync(join(checkout, "node_modules"), join(folder, "node_modules"));
  return folder;
}
