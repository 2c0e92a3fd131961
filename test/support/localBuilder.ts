/** A real builder for one test: sshd on a loopback address of its own, pinned host key, Nix behind it. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir, userInfo } from "node:os";
import { join } from "node:path";
import { defaultBuildLimits } from "../../src/bootstrap/defaults.ts";
import { removeMachine, startMachine } from "../../src/local/machine.ts";
import type { BuildMachine } from "../../src/nix/buildMachine.ts";
import { systemOfThisMachine } from "../../src/nix/system.ts";
import { toPublicHostKey } from "../../src/ssh/hostKey.ts";
import { newSigningKey } from "./signingKey.ts";

/** A running builder and what a client needs for it. */
export interface LocalBuilder {
  readonly machine: BuildMachine;
  /** Text of the private key that it accepts. */
  readonly clientPrivateKey: string;
  /** Folder for the test's own files, removed with the builder. */
  readonly directory: string;
  stop(): Promise<void>;
}

/** Starts a builder for this machine's own system. */
export async function startLocalBuilder(alias = "here"): Promise<LocalBuilder> {
  const system = systemOfThisMachine();
  if (system === undefined) throw new Error("local builders need Linux on x86_64 or Arm");
  const directory = mkdtempSync(join(tmpdir(), "fleet-test-"));
  const key = (name: string) => {
    const file = `${directory}/${name}`;
    execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", file]);
    return { privateKey: readFileSync(file, "utf8"), publicKey: readFileSync(`${file}.pub`, "utf8") };
  };
  const [host, client, admin] = [key("host"), key("client"), key("admin")];
  const address = "127.77.0.1";
  const port = await freePort(address);
  const features = ["big-parallel"];
  const builder = `${directory}/.fleet/stacks/t/machines/x86`;
  const stop = async () => {
    await removeMachine(builder);
    execFileSync("chmod", ["-R", "u+w", directory]);
    rmSync(directory, { recursive: true, force: true });
  };
  await startMachine(
    {
      ...defaultBuildLimits,
      directory: builder,
      address,
      port,
      system,
      features,
      hostPrivateKey: host.privateKey,
      clients: [{ publicKey: client.publicKey, trust: "full" }],
      trustedPublicKeys: [],
      signingKey: newSigningKey("local-builder").secretKey,
      adminPublicKey: admin.publicKey,
    },
    "1",
  ).catch(async (error: unknown) => {
    await stop();
    throw error;
  });
  return {
    machine: {
      alias,
      hostName: address,
      port,
      protocol: "ssh-ng",
      systems: [system],
      sshUser: userInfo().username,
      maxJobs: 4,
      speedFactor: 1,
      supportedFeatures: features,
      mandatoryFeatures: [],
      publicHostKey: toPublicHostKey(host.publicKey),
    },
    clientPrivateKey: client.privateKey,
    directory,
    stop,
  };
}

async function freePort(address: string): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, address, resolve));
  const bound = server.address();
  await new Promise((resolve) => server.close(resolve));
  if (bound === null || typeof bound === "string") throw new Error("no port");
  return bound.port;
}
