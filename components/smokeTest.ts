/** The smoke test: a builder counts as verified when it has built a new derivation through the emitted files. */
import * as command from "@pulumi/command/local/command.js";
import * as pulumi from "@pulumi/pulumi";
import type { Measurement } from "../src/bootstrap/measure.ts";
import type { BuilderSpec } from "../src/fleetSpec.ts";
import type { Trust } from "../src/nix/trust.ts";
import type { SmokeTest as Test } from "../src/smoke/smokeTest.ts";
import type { SmokeLevel, Verdict } from "../src/smoke/verdict.ts";
import { commandDefaults, scriptCommand } from "./checkout.ts";

/** Arguments of a `SmokeTest`. */
export interface SmokeTestArgs {
  readonly spec: BuilderSpec;
  /** Folder with the emitted files. */
  readonly clientDirectory: pulumi.Input<string>;
  /** Level of the client whose files they are. */
  readonly trust: Trust;
  readonly measurement: pulumi.Input<Measurement | undefined>;
  readonly level: Exclude<SmokeLevel, "off">;
  /** Seconds until the builder must have answered and built. */
  readonly timeout: number;
  /** On a change of one of these it is tested again. */
  readonly triggers: readonly pulumi.Input<string>[];
}

/**
 * One builder, put to the test. Where it fails, so does the deployment, with the reason in words.
 *
 * It is one resource, and no component around one, as `SshIdentity` is.
 */
export class SmokeTest extends command.Command {
  readonly verdict: pulumi.Output<Verdict>;

  constructor(name: string, args: SmokeTestArgs, opts?: pulumi.CustomResourceOptions) {
    const { spec, level, timeout } = args;
    const test = pulumi.all([args.clientDirectory, args.measurement]).apply(([clientDirectory, measurement]): Test => {
      return {
        alias: spec.alias,
        clientDirectory,
        level,
        ownMachine: spec.provider !== "existing",
        bootId: measurement?.bootId,
        ...(spec.provider !== "existing" && { trust: args.trust }),
        ...(measurement !== undefined && { builderNix: measurement.nixVersion }),
        timeout,
      };
    });
    super(
      name,
      {
        ...commandDefaults,
        create: scriptCommand("smoke/main.ts"),
        environment: { FLEET_SMOKE_TEST: test.apply((value) => JSON.stringify(value)) },
        triggers: [...args.triggers],
      },
      opts,
    );
    this.verdict = this.stdout.apply((stdout) => JSON.parse(stdout) as Verdict);
  }
}
