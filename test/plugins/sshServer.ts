/** A real OpenSSH server for one test file, on an address of its own in 127.0.0.0/8, with its own host and client keys. */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir, userInfo } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

const SSHD = "/usr/sbin/sshd";

/** Why there can be no server here, undefined where there can. */
export function noSshServer(): string | undefined {
  return existsSync(SSHD) ? undefined : `${SSHD} is missing: install openssh-server`;
}

export class SshServer {
  readonly address: string;
  readonly port: number;
  /** Of the user who runs the tests. */
  readonly user = userInfo().username;
  /** Lines as in a `.pub` file. */
  readonly hostKey: string;
  /** In OpenSSH form, and let in. */
  readonly clientKey: string;
  /** For the files of a test; removed at the end. */
  readonly dir: string;
  #process: ChildProcess | undefined;

  private constructor(dir: string, address: string, port: number) {
    this.dir = dir;
    this.address = address;
    this.port = port;
    this.hostKey = readFileSync(join(dir, "host.pub"), "utf8").trim();
    this.clientKey = readFileSync(join(dir, "client"), "utf8");
  }

  /** Keys, port and configuration; nobody listens yet. Accepts the environment variables FLEET_… and PULUMI_COMMAND_…. */
  static async prepare(address: string): Promise<SshServer> {
    const dir = mkdtempSync(join(tmpdir(), "fleet-plugins-"));
    makeKey(join(dir, "host"));
    makeKey(join(dir, "client"));
    writeFileSync(join(dir, "authorized_keys"), readFileSync(join(dir, "client.pub")));
    const port = await freePort(address);
    writeFileSync(join(dir, "sshd_config"), configuration(dir, address, port));
    return new SshServer(dir, address, port);
  }

  static async start(address: string): Promise<SshServer> {
    const server = await SshServer.prepare(address);
    await server.listen();
    return server;
  }

  async listen(): Promise<void> {
    // The privilege separation directory that sshd insists on as root.
    if (userInfo().uid === 0) mkdirSync("/run/sshd", { recursive: true });
    const child = spawn(SSHD, ["-D", "-e", "-f", join(this.dir, "sshd_config")], {
      stdio: ["ignore", "ignore", "pipe"],
    });
    this.#process = child;
    const said: string[] = [];
    await new Promise<void>((resolve, reject) => {
      createInterface(child.stderr).on("line", (line) => {
        said.push(line);
        if (line.startsWith("Server listening")) resolve();
      });
      child.once("exit", () => {
        reject(new Error(`sshd ended: ${said.join("\n")}`));
      });
    });
  }

  /** Inputs for a connection that works. */
  connection(): { host: string; port: number; user: string; privateKey: string; hostKey: string } {
    return { host: this.address, port: this.port, user: this.user, privateKey: this.clientKey, hostKey: this.hostKey };
  }

  /** Lets another key in, by its public line. */
  authorize(publicKey: string): void {
    writeFileSync(join(this.dir, "authorized_keys"), publicKey, { flag: "a" });
  }

  async stop(): Promise<void> {
    if (this.#process?.exitCode === null) {
      this.#process.kill();
      await once(this.#process, "exit");
    }
    rmSync(this.dir, { recursive: true, force: true });
  }
}

/** Writes an ed25519 key pair to `path` and `path`.pub. */
export function makeKey(path: string, options: readonly string[] = ["-t", "ed25519", "-N", ""]): void {
  execFileSync("ssh-keygen", ["-q", "-C", "", "-f", path, ...options]);
}

/** A port that nobody listened on a moment ago. */
export async function freePort(address: string): Promise<number> {
  const server = createServer().listen(0, address);
  await once(server, "listening");
  const bound = server.address();
  server.close();
  await once(server, "close");
  if (bound === null || typeof bound === "string") throw new Error("no port was bound");
  return bound.port;
}

function configuration(dir: string, address: string, port: number): string {
  return `
ListenAddress ${address}:${port}
HostKey ${join(dir, "host")}
PidFile none
AuthorizedKeysFile ${join(dir, "authorized_keys")}
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
AcceptEnv FLEET_* PULUMI_COMMAND_*
Subsystem sftp internal-sftp
`;
}
