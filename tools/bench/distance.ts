/** How long 21 small derivations take over a distance: the Nix manual's configuration against the emitted one and a remote store. */
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { execa } from "execa";
import { clientEnvironment } from "../../src/client/environment.ts";
import { writeClientDirectory } from "../../src/client/directory.ts";
import { clientFiles } from "../../src/nix/clientFiles.ts";
import type { BuildMachine } from "../../src/nix/buildMachine.ts";
import { renderBuildersLine, storeUri } from "../../src/nix/machinesFile.ts";
import { toHostKey } from "../../src/ssh/hostKey.ts";
import { startDelayProxy } from "../../test/support/delayProxy.ts";
import { startLocalBuilder, type LocalBuilder } from "../../test/support/localBuilder.ts";
import { time, type Claim } from "./measure.ts";

/** Milliseconds of the distance's round trip. */
const roundTrip = 50;

/**
 * Measures in `rounds` rounds, each way once a round, on a builder of this machine behind a proxy.
 *
 * @param say Called with a line for each thing measured.
 */
export async function benchDistance(rounds: number, say: (line: string) => void): Promise<Claim[]> {
  const builder = await startLocalBuilder("bench");
  const { hostName, port } = builder.machine;
  const proxy = await startDelayProxy("127.77.0.2", { host: hostName, port }, roundTrip);
  const ways = {
    manual: manualClient(builder, { hostName: "127.77.0.2", port: proxy.port }),
    emitted: emittedClient(builder, "emitted", { hostName: "127.77.0.2", port: proxy.port }),
    remoteStore: remoteStoreClient(builder, "far", { hostName: "127.77.0.2", port: proxy.port }),
    remoteStoreNear: remoteStoreClient(builder, "near", {}),
  };
  const times: Record<keyof typeof ways, number[]> = { manual: [], emitted: [], remoteStore: [], remoteStoreNear: [] };
  try {
    // Once uncounted: every client opens its store, and the shared ones their connection.
    for (const run of Object.values(ways)) await run("warm");
    for (let round = 0; round < rounds; round++) {
      for (const [name, run] of Object.entries(ways) as [keyof typeof ways, (nonce: string) => Promise<void>][]) {
        const milliseconds = await time(() => run(`${name}${round}`));
        times[name].push(milliseconds);
        say(`21 derivations, ${name}: ${(milliseconds / 1000).toFixed(2)} s`);
      }
    }
  } finally {
    await proxy.close();
    await builder.stop();
  }
  return [
    {
      claim: `21 derivations over ${roundTrip} ms: the Nix manual's configuration / the emitted one (remote-only)`,
      measured: times.manual,
      baseline: times.emitted,
      limit: { atLeast: 1.8 },
    },
    {
      claim: `21 derivations over ${roundTrip} ms: the Nix manual's configuration / remote store`,
      measured: times.manual,
      baseline: times.remoteStore,
      limit: { atLeast: 12 },
    },
    {
      // Not a ratio of the two: the builds between the round trips take as long as the builder is slow. docs/decisions.md, 2026-11-24.
      claim: `21 derivations, remote store: what the distance adds / a round trip of ${roundTrip} ms`,
      measured: times.remoteStore.map((milliseconds, round) => milliseconds - (times.remoteStoreNear[round] ?? 0)),
      baseline: times.remoteStore.map(() => roundTrip),
      limit: { atMost: 11 },
    },
  ];
}

type Place = Partial<Pick<BuildMachine, "hostName" | "port">>;

/** As chapter "Remote Builds" of the Nix manual has it: a builders line, and an ssh_config with what it takes to connect. */
function manualClient(builder: LocalBuilder, place: Place): (nonce: string) => Promise<void> {
  const machine = { ...builder.machine, ...place };
  const directory = join(builder.directory, "manual");
  const key = `${directory}/id_ed25519`;
  writeClientDirectory(directory, {
    id_ed25519: builder.clientPrivateKey,
    known_hosts: `[${machine.hostName}]:${machine.port} ${toHostKey(machine.publicHostKey)}\n`,
    ssh_config: `Host ${machine.alias}\n  HostName ${machine.hostName}\n  Port ${machine.port}\n  IdentityFile ${key}\n  HostKeyAlias ${machine.alias}\n  UserKnownHostsFile ${directory}/known_hosts\n`,
    "nix.conf": `builders = ${renderBuildersLine(machine, { sshKey: key })}\n`,
  });
  return builds(directory);
}

function emittedClient(builder: LocalBuilder, name: string, place: Place): (nonce: string) => Promise<void> {
  const directory = join(builder.directory, name);
  // As `builds` has it anyhow. Other profiles differ in what the client builds itself, not in how it reaches the fleet.
  const files = clientFiles([{ ...builder.machine, ...place }], {
    directory,
    profile: "remote-only",
    maxSessions: 100,
  });
  writeClientDirectory(directory, { ...files, id_ed25519: builder.clientPrivateKey });
  return builds(directory);
}

function remoteStoreClient(builder: LocalBuilder, name: string, place: Place): (nonce: string) => Promise<void> {
  emittedClient(builder, name, place);
  const directory = join(builder.directory, name);
  const evalStore = `local?root=${directory}/store`;
  return builds(directory, ["--store", storeUri(builder.machine), "--eval-store", evalStore, "--max-jobs", "4"]);
}

/** A build of 20 derivations and one that needs them all, with what the folder says. */
function builds(directory: string, words: readonly string[] = []): (nonce: string) => Promise<void> {
  const store = `${directory}/store`;
  mkdirSync(store, { recursive: true });
  return async (nonce) => {
    const expression = `${directory}/bench.nix`;
    writeFileSync(expression, twentyOne(nonce));
    await execa("nix-build", [expression, "--no-out-link", "--option", "substituters", "", ...words], {
      env: clientEnvironment({ clientDirectory: directory, store }),
      stdin: "ignore",
      timeout: 180_000,
    });
    rmSync(expression);
  };
}

function twentyOne(nonce: string): string {
  return `let
  echo = name: needs: derivation {
    inherit name needs;
    system = "${process.arch === "arm64" ? "aarch64-linux" : "x86_64-linux"}";
    builder = "/bin/sh";
    args = [ "-c" "echo ${nonce} > $out" ];
  };
in echo "last-${nonce}" (builtins.genList (i: echo "part-\${toString i}-${nonce}" [ ]) 20)
`;
}
