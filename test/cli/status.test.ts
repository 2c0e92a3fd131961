import { afterAll, beforeAll, expect, it } from "vitest";
import { rmSync } from "node:fs";
import { liveStatus, recordedStatus, renderStatus } from "../../src/cli/status.ts";
import { parseFleet, stackDirectory, type UsableFleet } from "../../src/cli/stack.ts";
import { nixbuildNet } from "../../src/nix/nixbuildNet.ts";
import { startLocalBuilder, type LocalBuilder } from "../support/localBuilder.ts";

const stack = `status-test-${process.pid}`;
let builder: LocalBuilder;
let fleet: UsableFleet;
beforeAll(async () => {
  builder = await startLocalBuilder();
  fleet = {
    ...parseFleet(stack, {
      // A service is never asked: its address leads out of this machine.
      builders: [builder.machine, nixbuildNet({ sshKey: "/root/.ssh/nixbuild" })],
      verification: { x86: { verified: true, alias: "here", level: "quick", seconds: 1.25, cases: [] } },
      measurement: {},
      administration: {},
      clientSettings: { directory: "/etc/nix/fleet", localSystems: [], caches: [], clients: [] },
    }),
    clientPrivateKey: builder.clientPrivateKey,
    clientPrivateKeys: {},
    clientSigningKeys: {},
    adminPrivateKey: "ADMIN\n",
  };
});
afterAll(async () => {
  rmSync(stackDirectory(stack), { recursive: true, force: true });
  await builder.stop();
});

it("asks the fleet's own builders, and shows those of services as neither tested nor asked", async () => {
  const rows = await liveStatus(fleet);
  expect(rows.map(({ name, answers, ofService }) => ({ name, answers, ofService }))).toEqual([
    { name: "x86", answers: true, ofService: false },
    { name: "nixbuild", answers: undefined, ofService: true },
  ]);
  expect(renderStatus(rows)).toMatch(/^x86 .* in 1\.[23] s +answers in [\d.]+ s\nnixbuild .* not tested +not asked$/m);
});

it("says of a builder of its own without a smoke test that it isn't verified", () => {
  const verdict = { verified: false, alias: "here", level: "off", seconds: 0, cases: [] } as const;
  expect(renderStatus(recordedStatus({ ...fleet, verification: { x86: verdict } }))).toMatch(/^x86 .* no$/m);
});

it("says which clients are root on the builders", () => {
  const builders = fleet.builders.map((machine) => ({ ...machine, trust: "signed" as const }));
  const said = (trust: "signed" | "full", clients: UsableFleet["clientSettings"]["clients"] = []) =>
    renderStatus(recordedStatus({ ...fleet, builders, clientSettings: { ...fleet.clientSettings, trust, clients } }));
  expect(said("signed")).not.toContain("root");
  expect(said("full")).toMatch(
    /^trust: full \(clients: the shared one\): a client of this fleet is root on its builders$/m,
  );
  expect(said("signed", [{ name: "alice", localSystems: [], trust: "full" }])).toMatch(
    /^trust: full \(clients: alice\)/m,
  );
});
