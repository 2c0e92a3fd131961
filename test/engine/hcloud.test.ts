import { existsSync, readdirSync, readlinkSync } from "node:fs";
import { createServer } from "node:net";
import { execa } from "execa";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { HcloudApi } from "../../src/hcloud/api.ts";
import { labels } from "../../src/hcloud/inventory.ts";
import { connection } from "../../src/provision/ssh.ts";
import { toHostKey } from "../../src/ssh/hostKey.ts";
import type { BuildMachine } from "../../src/nix/buildMachine.ts";
import { emulationObstacle, registerEmulation, unregisterEmulation } from "../../src/local/emulation.ts";
import { nixVersion } from "../../src/client/settings.ts";
import type { Verdict } from "../../src/smoke/verdict.ts";
import { isAtLeast } from "../../src/nix/version.ts";
import { systemOfThisMachine } from "../../src/nix/system.ts";
import { withCloudPlugins } from "../../tools/setup/cloudPlugins.ts";
import { setUp } from "../../tools/setup/index.ts";
import { processesNaming, TestDeployment } from "../support/engine.ts";
import { EmulatedApi, type ApiRequest, type Fault } from "../support/hcloud/emulatedApi.ts";
import { hostObstacle } from "../support/hcloud/host.ts";
import { ConversionStandIn } from "../support/hcloud/conversionStandIn.ts";

const obstacle = hostObstacle();
if (obstacle !== undefined) console.log(`skipped: the emulated Hetzner Cloud. ${obstacle}`);

const system = systemOfThisMachine() ?? "x86_64-linux";
const [first, second] = system === "x86_64-linux" ? ["ccx23@fsn1", "cpx42@hel1"] : ["cax31@fsn1", "cax41@hel1"];
const own = { name: "own", provider: "hcloud", system, candidates: [first, second] };

