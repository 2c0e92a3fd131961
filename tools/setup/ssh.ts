/** OpenSSH's server, for the builders on this machine, and its client. */
import { existsSync } from "node:fs";
import { dirname } from "node:path";
import { LaunchError } from "../launch.mjs";
import { installPackages } from "./apt.ts";
import { run } from "./commands.ts";
import { findProgram, type Host } from "./host.ts";
import { step } from "./progress.ts";

export interface Ssh {
  /** Absolute: sshd refuses to start when called by a relative path. */
  readonly sshd: string;
  /** The directory with `ssh` and `ssh-keygen`. */
  readonly client: string;
}

/**
 * The programs of OpenSSH that are here, or those that apt installs. No service is started or left enabled.
 *
 * @throws {LaunchError} if they are absent and apt may not or can't install them.
 */
export async function findSsh(host: Host): Promise<Ssh> {
  const places = ["/usr/sbin", "/usr/local/sbin", "/run/current-system/sw/bin"];
  const find = () => ({
    sshd: findProgram("sshd", places),
    ssh: findProgram("ssh"),
    keygen: findProgram("ssh-keygen"),
  });
  let { sshd, ssh, keygen } = find();
  const missing = [
    ...(ssh === undefined || keygen === undefined ? ["openssh-client"] : []),
    ...(sshd === undefined ? ["openssh-server"] : []),
  ];
  if (missing.length > 0 && host.root && host.distribution !== "other") {
    await step(`installing ${missing.join(" and ")} with apt`, () => installPackages(missing));
    if (missing.includes("openssh-server")) await disableService();
    ({ sshd, ssh, keygen } = find());
  }
  if (sshd === undefined || ssh === undefined || keygen === undefined)
    throw new LaunchError(
      `OpenSSH is needed for the builders on this machine, and ${missing.join(" and ")} is missing. Please install it` +
        (host.distribution === "other" ? "." : `: sudo apt-get install --no-install-recommends ${missing.join(" ")}`),
    );
  return { sshd, client: dirname(ssh) };
}

/** A server that was installed for our own sshd processes must not open port 22 at the next boot. */
async function disableService(): Promise<void> {
  if (!existsSync("/run/systemd/system")) return;
  for (const unit of ["ssh.service", "ssh.socket"]) await run("systemctl", ["disable", unit]).catch(() => "");
}
