/**
 * A server of the emulated cloud that is a virtual machine: a Debian with a kernel of its own under QEMU, on port 22 of a
 * loopback address, which obeys its user data by its own cloud-init. It reaches no network. From its second start on it is its firmware
 * that boots it, by what lies on its disk.
 */
import { execFileSync, spawn, type ChildProcess } from "node:child_process";
import {
  closeSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { seedMount, type BootableDebian } from "../../../tools/setup/virtualMachine.ts";
import { kill, type HostOptions, type Machine } from "./host.ts";

/** Address of a file in `directory`, as a virtual machine that was given it sees it. */
export function addressInside(directory: string, file: string): string {
  return `file://${seedMount}/${basename(directory)}/${file}`;
}

/** What boots a machine. */
export type Firmware = "BIOS" | "UEFI";

/** A running virtual machine. */
export class VirtualMachine implements Machine {
  readonly directory = mkdtempSync(join(tmpdir(), "fleet-vm-"));
  readonly #words: readonly string[];
  #process: ChildProcess;
  #stopped = false;

  /** @param fetched Folder that it finds at `addressInside`. */
  constructor(debian: BootableDebian, firmware: Firmware, fetched: string, options: HostOptions) {
    const { directory } = this;
    const { address, hostName, userData, snapshot, fault } = options;
    if (snapshot !== undefined || fault !== undefined)
      throw new Error("a virtual machine starts as a faultless Debian");
    const seed = join(directory, "seed");
    mkdirSync(seed);
    writeFileSync(join(seed, "user-data"), userData);
    writeFileSync(join(seed, "meta-data"), `instance-id: ${hostName}\nlocal-hostname: ${hostName}\n`);
    cpSync(fetched, join(seed, basename(fetched)), { recursive: true });
    const disk = join(directory, "disk");
    // Most of it was never written.
    execFileSync("cp", ["--sparse=always", debian.disk, disk]);
    this.#words = [
      ...["--pdeathsig", "KILL", debian.qemu],
      // Emulated to the last instruction: a `/dev/kvm` may be there and not work, and not every machine can do `-cpu max`.
      ...["-accel", "tcg", "-cpu", "Nehalem", "-smp", "1", "-m", "1536"],
      ...["-nodefaults", "-display", "none", "-serial", "stdio", "-device", "virtio-rng-pci"],
      ...["-drive", `file=${disk},format=raw,if=virtio`],
      ...["-drive", `driver=vvfat,dir=${seed},label=CIDATA,fat-type=16,read-only=on,if=virtio`],
      ...["-netdev", `user,id=net,restrict=on,hostfwd=tcp:${address}:22-:22`, "-device", "virtio-net-pci,netdev=net"],
    ];
    const append = `root=UUID=${debian.root} rw console=ttyS0`;
    // As Hetzner starts an image that has a boot loader: this one has none, and QEMU ends instead of starting it again.
    this.#process = this.#start("-no-reboot", "-kernel", debian.kernel, "-initrd", debian.initrd, "-append", append);
    this.#process.once("exit", () => {
      if (!this.#stopped) this.#process = this.#start(...(firmware === "UEFI" ? ["-bios", debian.uefi] : []));
    });
  }

  /** Its console. */
  get log(): string {
    const path = join(this.directory, "log");
    return existsSync(path) ? readFileSync(path, "utf8") : "";
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await kill(this.#process);
    rmSync(this.directory, { recursive: true, force: true });
  }

  /** Dies with this process, whatever ends it. */
  #start(...more: string[]): ChildProcess {
    const console = openSync(join(this.directory, "log"), "a");
    const started = spawn("setpriv", [...this.#words, ...more], { stdio: ["ignore", console, console] });
    closeSync(console);
    return started;
  }
}
