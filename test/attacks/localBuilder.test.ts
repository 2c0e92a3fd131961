/** What builds on a builder of this machine, and clients of it, reach of this machine. */
import { execFileSync, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import {
  chmodSync,
  closeSync,
  constants,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { connect, createServer, type AddressInfo, type Server } from "node:net";
import { networkInterfaces, tmpdir } from "node:os";
import { resolve } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, describe, expect, it, onTestFinished, vi } from "vitest";
import { clientEnvironment } from "../../src/client/environment.ts";
import { enterContainer, runningContainer } from "../../src/local/container.ts";
import { startMachine } from "../../src/local/machine.ts";
import { machineGeneration } from "../../src/local/plan.ts";
import { storeUri } from "../../src/nix/machinesFile.ts";
import { kernelArch } from "../../src/nix/system.ts";
import { DaemonConnection } from "../../src/smoke/daemonConnection.ts";
import { findLocalTools } from "../../src/local/tools.ts";
import { wasStopped } from "../support/attack.ts";
import { LocalFleet, system } from "../support/localFleet.ts";

let fleet: LocalFleet;
/** A program of builders in a folder that belongs to whoever runs this. */
const programs = mkdtempSync(`${tmpdir()}/fleet-programs-`);
beforeAll(async () => {
  network.up();
  chmodSync(programs, 0o755);
  copyFileSync(findLocalTools(system).container.pivotRoot, `${programs}/pivot_root`);
  vi.stubEnv("PATH", `${programs}:${process.env["PATH"] ?? ""}`);
  fleet = await LocalFleet.start({ alias: "t-a" });
});
afterAll(async () => {
  network.down();
  await fleet.stop();
  vi.unstubAllEnvs();
  rmSync(programs, { recursive: true });
});

const isRoot = process.getuid?.() === 0;
const directory = (): string => fleet.builder("t-a").local.directory;

/** A derivation that is new each time. */
function derivation(script: string, attributes = ""): string {
  const name = `attack-${randomBytes(6).toString("hex")}`;
  return `derivation { name = "${name}"; system = "${system}"; builder = "/bin/sh"; args = [ "-c" ''${script}'' ]; ${attributes} }`;
}

/** Builds a script; returns the lines that it printed. */
async function build(script: string, attributes?: string): Promise<string[]> {
  const { failed, all } = await fleet.nixBuild(derivation(`${script}\nprintf "" > $out`, attributes));
  expect(failed, all).toBe(false);
  return all.split("\n");
}

/** Its output is known to be empty: such a build has the network. */
const fixedOutput =
  'outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";';

/** A machine of its own in a network namespace, which stands for everything outside of this one. */
const network = {
  namespace: `fleet-attack-${process.pid}`,
  // Another run's may be there at the same time.
  outside: `10.213.${process.pid % 250}.2`,
  inside: `10.213.${process.pid % 250}.1`,
  available: false,
  up() {
    if (!isRoot) return;
    const { namespace, inside, outside } = this;
    const ip = (...words: string[]) => execFileSync("ip", words, { stdio: "pipe" });
    const link = `fla${process.pid}`.slice(0, 14);
    try {
      ip("netns", "add", namespace);
      ip("link", "add", link, "type", "veth", "peer", "name", "far", "netns", namespace);
      ip("addr", "add", `${inside}/30`, "dev", link);
      ip("link", "set", link, "up");
      ip("-n", namespace, "addr", "add", `${outside}/30`, "dev", "far");
      ip("-n", namespace, "link", "set", "far", "up");
      this.available = true;
    } catch (error) {
      this.down();
      console.log(`no network namespace of its own: ${String(error)}`);
    }
  },
  down() {
    if (isRoot) execFileSync("sh", ["-c", `ip netns del ${this.namespace} 2>/dev/null || :`]);
  },
};

/** A service that counts who connects. */
async function service(host: string): Promise<{ port: number; connections: () => number }> {
  let connections = 0;
  const server: Server = createServer((socket) => {
    connections += 1;
    socket.on("error", () => undefined);
    socket.end("here\n");
  });
  await new Promise<void>((done) => server.listen(0, host, done));
  onTestFinished(() => void server.close());
  return { port: (server.address() as AddressInfo).port, connections: () => connections };
}

/** All processes that descend from another, with the user that each has on this machine. */
function usersBelow(pid: number): { pid: number; uid: number }[] {
  const parents = readdirSync("/proc")
    .filter((entry) => /^\d+$/.test(entry))
    .flatMap((entry) => {
      try {
        const stat = readFileSync(`/proc/${entry}/stat`, "utf8");
        return [{ pid: Number(entry), parent: Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]) }];
      } catch {
        return [];
      }
    });
  const below = (root: number): number[] => [
    root,
    ...parents.filter(({ parent }) => parent === root).flatMap((child) => below(child.pid)),
  ];
  return below(pid).flatMap((one) => {
    try {
      return [{ pid: one, uid: statSync(`/proc/${one}`).uid }];
    } catch {
      return [];
    }
  });
}