describe.skipIf(obstacle !== undefined)("a fleet at (an emulated) Hetzner Cloud", { timeout: 5 * 60_000 }, () => {
  let standIn: ConversionStandIn;
  let api: EmulatedApi;
  let fleet: TestDeployment;

  beforeAll(async () => {
    // Builds the plugin where it can't be downloaded.
    await withCloudPlugins((await setUp()).env, ["hcloud"]);
    standIn = new ConversionStandIn();
  }, 20 * 60_000);
  afterAll(() => {
    standIn.remove();
  });

  const configuration = (builders: unknown[] = [own], hcloud: Record<string, unknown> = {}) => ({
    builders,
    access: { allowedCidrs: ["127.0.0.0/8"] },
    expires: "2026-12-31",
    hcloud: { ...standIn.configuration, bootTimeout: 30, ...hcloud },
    smokeTimeout: 30,
  });

  beforeEach(async () => {
    api = await EmulatedApi.start();
    fleet = await TestDeployment.create(configuration(), api.env, ["hcloud"]);
  });
  /** However a test went, `destroy` leaves nothing that costs money or is in the way. */
  afterEach(async ({ task }) => {
    if (task.result?.state === "fail") for (const { name } of api.all("servers")) console.log(api.hostLog(name));
    try {
      api.faults.length = 0;
      api.actionPolls = 0;
      await fleet.remove();
      expect(api.inventory()).toEqual([]);
    } finally {
      await api.stop();
    }
  });

  const up = async (): Promise<string> => {
    const { exitCode, output } = await fleet.up();
    expect(exitCode, output).toBe(0);
    return output;
  };
  const failingUp = async (): Promise<string> => {
    const { exitCode, output } = await fleet.up();
    expect(exitCode, output).not.toBe(0);
    return output;
  };
  const outputs = async () =>
    (await fleet.outputs()) as { builders: BuildMachine[]; verification: unknown; adminPrivateKey: string };
  const serverIds = (): number[] => api.all("servers").map(({ id }) => id);
  const urns = async (): Promise<string[]> => {
    const { output } = await fleet.pulumi("stack", "--show-urns");
    return [...output.matchAll(/urn:pulumi:\S+/g)].map(([urn]) => urn);
  };
  /** Starts `up` and kills it, without a chance to clean up, as soon as the API has got this request. */
  const killAt = async (isIt: (request: ApiRequest) => boolean): Promise<void> => {
    const cli = fleet.start("up", "--yes", "--skip-preview");
    api.faults.push((request) => {
      if (!isIt(request)) return undefined;
      // Its action is never done: whoever made something waits for it, and writes nothing down.
      api.actionPolls = Number.POSITIVE_INFINITY;
      setTimeout(() => cli.kill("SIGKILL"), 200);
      return undefined;
    });
    expect((await cli).signal).toBe("SIGKILL");
    api.faults.length = 0;
    api.actionPolls = 0;
    fleet.unlock();
  };
  const killable: [string, (request: ApiRequest) => boolean][] = [
    ["while a place is held", ({ method, path }) => method === "POST" && path === "/servers"],
    [
      "while its server is made",
      ({ method, path, body }) => method === "POST" && path === "/servers" && body["user_data"] !== undefined,
    ],
  ];

  it("goes from nothing to verified, labelled and closed, and from there to no change without a question to the API", async () => {
    api.actionPolls = 2;
    await up();
    const { builders, verification } = await outputs();
    expect(verification).toMatchObject({ own: { verified: true } });
    expect(builders).toMatchObject([{ sshUser: "nix-builder", port: 22 }]);
    const server = api.all("servers").at(0);
    expect(server).toMatchObject({
      server_type: { name: first.split("@")[0] },
      location: { name: "fsn1" },
      labels: {
        "nix-builder-fleet.fleet": fleet.stack,
        "nix-builder-fleet.builder": "own",
        "nix-builder-fleet.expires": "2026-12-31",
      },
    });
    expect(api.all("firewalls")).toMatchObject([
      {
        rules: expect.arrayContaining([
          expect.objectContaining({ protocol: "tcp", port: "22", source_ips: ["127.0.0.0/8"] }),
          expect.objectContaining({ protocol: "icmp", source_ips: ["127.0.0.0/8"] }),
        ]) as unknown,
        applied_to: [{ server: { id: server?.id } }],
      },
    ]);
    api.requests.length = 0;
    expect(await up()).toMatch(/unchanged/);
    expect(api.requests).toEqual([]);
  });

  it("lets clients speak the store protocols and nothing else, and the administrator everything", async () => {
    await up();
    const { builders, adminPrivateKey } = await outputs();
    const [builder] = builders;
    if (builder === undefined) throw new Error("no builder");
    const target = { address: builder.hostName, port: builder.port, hostKey: toHostKey(builder.publicHostKey) };
    const root = connection(target, adminPrivateKey, fleet.directory);
    expect(await root.run("id -un", 20)).toMatchObject({ code: 0, stdout: "root" });
    root.close();
    const key = `${fleet.directory}/client/id_ed25519`;
    const ssh = ["-F", `${fleet.directory}/client/ssh_config`, "-i", key, builder.alias, "id"];
    const { exitCode, stderr } = await execa("ssh", ssh, { reject: false });
    expect({ exitCode, stderr }).toMatchObject({ exitCode: 1, stderr: expect.stringContaining("refused") as unknown });
    // A connection of its own: the emitted ssh_config shares those that are open.
    const alone = ["-o", "ControlPath=none", "-l", "root", builder.alias, "id"];
    const asRoot = await execa("ssh", [...ssh.slice(0, 4), ...alone], { reject: false });
    expect(asRoot.stderr).toMatch(/Permission denied/);
  });

  it("has Arm builders beside those of x86_64, each proven by a build for its own system", async ({ skip }) => {
    skip(system !== "x86_64-linux", "this machine is Arm itself");
    const owner = fleet.stack;
    const reason = emulationObstacle(owner, "aarch64-linux");
    skip(reason !== undefined, `programs of Arm can't run here: ${reason ?? ""}`);
    registerEmulation(owner, "aarch64-linux");
    try {
      const arm = { name: "arm", provider: "hcloud", system: "aarch64-linux", candidates: ["cax31@fsn1"] };
      fleet.configure(configuration([own, arm]));
      await up();
      const { builders, verification } = await outputs();
      expect(builders.find(({ alias }) => alias.endsWith("arm"))).toMatchObject({ systems: ["aarch64-linux"] });
      expect(verification).toMatchObject({ own: { verified: true }, arm: { verified: true, arch: "aarch64" } });
      expect(api.all("servers").map(({ server_type, image }) => [server_type, image])).toContainEqual([
        expect.objectContaining({ name: "cax31", architecture: "arm" }),
        expect.objectContaining({ architecture: "arm" }),
      ]);
    } finally {
      unregisterEmulation(owner, "aarch64-linux");
    }
  });

  describe("places", () => {
    it("go to the next candidate when the first has run out, which only shows when one tries", async () => {
      api.faults.push(({ method, path, body }) =>
        method === "POST" && path === "/servers" && body["location"] === "fsn1"
          ? { status: 412, code: "resource_unavailable", message: "error during placement" }
          : undefined,
      );
      expect(await up()).toMatch(/in fsn1 can't be had: error during placement/);
      expect(api.all("servers")).toMatchObject([{ location: { name: "hel1" } }]);
      expect((await fleet.outputs())["placements"]).toMatchObject({ own: { location: "hel1" } });
      api.faults.length = 0;
      // What became free again is no reason to move.
      expect(await up()).toMatch(/unchanged/);
    });

    it("are taken one by one: two builders never count on the last machine of a type", async () => {
      const held = (): number =>
        api.all("servers").filter(({ location }) => (location as { name: string }).name === "fsn1").length;
      api.faults.push(({ method, path, body }) =>
        method === "POST" && path === "/servers" && body["location"] === "fsn1" && held() >= 1
          ? { status: 412, code: "resource_unavailable", message: "error during placement" }
          : undefined,
      );
      fleet.configure(configuration([{ ...own, count: 2 }]));
      await up();
      const places = api.all("servers").map(({ location }) => (location as { name: string }).name);
      expect(places.sort()).toEqual(["fsn1", "hel1"]);
    });

    it("that nobody has are named, each with its reason", async () => {
      api.sellOut(first.split("@")[0] ?? "", "fsn1");
      fleet.configure(configuration([{ ...own, candidates: [first, second.replace("hel1", "sin1")] }]));
      const output = await failingUp();
      expect(output).toContain("none of its candidates can be had");
      expect(output).toMatch(/fsn1: sold out at the moment/);
      expect(output).toMatch(/sin1: this server type does not exist in this location/);
    });
  });

  it("replaces the administration key and the clients' key over SSH, without touching the server", async () => {
    await up();
    const before = await outputs();
    const ids = serverIds();
    const keys = (await urns()).filter((urn) => /PrivateKey::(admin|client)$/.test(urn));
    expect(keys).toHaveLength(2);
    const { exitCode, output } = await fleet.pulumi(
      ...["up", "--yes", "--skip-preview", "--suppress-progress", "--suppress-outputs"],
      ...keys.flatMap((urn) => ["--replace", urn]),
    );
    expect(exitCode, output).toBe(0);
    expect(serverIds()).toEqual(ids);
    const after = await outputs();
    expect(after.adminPrivateKey).not.toBe(before.adminPrivateKey);
    expect(after.verification).toMatchObject({ own: { verified: true } });
    expect(after.builders).toEqual(before.builders);
    const [builder] = after.builders;
    const target = { address: builder?.hostName ?? "", port: 22, hostKey: toHostKey(builder?.publicHostKey ?? "") };
    const old = connection(target, before.adminPrivateKey, fleet.directory);
    expect(await old.run("true", 20)).toMatchObject({ code: 255, stderr: expect.stringMatching(/denied/) as unknown });
    old.close();
    expect(await up()).toMatch(/unchanged/);
  });

  it("changes a builder's settings by rebuilding NixOS, without touching the server", async () => {
    await up();
    const ids = serverIds();
    fleet.configure(configuration([{ ...own, supportedFeatures: ["big-parallel"], maxJobs: 3 }]));
    expect(await up()).toContain("rebuilding NixOS with the new settings");
    expect(serverIds()).toEqual(ids);
    expect(await outputs()).toMatchObject({ builders: [{ maxJobs: 3, supportedFeatures: ["big-parallel"] }] });
  });

  it("leaves servers alone when what counts at birth changes: image, nixpkgs and the conversion itself", async () => {
    fleet.configure(configuration([own], { baseImage: "debian-12" }));
    await up();
    const ids = serverIds();
    const { nixpkgs } = standIn.configuration;
    fleet.configure(configuration([own], { nixpkgs: { ...nixpkgs, hash: "0".repeat(52) } }));
    await up();
    expect(serverIds()).toEqual(ids);
  });

  it("has no IPv4 address where none is wanted, and is verified over IPv6", async ({ skip }) => {
    const taken = await isTaken("::1", 22);
    skip(taken, "something listens on port 22 of ::1, or this machine has no IPv6");
    fleet.configure(configuration([{ ...own, candidates: [first], ipv4: false }]));
    await up();
    const { builders, verification } = await outputs();
    expect(builders).toMatchObject([{ hostName: "::1", port: 22 }]);
    expect(verification).toMatchObject({ own: { verified: true } });
    expect(api.all("servers").at(0)?.["public_net"]).toMatchObject({ ipv4: null });
  });

  it("has a private network and a placement group where asked for", async () => {
    fleet.configure(configuration([{ ...own, candidates: [first] }], { network: {}, spread: true }));
    await up();
    const [network] = api.all("networks");
    expect(api.all("servers")).toMatchObject([
      { private_net: [{ network: network?.id }], placement_group: { type: "spread" } },
    ]);
    expect(await up()).toMatch(/unchanged/);
  });

  describe("is destroyed", () => {
    it("when somebody else has deleted its server", async () => {
      await up();
      await api.deleteServer(api.all("servers")[0]?.name ?? "");
    });

    it("when its server is unreachable", async () => {
      await up();
      await api.powerOff(api.all("servers")[0]?.name ?? "");
    });

    it("when its server never got anywhere", async () => {
      fleet.configure(configuration([{ ...own, candidates: [first] }], { bootTimeout: 3 }));
      api.bootFault = "never opens SSH";
      const output = await failingUp();
      expect(output).toMatch(
        /is no NixOS builder after 3 s .*bootTimeout.*last state: waiting for SSH \(nothing listens/,
      );
    });
  });

  it("refuses a server that answers with another host key, and says so", async () => {
    api.bootFault = "another host key";
    const output = await failingUp();
    expect(output).toMatch(/is refused: it presents another host key than the pinned one, so nothing was sent to it/);
  });

  it("says why a conversion failed, with the end of its log from the machine", async () => {
    const broken = new ConversionStandIn({ switchScript: "echo 'no space left for the revolution'; exit 1\n" });
    try {
      fleet.configure(configuration([own], { ...broken.configuration }));
      const output = await failingUp();
      expect(output).toContain("could not be converted to NixOS: the boot loader can't be installed");
      expect(output).toContain("no space left for the revolution");
    } finally {
      broken.remove();
    }
  });

  it("does not run another Nix than the pinned one", async () => {
    const other = { ...standIn.configuration.nixArchives[system], hash: "0".repeat(64) };
    fleet.configure(configuration([own], { nixArchives: { "x86_64-linux": other, "aarch64-linux": other } }));
    expect(await failingUp()).toMatch(/nix\.tar\.xz has another SHA-256 than 0{64}; nothing of it was run/);
  });

  it("says that the token is wrong, before anything is made", async () => {
    api.faults.push(() => ({ status: 401, code: "unauthorized" }));
    const output = await failingUp();
    expect(output).toContain("the Hetzner Cloud API refuses the token; set hcloud:token");
    expect(api.inventory()).toEqual([]);
  });

  it("is deleted with today's token, by `destroy` alone, where that of the last up counts no more", async () => {
    const ofTheStack = async (token: string): Promise<void> => {
      api.token = token;
      await fleet.pulumi("config", "set", "--secret", "hcloud:token", token);
    };
    fleet.configure(configuration([own], { spread: true, network: {} }));
    await ofTheStack("o".repeat(64));
    await up();
    await ofTheStack("n".repeat(64));
    const { exitCode, output } = await fleet.destroy();
    expect(exitCode, output).toBe(0);
    expect(api.inventory()).toEqual([]);
  });

  it("says that the project's limit of servers is reached", async () => {
    api.faults.push(({ method, path }) =>
      method === "POST" && path === "/servers"
        ? { status: 403, code: "resource_limit_exceeded", message: "server limit exceeded" }
        : undefined,
    );
    expect(await failingUp()).toMatch(/limit of servers is reached \(server limit exceeded\).*console under Limits/);
  });

  it.each<[string, ReturnType<Fault>]>([
    ["is over its rate limit", { status: 429, code: "rate_limit_exceeded" }],
    ["is down", { status: 502, code: "" }],
  ])("waits while the API %s", async (_, answer) => {
    const seen = new Map<string, number>();
    api.faults.push(({ method, path }) => {
      const times = (seen.get(`${method} ${path}`) ?? 0) + 1;
      seen.set(`${method} ${path}`, times);
      return times === 1 && /firewalls|server_types/.test(path) ? answer : undefined;
    });
    await up();
  });

  it("can be resumed when the API went away in the middle", async () => {
    let down = false;
    api.faults.push(({ method, path }) => {
      if (method === "POST" && path === "/firewalls") down = true;
      return down && !path.startsWith("/locations") ? "hang up" : undefined;
    });
    fleet.configure(configuration([{ ...own, candidates: [first] }]));
    await failingUp();
    api.faults.length = 0;
    await up();
  });

  it.each(killable)("killed %s is resumed by the next `up`, and nothing is there twice", async (_, isIt) => {
    await killAt(isIt);
    expect(api.all("servers")).toHaveLength(1);
    await up();
    expect(await outputs()).toMatchObject({ verification: { own: { verified: true } } });
    expect(api.inventory()).toHaveLength(3);
  });

  it.each(killable)("killed %s is destroyed without a rest", async (_, isIt) => {
    await killAt(isIt);
    expect(api.all("servers")).toHaveLength(1);
  });

  it("takes away what is no longer configured, and leaves the rest alone", async () => {
    fleet.configure(configuration([{ ...own, count: 2 }]));
    await up();
    const ids = serverIds();
    fleet.configure(configuration());
    await up();
    expect(serverIds()).toHaveLength(1);
    expect(ids).toContain(serverIds()[0]);
  });

  const bakeOwn = (...words: string[]) =>
    execa(process.execPath, ["src/cli/main.ts", "--stack", fleet.stack, "bake", "own", "--keep", "1", ...words], {
      env: fleet.env,
      reject: false,
      all: true,
    });
  const snapshots = () => api.all("images").filter(({ type }) => type === "snapshot");
  const keyFolders = () => readdirSync(fleet.directory).filter((name) => name.startsWith("ssh-"));
  /** Does this once, while the snapshot is being made and the builder is without its identity. */
  const whileSnapshotIsMade = (act: () => void): void => {
    api.actionPolls = 3;
    let polls = 0;
    api.faults.push(({ path }) => {
      if (path.startsWith("/actions/") && (polls += 1) === 1) act();
      return undefined;
    });
  };

  it("keeps no snapshot during which the builder may have taken its keys back, because the connection broke", async () => {
    await up();
    whileSnapshotIsMade(() => {
      const [ssh] = processesNaming(`${fleet.directory}/ssh-`);
      process.kill(Number(/^process (\d+)/.exec(ssh ?? "")?.[1]));
    });
    const { exitCode, all } = await bakeOwn();
    expect(all).toContain("fleet: the connection to the builder broke while the snapshot was taken");
    expect(exitCode).toBe(1);
    expect(snapshots()).toEqual([]);
  });

  it("leaves neither a snapshot nor the administrator's key behind when baking is interrupted", async () => {
    await up();
    const baking = bakeOwn();
    let labels: unknown;
    whileSnapshotIsMade(() => {
      labels = snapshots()[0]?.labels;
      expect(keyFolders()).toHaveLength(1);
      baking.kill("SIGINT");
    });
    const { exitCode, all } = await baking;
    // Until it is known to be clean, no builder may start from it, and `verify-gone` counts it.
    expect(labels).toEqual({ "nix-builder-fleet.fleet": fleet.stack });
    expect(all).toContain("fleet: ended by SIGINT; no snapshot was kept");
    expect(exitCode).toBe(1);
    expect(snapshots()).toEqual([]);
    expect(keyFolders()).toEqual([]);
    // The builder has its identity back.
    expect((await bakeOwn()).exitCode).toBe(0);
    expect(snapshots()).toMatchObject([{ labels: { "nix-builder-fleet.snapshot": "builder" }, holds_host_key: false }]);
  });

  it("leaves the administrator's key nowhere when its provisioning is killed and the fleet destroyed", async () => {
    api.bootFault = "never opens SSH";
    const deployment = fleet.start("up", "--yes", "--skip-preview");
    await expect.poll(() => existsSync(fleet.directory) && keyFolders().length, { timeout: 60_000 }).toBeGreaterThan(0);
    const scripts = processesNaming("src/provision/main.ts").map((one) => Number(/^process (\d+)/.exec(one)?.[1]));
    const ours = scripts.filter((pid) => readlinkSync(`/proc/${String(pid)}/cwd`) === fleet.project);
    for (const pid of ours) process.kill(pid, "SIGKILL");
    await deployment;
    expect(keyFolders()).toHaveLength(1);
    await fleet.destroy();
    expect(fleet.leftovers()).toEqual([]);
  });

  it("brings clients to another level over SSH, has its builders sign, and never bakes one on which clients were root", async () => {
    await up();
    const { builders, verification } = await outputs();
    expect(builders).toMatchObject([{ trust: "signed", sshUser: "nix-builder" }]);
    // This machine's Nix decides by which way it was proven.
    expect(verification).toMatchObject({
      own: { verified: true, way: isAtLeast(await nixVersion(), "2.16") ? "row" : "store" },
    });
    const ids = serverIds();
    const { storePath = "" } = (verification as Record<string, Verdict>)["own"] ?? {};
    const info = await execa(
      process.execPath,
      [
        "src/cli/main.ts",
        "--stack",
        fleet.stack,
        "nix",
        ...["path-info", "--sigs", "--store", "ssh-ng://nix-builder@" + (builders[0]?.alias ?? ""), storePath],
      ],
      { env: fleet.env, reject: false, all: true },
    );
    expect(info.all).toMatch(/ [a-z0-9-]+-builders:[A-Za-z0-9+/=]+/);
    fleet.configure({ ...configuration(), trust: "full" });
    await up();
    expect(serverIds()).toEqual(ids);
    expect(await outputs()).toMatchObject({
      builders: [{ trust: "full", sshUser: "nix-builder-trusted" }],
      verification: { own: { verified: true, way: "row" } },
    });
    const refused = await bakeOwn();
    expect(refused.all).toMatch(/clients of 'own' are or were root on it .* say --accept-trusting/);
    expect(refused.exitCode).toBe(1);
    fleet.configure(configuration());
    await up();
    expect(await outputs()).toMatchObject({ builders: [{ sshUser: "nix-builder" }] });
    expect((await bakeOwn()).exitCode).toBe(1);
    expect(snapshots()).toEqual([]);
    const accepted = await bakeOwn("--accept-trusting");
    expect(accepted.exitCode, accepted.all).toBe(0);
  });

  it("bakes a snapshot without the builder's identity, keeps the newest, and starts other builders from it", async () => {
    // Whoever looks for fleet and builder alone finds this one of another checkout's fleet first.
    await new HcloudApi({ token: api.token, endpoint: api.endpoint }).request("POST", "/servers", {
      name: "theirs",
      server_type: first.split("@")[0],
      location: "fsn1",
      image: "debian-12",
      start_after_create: false,
      labels: { [labels.fleet]: fleet.stack, [labels.stack]: "theirs", [labels.builder]: "own" },
    });
    await up();
    for (let i = 0; i < 2; i += 1) {
      const { exitCode, all } = await bakeOwn();
      expect(exitCode, all).toBe(0);
    }
    expect(snapshots()).toMatchObject([
      {
        labels: { "nix-builder-fleet.snapshot": "builder" },
        holds_host_key: false,
        created_from: { name: expect.not.stringContaining("theirs") as unknown },
      },
    ]);
    fleet.configure(configuration([own, { ...own, name: "baked", image: "snapshot" }]));
    // The builder has its identity back, and the other one of its own.
    const output = await up();
    expect(output).not.toMatch(/fetching Nix/);
    expect(await outputs()).toMatchObject({ verification: { own: { verified: true }, baked: { verified: true } } });
    const { builders } = await outputs();
    expect(new Set(builders.map(({ publicHostKey }) => publicHostKey)).size).toBe(2);
    await api.deleteServer("theirs");
    const status = await execa(process.execPath, ["src/cli/main.ts", "--stack", fleet.stack, "status"], {
      env: fleet.env,
      reject: false,
    });
    expect(status.exitCode, status.stdout).toBe(0);
  });
});

/** Whether a test can't listen there. */
function isTaken(host: string, port: number): Promise<boolean> {
  const server = createServer();
  return new Promise((resolve) => {
    server.once("error", () => {
      resolve(true);
    });
    server.listen({ host, port, exclusive: true }, () =>
      server.close(() => {
        resolve(false);
      }),
    );
  });
}
