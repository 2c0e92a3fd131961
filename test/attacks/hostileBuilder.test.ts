/** What a builder that means harm can put on a person's terminal, and how long and how much it can make this program wait and hold. */
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer, type AddressInfo, type Socket } from "node:net";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { stops } from "../support/attack.ts";
import { parseMeasurement } from "../../src/bootstrap/measure.ts";
import { attack, forbidden } from "../support/hostileText.ts";
import { print, startHostileBuilder, type HostileBuilder } from "../support/hostileBuilder.ts";
import { restartDaemon } from "../../src/local/container.ts";
import { LocalFleet } from "../support/localFleet.ts";

let evil: HostileBuilder;

beforeAll(async () => {
  evil = await startHostileBuilder("127.83.0.1", `banner ${attack}\n`);
});
afterAll(() => evil.stop());

/** Raw bytes as well: C1 that isn't UTF-8. */
const bytes = Buffer.concat([Buffer.from(attack), Buffer.from([0x9b, 0x32, 0x4a, 0xff, 0xc0, 0x80])]);
const talk = `${print(bytes)}; ${print(bytes)} >&2; exit 1`;

/** What a verb of the CLI prints of the builder, by a process of its own: its bytes, its time and the most memory that it had. */
async function verb(name: Verb, builder: Pick<HostileBuilder, "machine" | "clientDirectory"> = evil) {
  const script = `
    import { execFileSync } from "node:child_process";
    import { readFileSync } from "node:fs";
    const { machine, clientDirectory, address, port, hostKey, key, dir, user } = JSON.parse(readFileSync(0, "utf8"));
    const src = ${JSON.stringify(`${process.cwd()}/src`)};
    const out = async (text) => {
      const terminal = await import(src + "/terminal.ts").catch(() => ({ say: console.log }));
      terminal.say(text);
    };
    const verbs = {
      status: async () => {
        const { askForAnswer, renderStatus } = await import(src + "/cli/status.ts");
        const { clientEnvironment } = await import(src + "/client/environment.ts");
        const answer = await askForAnswer(machine, clientEnvironment({ clientDirectory, store: dir + "/store" }));
        await out(renderStatus([{ name: "evil", alias: "evil", systems: [], address: "a", verifiedInSeconds: null, ofService: false, rootClients: [], ...answer }]));
      },
      doctor: async () => {
        const { examineBuilder } = await import(src + "/doctor/builder.ts");
        const { renderFindings } = await import(src + "/doctor/finding.ts");
        const administration = { user, peculiarities: {}, privateKey: key };
        await out(renderFindings(await examineBuilder({ name: "evil", machine, clientDirectory, administration, clientNix: "2.8.0" })));
      },
      verify: async () => {
        const { runSmokeTest } = await import(src + "/smoke/smokeTest.ts");
        const { renderVerdicts, renderJUnit } = await import(src + "/smoke/report.ts");
        const test = { alias: machine.alias, clientDirectory, level: "quick", bootId: undefined, ownMachine: true, timeout: 6 };
        const verdict = await runSmokeTest(test).catch((error) => { if (error.verdict) { console.error(error.message); return error.verdict; } throw error; });
        await out(renderVerdicts({ evil: verdict }));
        process.stdout.write(renderJUnit({ evil: verdict }));
        process.stdout.write(JSON.stringify(verdict));
      },
      refusals: async () => {
        const { tryRefusals } = await import(src + "/smoke/refusals.ts");
        const { renderCases } = await import(src + "/smoke/report.ts");
        await out(renderCases(await tryRefusals(machine, { clientDirectory, ownMachine: true, patience: 2 })));
      },
      provision: async () => {
        const { provision } = await import(src + "/provision/provision.ts");
        await provision({ alias: "evil", address, port, hostKey, adminPrivateKey: key, keyFiles: {}, signingFiles: {}, moduleFiles: {}, applied: "x", timeout: 4,
          timeoutKey: "t", stackDirectory: dir }, undefined, (progress) => { console.error("evil: " + progress); });
      },
      bake: async () => {
        const { bake } = await import(src + "/cli/bake.ts");
        await bake({}, { fleet: "f", builder: "evil", server: 1, target: { address, port, hostKey }, adminPrivateKey: key, stackDirectory: dir, keep: 1 },
          (progress) => { console.error(progress); }, 6000);
      },
    };
    const { runScript } = await import(src + "/script.ts");
    await runScript(verbs[${JSON.stringify(name)}]);
    process.stderr.write("\\npeak " + process.resourceUsage().maxRSS);
  `;
  const { machine, clientDirectory } = builder;
  const { server } = evil;
  const child = spawn(process.execPath, ["--input-type=module", "-e", script], { stdio: ["pipe", "pipe", "pipe"] });
  onTestFinished(() => void child.kill("SIGKILL"));
  const known = { address: server.address, port: server.port, hostKey: server.hostKey, key: server.clientKey };
  child.stdin.end(
    JSON.stringify({ machine, clientDirectory, ...known, user: server.user, dir: `${server.dir}/.fleet/stacks/t` }),
  );
  const started = Date.now();
  const collect = async (stream: NodeJS.ReadableStream): Promise<Buffer> => {
    const chunks: Buffer[] = [];
    for await (const chunk of stream) chunks.push(chunk as Buffer);
    return Buffer.concat(chunks);
  };
  const [out, err] = await Promise.all([collect(child.stdout), collect(child.stderr), once(child, "close")]);
  const all = Buffer.concat([out, err]);
  const peak = Number(/peak (\d+)$/.exec(err.toString())?.[1] ?? Infinity) / 1024;
  return { bytes: all, said: all.toString(), seconds: (Date.now() - started) / 1000, peakMiB: peak };
}