/** The parent of the container's first process, outside of it. */
function parentOfContainer(): string {
  const stat = readFileSync(`/proc/${runningContainer(directory()) ?? 0}/stat`, "utf8");
  return stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1] ?? "";
}

/** The words that begin a command of the container's root: what a fully trusted client can become. */
function asRoot(): string[] {
  const pid = runningContainer(directory()) ?? 0;
  const parent = parentOfContainer();
  // As machine.ts decides: the ids that the store has.
  const ids = isRoot ? { first: statSync(`${directory()}/root`).uid, count: 256 } : undefined;
  return enterContainer({ tools: findLocalTools(system), ids }, { pid: String(pid), parent, user: "0" });
}

/** Runs a script as the container's root. */
async function asContainerRoot(script: string): Promise<string[]> {
  const [program, ...words] = [...asRoot(), "/busybox", "sh", "-c", script];
  const { all } = await execa(program, words, { all: true, reject: false });
  return all.split("\n");
}

describe.runIf(isRoot)("a build on a builder of root's", () => {
  it("can't change the kernel's settings, the modes of devices, later builds' shell, or its own inputs", async () => {
    const pattern = readFileSync("/proc/sys/kernel/core_pattern", "utf8");
    const mode = statSync("/dev/null").mode;
    const lines = await build(
      `exec 2>&1
       read -r pattern < /proc/sys/kernel/core_pattern
       echo "$pattern" > /proc/sys/kernel/core_pattern && echo HOLE kernel
       busybox chmod 666 /dev/null && echo HOLE device
       busybox chmod u+w /bin/sh && echo HOLE shell
       echo x >> /bin/sh && echo HOLE shell
       busybox chmod u+w $input && echo y > $input && echo HOLE input
       busybox id`,
      'input = builtins.toFile "input" "x";',
    );
    expect(lines.filter((line) => line.startsWith("HOLE"))).toEqual([]);
    expect(lines.join("\n")).toMatch(/core_pattern: Permission denied/);
    expect(lines.join("\n")).toMatch(/\/bin\/sh: Read-only file system/);
    expect(readFileSync("/proc/sys/kernel/core_pattern", "utf8")).toBe(pattern);
    expect(statSync("/dev/null").mode).toBe(mode);
    wasStopped({
      attack: "a build takes the machine over",
      tried: "writes core_pattern, /bin/sh and an input, changes the mode of a device",
      stopped: "it is a build user of the builder's container, which owns none of that",
    });
  });

  it("has nobody who is root on this machine behind it, and nobody who has an account", async () => {
    const running = fleet.nixBuild(derivation("busybox sleep 3; echo > $out"));
    const first = runningContainer(directory()) ?? 0;
    // The daemon's user, and another one that builds.
    const different = () => new Set(usersBelow(first).map(({ uid }) => uid)).size;
    await expect.poll(different, { timeout: 20_000 }).toBeGreaterThan(1);
    const users = usersBelow(first).map(({ uid }) => uid);
    const accounts = readFileSync("/etc/passwd", "utf8")
      .split("\n")
      .map((line) => Number(line.split(":")[2]));
    expect(users.filter((uid) => uid === 0 || accounts.includes(uid))).toEqual([]);
    await running;
    wasStopped({
      attack: "what builds is root",
      tried: "looked for a process of the builder, in mid-build, that is root or anybody with an account",
      stopped: "the daemon and the build are users that no account has",
    });
  });
});

