/** The table of a fleet's builders: what was verified, and what answers now. */
import Table from "cli-table3";
import { clientEnvironment } from "../client/environment.ts";
import type { BuildMachine } from "../nix/buildMachine.ts";
import { storeUri } from "../nix/machinesFile.ts";
import { runProgram, wordsOf } from "../process.ts";
import { describeRootClients, rootClientsOf } from "../nix/trust.ts";
import { explainFailure, loginKey } from "../smoke/failure.ts";
import { stackDirectory, writeOwnClient, type Fleet, type UsableFleet } from "./stack.ts";

/** One row. */
export interface BuilderStatus {
  /** Name within the fleet. */
  readonly name: string;
  readonly alias: string;
  readonly systems: readonly string[];
  /** Address and port. */
  readonly address: string;
  /** Seconds that the smoke test's build took; `null`: not verified. */
  readonly verifiedInSeconds: number | null;
  /** Whether it is the builder of a service: a third party's, which the fleet neither tests nor answers for. */
  readonly ofService: boolean;
  /** As `rootClientsOf` has them. */
  readonly rootClients: readonly string[];
  /** Whether its store answers now; `undefined`: not asked, as services aren't. */
  readonly answers?: boolean;
  /** Seconds until it answered. */
  readonly answeredInSeconds?: number;
  /** Why it doesn't answer. */
  readonly reason?: string;
}

/** Seconds that a builder has to answer. */
const patience = 20;

/** What the last deployment found. */
export function recordedStatus(fleet: Fleet): BuilderStatus[] {
  const rootClients = rootClientsOf(fleet.clientSettings);
  return fleet.builders.map((builder) => {
    const [name, verdict] = Object.entries(fleet.verification).find(([, entry]) => entry.alias === builder.alias) ?? [];
    return {
      name: name ?? builder.alias,
      alias: builder.alias,
      systems: builder.systems,
      address: `${builder.hostName}:${builder.port}`,
      // The fleet's own have a verdict each, also where no test was made.
      ofService: verdict === undefined,
      rootClients: builder.trust === undefined ? [] : rootClients,
      verifiedInSeconds: verdict?.verified === true ? verdict.seconds : null,
    };
  });
}

/** As `recordedStatus`, and the store of each of the fleet's own builders is asked for an answer. */
export async function liveStatus(fleet: UsableFleet): Promise<BuilderStatus[]> {
  const clientDirectory = writeOwnClient(fleet);
  const env = clientEnvironment({ clientDirectory, store: `${stackDirectory(fleet.stack)}/store` });
  return Promise.all(
    recordedStatus(fleet).map(async (status, index): Promise<BuilderStatus> => {
      const builder = fleet.builders[index];
      return builder === undefined || status.ofService ? status : { ...status, ...(await askForAnswer(builder, env)) };
    }),
  );
}

/** Asks a builder's store for an answer, on a connection of its own. */
export async function askForAnswer(
  builder: BuildMachine,
  env: Readonly<Record<string, string>>,
): Promise<Pick<BuilderStatus, "answers" | "answeredInSeconds" | "reason">> {
  const started = performance.now();
  const ping = await runProgram("nix", ["store", "ping", "--store", storeUri(builder)], {
    // A connection that an earlier build left open would hide that no new one can be made.
    env: { ...env, NIX_SSHOPTS: `${env["NIX_SSHOPTS"] ?? ""} -o ControlPath=none` },
    milliseconds: patience * 1000,
  });
  if (ping.code === 0) {
    return { answers: true, answeredInSeconds: Math.round((performance.now() - started) / 10) / 100 };
  }
  const reason = ping.timedOut
    ? `no answer within ${patience} s`
    : ping.tooMuch
      ? ping.problem
      : explainFailure(wordsOf(ping), loginKey(builder)).reason;
  return { answers: false, reason };
}

/** The rows as a table for people. */
export function renderStatus(rows: readonly BuilderStatus[]): string {
  const live = rows.some(({ answers }) => answers !== undefined);
  const table = new Table({
    head: ["BUILDER", "SYSTEM", "ADDRESS", "VERIFIED", ...(live ? ["NOW"] : [])],
    style: { head: [], border: [], "padding-left": 0, "padding-right": 2 },
    chars: Object.fromEntries(
      ["top", "top-mid", "top-left", "top-right", "bottom", "bottom-mid", "bottom-left", "bottom-right"]
        .concat(["left", "left-mid", "mid", "mid-mid", "right", "right-mid", "middle"])
        .map((part) => [part, ""]),
    ),
  });
  for (const row of rows) {
    table.push([
      row.name,
      row.systems.join(", "),
      row.address,
      describeVerification(row),
      ...(live ? [describeAnswer(row)] : []),
    ]);
  }
  const reasons = rows.flatMap(({ name, reason }) => (reason === undefined ? [] : [`${name}: ${reason}`]));
  const [clients = []] = rows.map(({ rootClients }) => rootClients).filter(({ length }) => length > 0);
  const open = clients.length === 0 ? [] : [describeRootClients(clients)];
  return [table.toString().replaceAll(/ +$/gm, ""), ...reasons, ...open].join("\n");
}

function describeVerification({ ofService, verifiedInSeconds }: BuilderStatus): string {
  if (ofService) return "not tested";
  return verifiedInSeconds === null ? "no" : `in ${verifiedInSeconds.toFixed(1)} s`;
}

function describeAnswer({ answers, answeredInSeconds = 0 }: BuilderStatus): string {
  if (answers === undefined) return "not asked";
  return answers ? `answers in ${answeredInSeconds.toFixed(1)} s` : "does not answer";
}