const verbs = ["status", "doctor", "verify", "refusals", "provision", "bake"] as const;
type Verb = (typeof verbs)[number];

/** A line that begins as one of the program's own does. */
const forged = /^ *0\.1 s {2}arm: verified|^verified$/m;

describe("a builder that answers with control sequences in every place", () => {
  stops({
    attack: "a builder draws on the terminal",
    tried: "control sequences, bidirectional text and forged lines in every answer, for every verb",
    stopped: "what a machine says is made plain where it comes in and where it is printed",
  });

  it.each(verbs)("leaves %s fit for a terminal", { timeout: 60_000 }, async (name) => {
    evil.answer(talk);
    const { bytes: printed, said } = await verb(name);
    expect(said).toMatch(/evil|refuses|builder/);
    expect(forbidden(printed)).toEqual([]);
    expect(said).not.toMatch(forged);
    expect(said.split("\n").every((line) => line.length < 5000)).toBe(true);
  });

  it.each(["status", "doctor", "verify"] as const)(
    "in its daemon's errors leaves %s fit for one, too",
    async (name) => {
      // Nix's protocol: a greeting, version 1.21, and an error with its text.
      const number = (value: number) => {
        const word = Buffer.alloc(8);
        word.writeUInt32LE(value);
        return word;
      };
      const text = bytes.filter((byte) => byte !== 0);
      const said = Buffer.concat([text, Buffer.alloc((8 - (text.length % 8)) % 8, " ")]);
      const words = [0x6478696f, 0x115, 0x63787470, said.length].map(number);
      evil.answer(`${print(Buffer.concat([...words, said, number(1)]))}; cat >/dev/null`);
      const { bytes: printed, said: shown } = await verb(name);
      // Of a build that fails so, words of ours are shown instead.
      expect(shown).toContain(name === "verify" ? "not verified" : "arm: verified");
      expect(forbidden(printed)).toEqual([]);
      expect(shown).not.toMatch(forged);
    },
  );

  it("says so in progress, too", { timeout: 60_000 }, async () => {
    evil.answer(`for i in 1 2 3; do echo "state $(${print(bytes)})"; done; ${talk}`);
    const { bytes: printed, said } = await verb("provision");
    expect(said).toContain("evil: ");
    expect(forbidden(printed)).toEqual([]);
    expect(said).not.toMatch(forged);
  });

  it("can't bring them into the stack's outputs by what is measured", () => {
    const sound = {
      ...{ bootId: "b", arch: "x86_64", cpus: 1, memoryMiB: 1, diskMiB: 1, diskFreeMiB: 1, kvm: "false" },
      ...{ nixVersion: "2.8.0", nixSystems: "x86_64-linux", nixFeatures: "kvm", sandbox: "true" },
      ...{ cores: "0", minFree: "0", maxFree: "0", maxStartups: "10:30:100" },
    };
    const render = (values: object) =>
      Object.entries(values)
        .map(([name, value]) => `${name} = ${value as string}`)
        .join("\n");
    expect(parseMeasurement(render(sound)).nixVersion).toBe("2.8.0");
    for (const name of Object.keys(sound)) {
      for (const value of [`x\x1b[31m`, "\u202e1", "\x9b1", "1".repeat(5000), "9".repeat(30)]) {
        if (value === "9".repeat(30) && typeof sound[name as keyof typeof sound] !== "number") continue;
        let message = "";
        try {
          parseMeasurement(render({ ...sound, [name]: value }));
        } catch (error) {
          message = error instanceof Error ? error.message : "";
        }
        expect(message, `${name} = ${JSON.stringify(value.slice(0, 9))}`).toContain(name);
        expect(forbidden(message)).toEqual([]);
        expect(message.length).toBeLessThan(1000);
      }
    }
  });
});