describe("a build with network", () => {
  it("reaches no service of this machine, and no cloud's metadata", async () => {
    const own = network.available ? network.inside : "127.0.0.1";
    const [loopback, all] = [await service("127.0.0.1"), await service("0.0.0.0")];
    const places = [
      ["127.0.0.1", loopback.port],
      ["127.0.0.1", all.port],
      [own, all.port],
      [fleet.builder("t-a").local.address, fleet.builder("t-a").local.port],
      ["169.254.169.254", 80],
    ];
    const lines = await build(
      places
        .map(
          ([host, port]) =>
            `( busybox printf 'GET / HTTP/1.0\\r\\n\\r\\n'; busybox sleep 1 ) | busybox timeout 5 busybox nc ${host} ${port} 2>/dev/null | busybox grep -q . && echo "HOLE ${host} ${port}"`,
        )
        .join("\n"),
      fixedOutput,
    );
    expect(lines.filter((line) => line.startsWith("HOLE"))).toEqual([]);
    expect([loopback.connections(), all.connections()]).toEqual([0, 0]);
    wasStopped({
      attack: "a fixed-output build looks around",
      tried: `connects to services on 127.0.0.1 and on ${own}, to a builder's sshd, to 169.254.169.254`,
      stopped: "it has a network of its own, with rules that refuse this machine and the clouds' metadata",
    });
  });

  it("reaches this machine by no link-local address, and metadata by no route that the machine has", async () => {
    const everywhere = await service("::");
    const pid = String(runningContainer(directory()) ?? 0);
    const addresses = Object.entries(networkInterfaces()).flatMap(([name, list]) =>
      (list ?? []).filter(({ address }) => address.startsWith("fe80:")).map(({ address }) => `${address}%${name}`),
    );
    if (isRoot) {
      const enter = ["--target", pid, "--net", "--", "ip"];
      const { stdout } = await execa("nsenter", [...enter, "-o", "link"]);
      // pasta's end, named as this machine's; without pasta there is the loopback alone.
      const device = /^\d+: (?!lo:)([^:@]+)/m.exec(stdout)?.[1] ?? "lo";
      // As a cloud's DHCP gives it to machines, and pasta copies it.
      await execa("nsenter", [...enter, "route", "add", "169.254.169.254/32", "dev", device]);
    }
    const lines = await build(
      [...addresses.map((address) => `${address} ${everywhere.port}`), "169.254.169.254 80"]
        .map((place) => `echo "${place}: $(busybox timeout 5 busybox nc ${place} </dev/null 2>&1)"`)
        .join("\n"),
      fixedOutput,
    );
    expect(everywhere.connections()).toBe(0);
    if (isRoot) expect(lines.join("\n")).toMatch(/169\.254\.169\.254 80: .*Permission denied/);
    wasStopped({
      attack: "a fixed-output build looks around by other ways",
      tried:
        "connects to this machine's link-local addresses, and to 169.254.169.254 where the machine has a route to it",
      stopped: "rules, which count before any route, refuse both",
    });
  });

  it("reaches what is outside", async ({ skip }) => {
    skip(!network.available, "only root can have a machine outside, in a network namespace");
    skip(findLocalTools(system).container.pasta === undefined, "pasta is missing");
    const server = `require("net").createServer((s) => s.end("from outside\\n")).listen(7070, "${network.outside}", () => console.log("up"))`;
    const outside = spawn("ip", ["netns", "exec", network.namespace, process.execPath, "-e", server]);
    onTestFinished(() => void outside.kill());
    await new Promise((done) => outside.stdout.once("data", done));
    const lines = await build(
      `busybox sleep 2 | busybox timeout 10 busybox nc ${network.outside} 7070 2>&1`,
      fixedOutput,
    );
    expect(lines).toContain("from outside");
  });

  it("has no network without a fixed output", async () => {
    const lines = await build("busybox ip route 2>&1; busybox ip -4 addr show | busybox grep -c inet 2>&1");
    expect(lines.join("\n")).not.toMatch(/default via/);
  });
});

