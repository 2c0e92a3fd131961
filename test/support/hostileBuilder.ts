/** A builder that means harm: a real sshd whose every answer, to its clients and to its administrator, is a script of the test's. */
import { execFileSync } from "node:child_process";
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import type { BuildMachine } from "../../src/nix/buildMachine.ts";
import { clientFiles } from "../../src/nix/clientFiles.ts";
import { writeClientDirectory } from "../../src/client/directory.ts";
import { systemOfThisMachine } from "../../src/nix/system.ts";
import { toPublicHostKey } from "../../src/ssh/hostKey.ts";
import { SshServer } from "../plugins/sshServer.ts";

/** A running one. */
export interface HostileBuilder {
  readonly machine: BuildMachine;
  /** Folder with a client's emitted files that lead to it. */
  readonly clientDirectory: string;
  readonly server: SshServer;
  /** Sets what it does at each login from now on: POSIX shell. */
  answer(script: string): void;
  /** How often somebody has logged in. */
  logins(): number;
  stop(): Promise<void>;
}

/** Starts one, on an address of its own. */
export async function startHostileBuilder(address: string, banner = ""): Promise<HostileBuilder> {
  const server = await SshServer.prepare(address);
  const script = `${server.dir}/answer`;
  writeFileSync(`${server.dir}/banner`, banner);
  writeFileSync(
    `${server.dir}/sshd_config`,
    `${readFileSync(`${server.dir}/sshd_config`, "utf8")}\nForceCommand echo >>${server.dir}/logins; exec ${script}\nBanner ${server.dir}/banner\n`,
  );
  const answer = (text: string): void => {
    writeFileSync(script, `#!/bin/sh\n${text}\n`);
    chmodSync(script, 0o700);
  };
  answer("exit 1");
  await server.listen();
  const machine: BuildMachine = {
    alias: "evil",
    hostName: address,
    port: server.port,
    protocol: "ssh-ng",
    systems: [systemOfThisMachine() ?? "x86_64-linux"],
    sshUser: server.user,
    maxJobs: 2,
    speedFactor: 1,
    supportedFeatures: [],
    mandatoryFeatures: [],
    publicHostKey: toPublicHostKey(server.hostKey),
  };
  const clientDirectory = `${server.dir}/.fleet/stacks/t/client`;
  mkdirSync(clientDirectory, { recursive: true });
  writeClientDirectory(clientDirectory, {
    ...clientFiles([machine], { directory: clientDirectory }),
    id_ed25519: server.clientKey,
  });
  return {
    machine,
    clientDirectory,
    server,
    answer,
    logins: () => {
      try {
        return readFileSync(`${server.dir}/logins`, "utf8").length;
      } catch {
        return 0;
      }
    },
    stop: async () => {
      execFileSync("chmod", ["-R", "u+w", server.dir]);
      await server.stop();
    },
  };
}

/** Shell that prints this text, byte for byte. */
export function print(text: string | Buffer): string {
  return `printf %s '${Buffer.from(text).toString("base64")}' | base64 -d`;
}
