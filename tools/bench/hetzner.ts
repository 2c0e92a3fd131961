/** How long many builders at Hetzner Cloud take against one: at an emulated API, whose servers boot at once. */
import { systemOfThisMachine } from "../../src/nix/system.ts";
import { TestDeployment } from "../../test/support/engine.ts";
import { EmulatedApi } from "../../test/support/hcloud/emulatedApi.ts";
import { hostObstacle } from "../../test/support/hcloud/host.ts";
import { ConversionStandIn } from "../../test/support/hcloud/conversionStandIn.ts";
import { time, type Claim } from "./measure.ts";

/**
 * Measures in `rounds` rounds, each count of builders once a round, from nothing to verified.
 *
 * @param say Called with a line for each thing measured, or with why nothing can be.
 */
export async function benchHetzner(rounds: number, say: (line: string) => void): Promise<Claim[]> {
  const obstacle = hostObstacle();
  const system = systemOfThisMachine();
  if (obstacle !== undefined || system === undefined) {
    say(`not measured: builders at Hetzner Cloud. ${obstacle ?? "They need Linux on x86_64 or Arm"}`);
    return [];
  }
  const candidates = [system === "x86_64-linux" ? "ccx23@fsn1" : "cax31@fsn1"];
  const standIn = new ConversionStandIn();
  const times: Record<1 | 8, number[]> = { 1: [], 8: [] };
  try {
    for (let round = 0; round < rounds; round++) {
      for (const count of [1, 8] as const) {
        const milliseconds = await deploy({
          builders: [{ name: "own", provider: "hcloud", system, candidates, count }],
          access: { allowedCidrs: ["127.0.0.0/8"] },
          hcloud: standIn.configuration,
        });
        times[count].push(milliseconds);
        say(`hcloud, ${count}: ${(milliseconds / 1000).toFixed(2)} s`);
      }
    }
  } finally {
    standIn.remove();
  }
  return [
    {
      claim: "8 builders at an emulated Hetzner Cloud / 1 builder",
      measured: times[8],
      baseline: times[1],
      limit: { atMost: 2 },
    },
  ];
}

/** Milliseconds of the first `up` of a new stack, which is destroyed after it. */
async function deploy(configuration: Readonly<Record<string, unknown>>): Promise<number> {
  const api = await EmulatedApi.start();
  try {
    const fleet = await TestDeployment.create(configuration, api.env, ["hcloud"]);
    try {
      return await time(async () => {
        const { exitCode, output } = await fleet.up();
        if (exitCode !== 0) throw new Error(`up failed:\n${output}`);
      });
    } finally {
      await fleet.remove();
    }
  } finally {
    await api.stop();
  }
}