describe("a fully trusted client", () => {
  it("has the daemon run its hook, and the hook is nobody on this machine", async () => {
    const { directory: folder } = fleet.builder("t-a").local;
    const hook = [
      "#!/busybox sh",
      "exec > $NIX_STATE_DIR/hook 2>&1",
      "/busybox id -u",
      `/busybox cat /etc/shadow ${folder}/ssh_host_ed25519_key ${fleet.directory}/passphrase`,
      "echo x >> /proc/sys/kernel/core_pattern",
      "/busybox ls /root /home",
      "/busybox nc 127.0.0.1 22",
    ].join("\n");
    const script = await fleet.nixBuild(
      derivation(
        `busybox printf '%s\\n' "$hook" > $out; busybox chmod +x $out`,
        `hook = ''${hook.replaceAll("$", "''$")}'';`,
      ),
    );
    expect(script.failed, script.all).toBe(false);
    const instantiated = await execa("nix-instantiate", ["-E", derivation("echo > $out")], {
      env: clientEnvironment({ clientDirectory: fleet.clientDirectory, store: `${fleet.directory}/store` }),
    });
    const drv = instantiated.stdout.trim();
    await execa("nix", ["copy", "--to", storeUri(fleet.builder("t-a").machine), "--derivation", drv], {
      env: clientEnvironment({ clientDirectory: fleet.clientDirectory, store: `${fleet.directory}/store` }),
    });
    const connection = await DaemonConnection.open({
      alias: "t-a",
      clientDirectory: fleet.clientDirectory,
      patience: 20,
    });
    onTestFinished(() => {
      connection.close();
    });
    await connection.setOptions({ "post-build-hook": `${folder}/root${script.stdout.trim()}` });
    await connection.buildPaths([`${drv}!out`]);
    const said = readFileSync(`${folder}/state/hook`, "utf8");
    const [uid] = said.split("\n");
    // Root there, somebody without an account, or the ordinary user who runs the builder, here.
    expect(uid).toBe(isRoot ? "0" : "1000");
    const owner = statSync(`${folder}/state/hook`).uid;
    expect(owner).not.toBe(0);
    expect(said).toContain("/etc/shadow': No such file");
    expect(said).toContain("ssh_host_ed25519_key': No such file");
    expect(said).toContain("passphrase': No such file");
    expect(said).toMatch(/core_pattern: Permission denied/);
    expect(said).toMatch(/127\.0\.0\.1.*Connection refused/);
    wasStopped({
      attack: "a fully trusted client's hook",
      tried:
        "SetOptions by hand with post-build-hook: the hook runs, and reads shadow, host key, passphrase, writes core_pattern, connects to port 22",
      stopped: "it is root of the builder's container alone, where none of that is",
    });
  });
});

