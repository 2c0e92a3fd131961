/** What a smoke test found: the contract between the test, the stack's outputs, and who shows them. */

/** How much is proven: nothing, one build for each builder, or the whole matrix with the refusals. */
export const smokeLevels = ["off", "quick", "full"] as const;

/** One of `smokeLevels`. */
export type SmokeLevel = (typeof smokeLevels)[number];

/** One case of the matrix. */
export interface CaseResult {
  /** What was tried, for instance `ssh, x86_64-linux, feature kvm`. */
  readonly name: string;
  /** `warned`: it should be otherwise, but isn't the fleet's to mend. `skipped`: it could not be tried. */
  readonly outcome: "passed" | "failed" | "warned" | "skipped";
  readonly seconds: number;
  /** What was measured, or why it failed, warns or was skipped. */
  readonly detail?: string;
}

/** What is known of a builder after its smoke test. */
export interface Verdict {
  /** False where no test was made (`smoke: off`). One that fails throws. */
  readonly verified: boolean;
  /** The builder's alias. */
  readonly alias: string;
  readonly level: SmokeLevel;
  /** Wall time of the first build, connection included. */
  readonly seconds: number;
  /** What is below is `undefined` without a test. */
  readonly system?: string;
  /** How it was proven: as a row of `builders`, or as a store, where this machine's Nix or the builder's is too old for a row at its level. */
  readonly way?: "row" | "store";
  /** What was built: valid on that builder. */
  readonly storePath?: string;
  readonly bootId?: string;
  readonly arch?: string;
  readonly sandboxed?: boolean;
  /** Whether builds could open `/dev/kvm`. */
  readonly kvm?: boolean;
  /** Seconds by which its clock was certainly ahead of this machine's (negative: behind); known to two seconds. */
  readonly clockOffset?: number;
  /** One TCP connect to its sshd, in ms. */
  readonly roundTrip?: number;
  /** Throughput of the large output, full level only. */
  readonly mebibytesPerSecond?: number;
  /** All that was tried. */
  readonly cases: readonly CaseResult[];
}