describe("a builder whose builds say so", () => {
  let fleet: LocalFleet;
  beforeAll(async () => {
    fleet = await LocalFleet.start({ alias: "evil" });
  });
  afterAll(() => fleet.stop());

  /** Its `/bin/sh` is the test's: it does to each build what the script says. */
  async function shell(script: string): Promise<void> {
    const { directory } = fleet.builder("evil").local;
    const conf = `${directory}/conf`;
    writeFileSync(`${conf}/evil-sh`, `#!/bin/busybox sh\n${script}\n`, { mode: 0o755 });
    const settings = readFileSync(`${conf}/nix.conf`, "utf8");
    const paths = `sandbox-paths = /bin/busybox=/busybox /bin/sh=${conf}/evil-sh`;
    writeFileSync(`${conf}/nix.conf`, settings.replace(/^sandbox-paths = .*$/m, paths));
    await restartDaemon(directory);
  }

  it.each([
    ["the log of a failing build", `/bin/busybox ${talk.replaceAll("base64", "/bin/busybox base64")}`],
    ["the output", `/bin/busybox ${print(bytes).replace("| base64", "| /bin/busybox base64")} >$out`],
    [
      "words of the output",
      `w=$(/bin/busybox ${print(bytes.subarray(0, 20)).replace("| base64", "| /bin/busybox base64")}); echo "$w $w $w $w $w $w $w" >$out`,
    ],
  ])("in %s leaves verify fit for a terminal", { timeout: 60_000 }, async (_, script) => {
    await shell(script);
    const { bytes: printed, said } = await verb("verify", {
      machine: fleet.builder("evil").machine,
      clientDirectory: fleet.clientDirectory,
    });
    expect(said).toContain("not verified");
    expect(forbidden(printed)).toEqual([]);
    expect(said).not.toMatch(forged);
  });

  it(
    "can't let the client read a file of its own as an output, nor one of any size into memory",
    { timeout: 90_000 },
    async () => {
      const secret = `${fleet.directory}/secret`;
      writeFileSync(secret, "TOP SECRET");
      const builder = { machine: fleet.builder("evil").machine, clientDirectory: fleet.clientDirectory };
      await shell(`/bin/busybox ln -s ${secret} $out`);
      expect((await verb("verify", builder)).said).not.toContain("SECRET");
      await shell(`/bin/busybox head -c 400000000 /dev/zero >$out`);
      const { peakMiB, said } = await verb("verify", builder);
      expect(said).toContain("not verified");
      expect(peakMiB).toBeLessThan(250);
    },
  );
});

describe("a builder without end", () => {
  stops({
    attack: "a builder sends without end",
    tried: "yes, lines of 100 MB, silence, a drip, for every verb",
    stopped: "each question has a limit of time and of bytes",
  });

  const limits = { status: 30, doctor: 60, verify: 30, refusals: 60, provision: 30, bake: 30 };

  it.each(
    verbs.flatMap((name) =>
      [
        ["yes on both", "yes >&2 & exec yes"],
        ["one line of 100 MB", "head -c 100000000 /dev/zero | tr '\\0' x; exit 1"],
        ["silence after the login", "exec sleep 200"],
        // Where the first word of an answer counts, the others wait as they do for silence.
        ...(name === "provision" || name === "bake" ? [["a drip", "while :; do printf x; sleep 0.3; done"]] : []),
      ].map(([what = "", script = ""]) => [name, what, script] as const),
    ),
  )("%s: %s is bounded in time and memory, and said in words", { timeout: 120_000 }, async (name, _, script) => {
    evil.answer(script);
    const { seconds, peakMiB, said } = await verb(name);
    expect(seconds).toBeLessThan(limits[name]);
    expect(peakMiB).toBeLessThan(250);
    expect(said).toMatch(
      /within \d+ s|more than \d+ [KM]iB|after \d+ s|timed out|does not answer|no Nix answers|did not refuse|it answered/,
    );
    expect(said.length).toBeLessThan(20_000);
  });

  it.each(["status", "doctor", "verify", "provision", "bake"] as const)(
    "%s: one that takes connections and says nothing",
    { timeout: 120_000 },
    async (name) => {
      const sockets: Socket[] = [];
      const silent = createServer((socket) => sockets.push(socket.on("error", () => undefined))).listen(
        0,
        "127.83.0.2",
      );
      await once(silent, "listening");
      onTestFinished(() => {
        for (const socket of sockets) socket.destroy();
        silent.close();
      });
      const { port } = silent.address() as AddressInfo;
      const server = Object.assign(Object.create(evil.server) as typeof evil.server, { address: "127.83.0.2", port });
      const before = evil;
      const config = readFileSync(`${evil.clientDirectory}/ssh_config`, "utf8");
      writeFileSync(
        `${evil.clientDirectory}/ssh_config`,
        config.replace(/HostName .*/, "HostName 127.83.0.2").replace(/Port .*/, `Port ${port}`),
      );
      evil = { ...evil, server };
      onTestFinished(() => {
        writeFileSync(`${before.clientDirectory}/ssh_config`, config);
        evil = before;
      });
      const { seconds, said } = await verb(name);
      expect(seconds).toBeLessThan(limits[name]);
      expect(said).toMatch(
        /within \d+ s|after \d+ s|can't be reached|timed out|does not answer|can't be cleaned|drops them/,
      );
    },
  );
});

it("the processes that spoke with it are gone", () => {
  const running = execFileSync("ps", ["-eo", "args"], { encoding: "utf8" });
  expect(running.split("\n").filter((line) => /^(ssh|nix\S*) .*\bevil\b/.test(line))).toEqual([]);
});