describe("whoever is root of a builder's container", () => {
  it("sees no file of the person's, and none of the builder's keys", async () => {
    writeFileSync(`${fleet.directory}/passphrase`, "open sesame", { mode: 0o644 });
    const wanted = [
      "/etc/shadow",
      "/root",
      process.env["HOME"] ?? "/root",
      `${fleet.directory}/passphrase`,
      `${directory()}/ssh_host_ed25519_key`,
      `${directory()}/authorized_keys`,
      process.cwd(),
      "/var/run/docker.sock",
      "/nix/var/nix/daemon-socket/socket",
    ];
    const lines = await asContainerRoot(
      wanted
        .map(
          (path) =>
            `[ -e '${path}' ] && [ ! -d '${path}' -o -n "$(ls -A '${path}' 2>/dev/null | grep -v '^\\.fleet$')" ] && echo "HOLE ${path}"`,
        )
        .join("\n"),
    );
    // Folders on the way to the builder's own are there, and empty but for the next one.
    const holes = lines.filter((line) => line.startsWith("HOLE")).map((line) => line.slice(5));
    expect(holes.filter((path) => !directory().startsWith(`${path}/`))).toEqual([]);
    expect(
      await asContainerRoot(
        `cat /proc/1/root/etc/shadow; cat /proc/[0-9]*/environ | tr '\\0' '\\n' | grep -c PASSPHRASE`,
      ),
    ).toEqual(expect.arrayContaining(["0"]));
    wasStopped({
      attack: "a fully trusted client reads the person's files",
      tried:
        "as root of the container: /etc/shadow, the home, the passphrase, the builder's host key, other daemons' sockets",
      stopped: "none of them is in the container",
    });
  });

  it("can't change what is mounted, what later builds have as /bin/sh, or the builder's configuration", async () => {
    const lines = await asContainerRoot(
      `echo x >> /busybox && echo HOLE shell
       echo x >> ${directory()}/conf/nix.conf && echo HOLE configuration
       mount -o remount,rw / && echo x >> /busybox && echo HOLE remount
       mount -t tmpfs none /usr && echo HOLE mount
       mknod /tmp/sda b 8 0 && echo HOLE device
       echo 1 > /proc/sys/kernel/sysrq && echo HOLE kernel
       mount -o remount,bind,rw /usr && echo HOLE programs
       touch /usr/bin/hole && echo HOLE programs
       mount -o remount,bind,rw ${programs} && echo HOLE programs
       echo x >> ${programs}/pivot_root && echo HOLE programs
       ls ${programs}`,
    );
    expect(lines.filter((line) => line.startsWith("HOLE"))).toEqual([]);
    expect(lines).toContain("pivot_root");
    wasStopped({
      attack: "a fully trusted client stays",
      tried:
        "as root of the container: writes /bin/sh and the configuration, mounts over them, makes a block device, sets sysctls",
      stopped: "it is root of a user namespace that owns neither the mounts nor the machine's devices and settings",
    });
  });

  it.runIf(isRoot)("has root follow no link that it planted, when the builder is started again", async () => {
    const wanted = `${fleet.directory}/wanted`;
    mkdirSync(wanted);
    const folders = ["root", "state", "log", "run"].map((name) => `${directory()}/${name}`);
    // Each entry of its folders, and names that are asked for later, lead out.
    await asContainerRoot(
      `for folder in ${folders.join(" ")}; do for name in $folder/* $folder/cache-trusted $folder/cache-untrusted $folder/nix $folder/socket; do
         mv $name $name.away 2>/dev/null; ln -s ${wanted} $name; done; done`,
    );
    const before = statSync(wanted);
    await fleet.kill("t-a");
    await startMachine(fleet.builder("t-a").local, "4").catch(() => undefined);
    expect(statSync(wanted).uid).toBe(before.uid);
    expect(readdirSync(wanted)).toEqual([]);
    await fleet.kill("t-a");
    for (const folder of folders) rmSync(folder, { recursive: true, force: true });
    await fleet.restart("t-a");
    wasStopped({
      attack: "a fully trusted client plants links",
      tried:
        "as root of the container: links out of the container in place of all that is in the builder's folders; then the builder is started again",
      stopped: "root makes and gives away nothing below a folder that the container can write to",
    });
  });

  it("keeps no builder from being started again or told something new by what it puts in place of the socket", async () => {
    const { local } = fleet.builder("t-a");
    const socket = `${directory()}/run/socket`;
    const place = `rm -rf ${socket}; mkdir -p ${socket}/socket; echo x > ${socket}/socket/file`;
    await asContainerRoot(place);
    await startMachine({ ...local, maxJobs: 3 }, "5");
    await expect.poll(() => statSync(socket).isSocket()).toBe(true);
    await asContainerRoot(place);
    await fleet.kill("t-a");
    await fleet.restart("t-a");
    const { failed, all } = await fleet.nixBuild(derivation("echo > $out"));
    expect(failed, all).toBe(false);
    wasStopped({
      attack: "a fully trusted client keeps the builder down",
      tried:
        "as root of the container: a folder in place of the daemon's socket, then another configuration, and another start",
      stopped: "the container's first process removes what is there before each daemon",
    });
  });

  it("has no file that whoever started the builder had open", async () => {
    const { local } = fleet.builder("t-a");
    await fleet.kill("t-a");
    const folder = openSync(fleet.directory, "r");
    const script = `import { startMachine } from ${JSON.stringify(resolve("src/local/machine.ts"))};
      await startMachine(JSON.parse(process.env.MACHINE), "2");`;
    const starter = spawn(process.execPath, ["--input-type=module-typescript", "-e", script], {
      env: { ...process.env, MACHINE: JSON.stringify(local) },
      // Node closes, when it starts a program, what it was given in a row.
      stdio: ["ignore", "inherit", "inherit", ...Array.from({ length: 30 }, () => "ignore" as const), folder],
    });
    closeSync(folder);
    expect(await new Promise((done) => starter.once("exit", done))).toBe(0);
    const lines = await asContainerRoot(
      `for process in /proc/[0-9]*; do
         to=$(readlink $process/fd/33) && [ "$to" != /dev/null ] && echo "HOLE $process $to"
       done`,
    );
    expect(lines.filter((line) => line.startsWith("HOLE"))).toEqual([]);
    wasStopped({
      attack: "a fully trusted client looks for open files",
      tried: "as root of the container: /proc/PID/fd, after a start by a program that had the stack's folder open",
      stopped: "the container is started with its own files alone",
    });
  });

  it("sees no process of this machine", async () => {
    const [pids = ""] = await asContainerRoot("cd /proc && echo [0-9]*");
    const namespace = readlinkSync(`/proc/${runningContainer(directory()) ?? 0}/ns/pid`);
    const own = readdirSync("/proc").filter((entry) => {
      try {
        return /^\d+$/.test(entry) && readlinkSync(`/proc/${entry}/ns/pid`) === namespace;
      } catch {
        return false;
      }
    });
    // Those of the container, the one that asks, and its parent.
    expect(pids.split(" ").length).toBeLessThanOrEqual(own.length + 2);
    wasStopped({
      attack: "a fully trusted client looks at processes",
      tried: "as root of the container: lists /proc",
      stopped: "it has a PID namespace of its own",
    });
  });
});

