/**
 * A server of the emulated cloud that is a virtual machine: a Debian with a kernel of its own under QEMU, on port 22 of a
 * loopback address, which obeys its user data by its own cloud-init. It reaches no network.
 */
import { spawn, type ChildProcess } from "node:child_process";
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

/** Address of the git repository in `directory`, as a virtual machine that was given it sees it. */
export function addressInside(directory: string): string {
  return `file://${seedMount}/${basename(directory)}`;
}

/** A running virtual machine. */
export class VirtualMachine implements Machine {
  readonly directory = mkdtempSync(join(tmpdir(), "fleet-vm-"));
  readonly #process: ChildProcess;

  /** @param repository Folder that it finds at `addressInside`. */
  constructor(debian: BootableDebian, repository: string, options: HostOptions) {
    const { directory } = this;
    const { address, hostName, userData, snapshot, fault } = options;
    if (snapshot !== undefined || fault !== undefined)
      throw new Error("a virtual machine starts as a faultless Debian");
    const seed = join(directory, "seed");
    mkdirSync(seed);
    writeFileSync(join(seed, "user-data"), userData);
    writeFileSync(join(seed, "meta-data"), `instance-id: ${hostName}\nlocal-hostname: ${hostName}\n`);
    cpSync(repository, join(seed, basename(repository)), { recursive: true });
    const console = openSync(join(directory, "log"), "a");
    // Dies with this process, whatever ends it. The disk's changes go to a file without a name, and with it.
    const args = ["--pdeathsig", "KILL", debian.qemu, "-snapshot", ...machine(debian), ...disk(debian.disk)];
    args.push("-drive", `driver=vvfat,dir=${seed},label=CIDATA,fat-type=16,read-only=on,if=virtio`);
    args.push(
      "-netdev",
      `user,id=net,restrict=on,hostfwd=tcp:${address}:22-:22`,
      "-device",
      "virtio-net-pci,netdev=net",
    );
    this.#process = spawn("setpriv", args, { stdio: ["ignore", console, console] });
    closeSync(console);
  }

  /** Its console. */
  get log(): string {
    const path = join(this.directory, "log");
    return existsSync(path) ? readFileSync(path, "utf8") : "";
  }

  async stop(): Promise<void> {
    await kill(this.#process);
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** Emulated to the last instruction: a `/dev/kvm` may be there and not work, and not every machine can do `-cpu max`. */
function machine({ kernel, initrd }: BootableDebian): string[] {
  return [
    ...["-accel", "tcg", "-cpu", "Nehalem", "-smp", "1", "-m", "1536"],
    ...["-nodefaults", "-display", "none", "-serial", "stdio", "-device", "virtio-rng-pci"],
    ...["-kernel", kernel, "-initrd", initrd, "-append", "root=/dev/vda rw console=ttyS0"],
  ];
}

function disk(file: string): string[] {
  return ["-drive", `file=${file},format=raw,if=virtio`];
}
