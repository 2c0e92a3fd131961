/** The smoke test: a builder counts as verified when it has built a new derivation through the emitted files. */
import * as command from "@pulumi/command/local/command.js";
import * as pulumi from "@pulumi/pulumi";
import type { Measurement } from "../src/bootstrap/measure.ts";
import type { BuilderSpec } from "../src/fleetSpec.ts";
import type { SmokeTest as Test } from "../src/smoke/smokeTest.ts";
import type { SmokeLevel, Verdict } from "../src/smoke/verdict.ts";
import { commandDefaults, scriptCommand } from "./checkout.ts";

/** Arguments of a `SmokeTest`. */
export interface SmokeTestArgs {
  readonly spec: BuilderSpec;
  /** Folder with the emitted files. */
  readonly clientDirectory: pulumi.Input<string>;
  readonly measurement: pulumi.Input<Measurement | undefined>;
  readonly level: SmokeLevel;
  /** Seconds until the builder must have answered and built. */
  readonly timeout: number;
  /** On a change of one of these it is tested again. */
  readonly triggers: readonly pulumi.Input<string>[];
}

/** One builder, put to the test. Where it fails, so does the deployment, with the reason in words. */
export class SmokeTest extends pulumi.ComponentResource {
  readonly verdict: pulumi.Output<Verdict>;

  constructor(name: string, args: SmokeTestArgs, opts?: pulumi.ComponentResourceOptions) {
    super("nix-builder-fleet:index:SmokeTest", name, {}, opts);
    const { spec, level } = args;
    if (level === "off") {
      this.verdict = pulumi.output({ verified: false, alias: spec.alias, level, seconds: 0, cases: [] });
      this.registerOutputs({ verdict: this.verdict });
      return;
    }
    const test = pulumi.all([args.clientDirectory, args.measurement]).apply(([clientDirectory, measurement]): Test => {
      return {
        alias: spec.alias,
        clientDirectory,
        level,
        ownMachine: spec.provider !== "existing",
        bootId: measurement?.bootId,
        timeout: args.timeout,
      };
    });
    const run = new command.Command(
      name,
      {
        ...commandDefaults,
        create: scriptCommand("smoke/main.ts"),
        environment: { FLEET_SMOKE_TEST: test.apply((value) => JSON.stringify(value)) },
        triggers: [...args.triggers],
        logging: "stderr",
      },
      { parent: this },
    );
    this.verdict = run.stdout.apply((stdout) => JSON.parse(stdout) as Verdict);
    this.registerOutputs({ verdict: this.verdict });
  }
}