/** perl's numbers of system calls. */
const calls = process.arch === "arm64" ? { ptrace: 117 } : { ptrace: 101 };
const perl = "/usr/bin/perl";
if (!existsSync(perl))
  console.log(`skipped: system calls of the container's root. ${perl} is missing, which makes them`);

describe.runIf(existsSync(perl))("whoever is root of a builder's container, by system calls of its own", () => {
  it("takes over no session while that is still somebody of this machine", async () => {
    // Tries to trace whatever process comes next, and says so if it is a user whom the container doesn't have.
    const script = `
      use strict; my ($tries, $traced) = (0, 0); my $end = time + 8;
      open my $last, "<", "/proc/sys/kernel/ns_last_pid" or die;
      while (time < $end) { for (1 .. 500) {
        sysseek $last, 0, 0; sysread $last, my $pid, 20; $pid += 0;
        for my $next ($pid .. $pid + 2) {
          next if $next == $$ or syscall(${calls.ptrace}, 0x4206, $next, 0, 0) != 0;
          $traced++;
          open my $status, "<", "/proc/$next/status" or next;
          my ($uid) = join("", <$status>) =~ /^Uid:\\t(\\d+)/m;
          if ($uid == 65534) { print "HOLE $next\\n"; exit }
        }
        1 while waitpid(-1, 1) > 0;
      } }
      print "traced $traced\\n";`;
    const [program, ...words] = [...asRoot(), perl, "-e", script];
    const attacker = execa(program, words, { all: true, reject: false });
    const ssh = ["-F", `${fleet.clientDirectory}/ssh_config`, "-o", "ControlPath=none", "t-a", "nix-daemon --stdio"];
    const env = clientEnvironment({ clientDirectory: fleet.clientDirectory, store: `${fleet.directory}/store` });
    const sessions = new AbortController();
    const ended = attacker.finally(() => {
      sessions.abort();
    });
    while (!sessions.signal.aborted) await execa("ssh", ssh, { env, stdin: "ignore", reject: false });
    const { all } = await ended;
    expect(all.split("\n").filter((line) => isRoot && line.startsWith("HOLE"))).toEqual([]);
    // What it could trace, it did.
    expect(Number(/traced (\d+)/.exec(all)?.[1] ?? "0"), all).toBeGreaterThan(0);
    wasStopped({
      attack: "a fully trusted client takes over sessions that enter",
      tried:
        "as root of the container: PTRACE_SEIZE of each next process while sessions come, to catch one that is root yet",
      stopped: "what enters is one of the container's users before it is among the container's processes",
    });
  });

  it("can't take over the way out of its network, go around what is refused there, or send packets by hand", async () => {
    const lines = await asContainerRoot(
      `for process in /proc/[0-9]*; do
         read -r name < $process/comm; [ "$name" = pasta ] && pasta=\${process#/proc/}
       done
       [ -z "$pasta" ] || ${perl} -e 'print "HOLE trace\\n" if syscall(${calls.ptrace}, 0x4206, '$pasta', 0, 0) == 0'
       ${perl} -MSocket -e 'print "HOLE packets\\n" if socket(my $s, 17, 3, 768); print "HOLE raw\\n" if socket(my $r, AF_INET, 3, 6)'
       ip rule del pref 1 2>/dev/null && echo HOLE rule
       ip route add 198.51.100.1/32 dev lo 2>/dev/null && echo HOLE route
       ip route flush table local 2>/dev/null && echo HOLE local
       echo "pasta $pasta"`,
    );
    expect(lines.filter((line) => line.startsWith("HOLE"))).toEqual([]);
    wasStopped({
      attack: "a fully trusted client leaves by the network",
      tried:
        "as root of the container: traces pasta, which is in this machine's network; sends packets by hand; changes rules and routes",
      stopped: "the network belongs to another user namespace, in which the container's root has no rights",
    });
  });
});

