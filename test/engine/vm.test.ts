/**
 * `npm run test:vm`: whole deployments at the emulated Hetzner Cloud, whose server is a virtual machine. Its firmware, Debian, systemd,
 * kernel, cloud-init and boot loader are real, and so is the service that moves the old root away; Nix is Debian's, and what it builds
 * stands in for NixOS.
 */
import { readFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { execa } from "execa";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { conversionLog } from "../../src/bootstrap/conversion.ts";
import type { BuildMachine } from "../../src/nix/buildMachine.ts";
import { connection, type Outcome } from "../../src/provision/ssh.ts";
import type { Verdict } from "../../src/smoke/verdict.ts";
import { toHostKey } from "../../src/ssh/hostKey.ts";
import { withCloudPlugins } from "../../tools/setup/cloudPlugins.ts";
import { thisHost } from "../../tools/setup/host.ts";
import { setUp } from "../../tools/setup/index.ts";
import { findBootableDebian, virtualMachineObstacle, type Suite } from "../../tools/setup/virtualMachine.ts";
import { processesNaming, TestDeployment } from "../support/engine.ts";
import { EmulatedApi } from "../support/hcloud/emulatedApi.ts";
import { ConversionStandIn } from "../support/hcloud/conversionStandIn.ts";
import { cloudInitSaid, debianSwitch } from "../support/hcloud/debianStandIn.ts";
import { addressInside, VirtualMachine, type Firmware } from "../support/hcloud/virtualMachine.ts";

const obstacle = virtualMachineObstacle(thisHost());
if (obstacle !== undefined) console.log(`skipped: a server in a virtual machine: ${obstacle}`);

/** What is served at port 22. */
interface Served {
  /** Host keys, as `TYPE BASE64`. */
  readonly hostKeys: readonly string[];
  /** Times that the server had booted by then. */
  readonly boots: number;
}

interface Outputs {
  readonly builders: readonly BuildMachine[];
  readonly verification: Readonly<Record<string, Verdict>>;
  readonly adminPrivateKey: string;
}

interface Case {
  readonly suite: Suite;
  readonly image: string;
  readonly firmware: Firmware;
  /** Whether the machine loses its power while the old root is moved. */
  readonly powerCut: boolean;
}

const cases: readonly Case[] = [
  { suite: "trixie", image: "debian-13", firmware: "UEFI", powerCut: false },
  { suite: "bookworm", image: "debian-12", firmware: "BIOS", powerCut: true },
];

describe.skipIf(obstacle !== undefined).each(cases)("a server in a virtual machine: $image with $firmware", (one) => {
  const { suite, image, firmware, powerCut } = one;
  let api: EmulatedApi;
  let fleet: TestDeployment;
  let atFirstBoot: Served;
  let progress: string;
  let builder: BuildMachine;
  let verdict: Verdict;
  let adminPrivateKey: string;
  const machines: VirtualMachine[] = [];
  /** Whether its console is to be shown. */
  let failed = false;
  /** What is to be undone at the end, the last first: the preparation may have come only so far. */
  const undo: (() => unknown)[] = [];

  const consoles = (): string => machines.map(({ log }) => log).join("\n");

  beforeAll(async () => {
    const debian = await findBootableDebian(thisHost(), suite);
    await withCloudPlugins((await setUp()).env, ["hcloud"]);
    const standIn: ConversionStandIn = new ConversionStandIn({
      switchScript: debianSwitch(powerCut),
      nixPrograms: "/usr/bin",
      shell: "/bin/busybox",
      addressOf: addressInside,
    });
    undo.push(() => {
      standIn.remove();
    });
    api = await EmulatedApi.start((options) => {
      const machine = new VirtualMachine(debian, firmware, standIn.directory, options);
      machines.push(machine);
      return machine;
    });
    undo.push(() => api.stop());
    const configuration = {
      // A single candidate: no place is held by another server.
      builders: [{ name: "own", provider: "hcloud", system: "x86_64-linux", candidates: ["ccx23@fsn1"] }],
      access: { allowedCidrs: ["127.0.0.0/8"] },
      hcloud: { ...standIn.configuration, baseImage: image, bootTimeout: 1500 },
      smoke: "full",
      // Debian 12's Nix has neither rows nor `ssh` below it.
      trust: "full",
      smokeTimeout: 120,
    };
    fleet = await TestDeployment.create(configuration, api.env, ["hcloud"]);
    undo.push(() => fleet.remove());
    fleet.timeLimit = 25 * 60_000;
    const deployment = fleet.up();
    const [{ exitCode, output }, served] = await Promise.all([deployment, servedFirst(deployment)]);
    failed = exitCode !== 0;
    expect(exitCode, output).toBe(0);
    atFirstBoot = served;
    progress = output;
    const outputs = (await fleet.outputs()) as unknown as Outputs;
    const [only] = outputs.builders;
    const own = outputs.verification["own"];
    if (only === undefined || own === undefined) throw new Error("no builder");
    [builder, verdict, adminPrivateKey] = [only, own, outputs.adminPrivateKey];
  });
  afterEach(({ task }) => {
    failed ||= task.result?.state === "fail";
  });
  afterAll(async () => {
    if (failed) console.log(consoles());
    const problems: unknown[] = [];
    for (const step of undo.reverse()) {
      try {
        await step();
      } catch (error) {
        problems.push(error);
      }
    }
    expect(problems).toEqual([]);
  });

  /** What the server answers with as soon as it answers, or when the deployment is over. */
  const servedFirst = async (deployment: Promise<unknown>): Promise<Served> => {
    const over = deployment.then(() => true);
    for (;;) {
      const [server] = api.all("servers");
      const served = await servedBy((server?.["public_net"] as { ipv4: { ip: string } } | undefined)?.ipv4.ip);
      if (served.hostKeys.length > 0 || (await Promise.race([over, delay(500, false)]))) return served;
    }
  };

  const servedBy = async (address: string | undefined): Promise<Served> => {
    if (address === undefined) return { hostKeys: [], boots: 0 };
    const words = ["-T", "10", "-t", "rsa,ecdsa,ed25519", address];
    const { stdout } = await execa("ssh-keyscan", words, { reject: false, timeout: 60_000 });
    const hostKeys = stdout.split("\n").filter((line) => line.startsWith(`${address} `));
    const boots = consoles().match(/Linux version /g)?.length ?? 0;
    return { hostKeys: hostKeys.map((line) => line.slice(address.length + 1)), boots };
  };

  const pinned = (): string => toHostKey(builder.publicHostKey);

  /** As root, with the administration key, and nothing but the pinned host key accepted. */
  const asRoot = async (script: string): Promise<Outcome> => {
    const root = connection(
      { address: builder.hostName, port: builder.port, hostKey: pinned() },
      adminPrivateKey,
      fleet.directory,
    );
    try {
      return await root.run(script, 120);
    } finally {
      root.close();
    }
  };

  /** With the client's key and the emitted files. */
  const asClient = async (...words: string[]) =>
    execa(
      "ssh",
      // A connection of its own: the emitted ssh_config shares those that are open.
      ["-F", `${fleet.directory}/client/ssh_config`, "-o", "ControlPath=none", ...words],
      { reject: false, timeout: 60_000, stdin: "ignore" },
    );

  it("serves the pinned host key, and no other, from its first boot and after the conversion", async () => {
    expect(machines).toHaveLength(1);
    expect(atFirstBoot).toEqual({ hostKeys: [pinned()], boots: 1 });
    expect(await servedBy(builder.hostName)).toEqual({ hostKeys: [pinned()], boots: powerCut ? 3 : 2 });
    const { stdout } = await asRoot("cd /etc/ssh && echo ssh_host_*");
    expect(stdout).toBe("ssh_host_ed25519_key ssh_host_ed25519_key.pub");
  });

  it("found nothing wrong with its user data", async () => {
    const { code, stdout } = await asRoot(`cat ${cloudInitSaid}`);
    expect({ code, stdout }).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/^\s*Valid (cloud-config|schema)/m) as unknown,
    });
    expect(stdout).not.toMatch(/WARNING|ERROR|CRITICAL/);
  });

  it("has let the administrator in before its conversion was over, to say how far it was", () => {
    expect(progress).toMatch(
      /own: (fetching Nix|evaluating NixOS|fetching and building NixOS|installing the boot loader)/,
    );
  });

  it("has every step of its conversion in a log that is there still", async () => {
    const { stdout } = await asRoot(`grep -oE '^\\[[0-9]+ s\\] .*' ${conversionLog}`);
    const steps = stdout.split("\n").map((line) => line.replace(/^\[\d+ s\] /, ""));
    expect(steps.at(0)).toBe("looking at the disk");
    expect(steps.at(-1)).toBe("rebooting into NixOS");
    console.log(`${image}, ${firmware}: ${stdout.split("\n").join("; ")}`);
  });

  it("started from its disk, by its firmware and the boot loader that the conversion installed", async () => {
    const { stdout } = await asRoot("cat /proc/cmdline; test -d /sys/firmware/efi && echo UEFI || echo BIOS");
    expect(stdout).toMatch(
      new RegExp(`^BOOT_IMAGE=/nix/stand-in/kernel root=UUID=\\S+ rw console=ttyS0\n${firmware}$`),
    );
    const { stdout: disk } = await asRoot(
      "cat /etc/nixos/nix-builder/disk.json; mount /dev/disk/by-label/ESP /boot/efi && ls /boot/efi/EFI",
    );
    expect(disk).toMatch(/"disk": "\/dev\/vda".*"esp": "[0-9A-F]{4}-[0-9A-F]{4}", "bios": true/);
    expect(disk.split("\n").slice(1)).toEqual(["BOOT"]);
  });

  it("had an empty root when the new system began, though the power failed in the middle where it did", async () => {
    const { stdout } = await asRoot("xargs </nix/root-before-activation");
    expect(stdout).toBe("boot dev etc lost+found nix old-root proc run sys var");
    const cuts = consoles().match(/power cut after .*/g) ?? [];
    expect(cuts).toHaveLength(powerCut ? 1 : 0);
  });

  it("has nothing left of Debian's root, its kernels and its boot loader", async () => {
    const gone = "until [ ! -e /old-root ]; do sleep 1; done; ls -A /boot /etc/ssh; ls /nix/var";
    const { code, stdout } = await asRoot(gone);
    expect({ code, stdout }).toMatchObject({ code: 0 });
    expect(stdout).not.toMatch(/vmlinuz|initrd|System\.map|sshd_config|move-old-root/);
  });

  it("is verified by builds in its own kernel, over both protocols", async () => {
    const bootId = "/proc/sys/kernel/random/boot_id";
    const { stdout } = await asRoot(`cat ${bootId}; id -un nix-builder`);
    expect(stdout.split("\n")).toEqual([verdict.bootId, "nix-builder"]);
    expect(verdict.bootId).not.toBe(readFileSync(bootId, "utf8").trim());
    expect(verdict).toMatchObject({ verified: true, level: "full", arch: "x86_64", sandboxed: true });
    const passed = verdict.cases.filter(({ outcome }) => outcome === "passed").map(({ name }) => name);
    expect(passed).toEqual(expect.arrayContaining(["ssh-ng, x86_64-linux", "ssh, x86_64-linux", "fixed output"]));
    // At `full` the matrix says what that opens.
    const others = verdict.cases.filter(({ detail = "" }) => !detail.startsWith("open, as configured"));
    expect(others.length).toBeLessThan(verdict.cases.length);
    expect(others.filter(({ outcome }) => outcome === "failed" || outcome === "warned")).toEqual([]);
  });

  it("lets the client's key speak the store protocols and nothing else, and only the administrator be root", async () => {
    const { alias } = builder;
    const shell = await asClient(alias, "id");
    expect(shell).toMatchObject({ exitCode: 1, stdout: "", stderr: expect.stringContaining("refused") as unknown });
    const terminal = await asClient("-tt", alias, "nix-daemon --stdio");
    expect(terminal.stderr).toMatch(/PTY allocation request failed/);
    const forwarding = await asClient("-W", "127.0.0.1:22", alias);
    expect(forwarding).toMatchObject({
      exitCode: 255,
      stderr: expect.stringContaining("administratively prohibited") as unknown,
    });
    expect((await asClient("-l", "root", alias, "id")).stderr).toMatch(/Permission denied/);
    expect(await asRoot("id -un")).toMatchObject({ code: 0, stdout: "root" });
  });

  it("is destroyed without a trace", async () => {
    const { exitCode, output } = await fleet.destroy();
    expect(exitCode, output).toBe(0);
    expect(api.inventory()).toEqual([]);
    expect(fleet.leftovers()).toEqual([]);
    expect(machines.flatMap(({ directory }) => processesNaming(directory))).toEqual([]);
  });
});