describe("a builder's session", () => {
  it("enters no container whose way out isn't finished", async ({ skip }) => {
    skip(findLocalTools(system).container.ip === undefined, "ip is missing");
    const { local } = fleet.builder("t-a");
    await fleet.kill("t-a");
    const wait = `${directory()}/run/wait`;
    execFileSync("mkfifo", ["-m", "666", wait]);
    const cache = `${programs}/cache`;
    const bin = `${cache}/nix-builder-fleet/bin`;
    mkdirSync(bin, { recursive: true });
    copyFileSync(findLocalTools(system).shell, `${bin}/busybox-${kernelArch(system)}`);
    // The container has that folder, too.
    writeFileSync(`${bin}/pasta`, `#!/bin/sh\nread -r _ <${wait}\nexit 1\n`, { mode: 0o755 });
    const present = process.env["XDG_CACHE_HOME"];
    vi.stubEnv("XDG_CACHE_HOME", cache);
    onTestFinished(async () => {
      vi.stubEnv("XDG_CACHE_HOME", present);
      rmSync(wait);
      await fleet.kill("t-a");
      await fleet.restart("t-a");
    });
    const start = startMachine(local, "2");
    let waiting = -1;
    await expect
      .poll(() => {
        try {
          // Fails as long as nobody reads.
          waiting = openSync(wait, constants.O_WRONLY | constants.O_NONBLOCK);
        } catch {
          return false;
        }
        return true;
      })
      .toBe(true);
    expect(runningContainer(directory())).toBeUndefined();
    closeSync(waiting);
    await start;
    expect(runningContainer(directory())).toBeDefined();
  });

  it("enters nothing when its container's pid is somebody else's by now", async () => {
    const file = `${directory()}/container.pid`;
    const before = readFileSync(file, "utf8");
    onTestFinished(() => {
      writeFileSync(file, before);
    });
    writeFileSync(file, `${process.pid} 1\n`);
    const { failed, all } = await fleet.nixBuild(derivation("echo > $out"));
    expect(failed).toBe(true);
    expect(all).toContain("this builder does not run; refused");
    wasStopped({
      attack: "a pid that is another process's by now",
      tried: "the file that names the container's first process names another one",
      stopped: "the session compares the start time, and enters nothing",
    });
  });
});

describe("whoever connects and says nothing", () => {
  it("does not lock clients out", async () => {
    const { address, port } = fleet.builder("t-a").local;
    const sockets = Array.from({ length: 150 }, () => connect({ host: address, port }));
    onTestFinished(() => {
      for (const socket of sockets) socket.destroy();
    });
    await Promise.all(sockets.map((socket) => new Promise((done) => socket.once("data", done))));
    const env = clientEnvironment({ clientDirectory: fleet.clientDirectory, store: `${fleet.directory}/store` });
    const logins = Array.from({ length: 8 }, () =>
      execa("ssh", ["-F", `${fleet.clientDirectory}/ssh_config`, "-o", "ControlPath=none", "t-a", "id"], {
        env,
        all: true,
        reject: false,
        stdin: "ignore",
      }),
    );
    for (const { all } of await Promise.all(logins)) expect(all).toContain("refused");
    wasStopped({
      attack: "another user keeps connections open",
      tried: "150 connections to a builder's sshd that never log in",
      stopped: "sshd takes more of them (MaxStartups), and ends each after 10 s (LoginGraceTime)",
    });
  });
});

describe("a builder that is stopped (SIGSTOP)", () => {
  it.each(["sshd", "container"] as const)(
    "by its %s: doesn't count as running, and is started again",
    async (which) => {
      const { local } = fleet.builder("t-a");
      const pid = which === "sshd" ? fleet.sshd("t-a") : (runningContainer(local.directory) ?? 0);
      const before = machineGeneration(local.directory);
      process.kill(pid, "SIGSTOP");
      await expect.poll(() => machineGeneration(local.directory)).not.toBe(before);
      await startMachine(local, "3");
      const { failed, all } = await fleet.nixBuild(derivation("echo > $out"));
      expect(failed, all).toBe(false);
      wasStopped({
        attack: `a stopped ${which}`,
        tried: `SIGSTOP for the builder's ${which}`,
        stopped: "the next `up` sees a builder that doesn't run, and starts it again",
      });
    },
  );
});

describe("a builder whose container has lost the process that made it", () => {
  it("is there as before, or started again by the next `up`", async () => {
    const { local } = fleet.builder("t-a");
    process.kill(Number(parentOfContainer()), "SIGKILL");
    await startMachine(local, "6");
    const { failed, all } = await fleet.nixBuild(derivation("echo > $out"));
    expect(failed, all).toBe(false);
  });
});

describe.runIf(isRoot)("a store that root owned, from before its builder had a container", () => {
  it("goes on in the container", async () => {
    const built = await fleet.nixBuild(derivation("echo kept > $out"));
    const storePath = built.stdout.trim();
    await fleet.kill("t-a");
    for (const folder of ["root", "state", "log"]) execFileSync("chown", ["-hR", "0:0", `${directory()}/${folder}`]);
    await fleet.restart("t-a");
    expect(statSync(`${directory()}/root${storePath}`).uid).not.toBe(0);
    const { failed, all } = await fleet.nixBuild(derivation("echo > $out"));
    expect(failed, all).toBe(false);
  });
});
