import * as pulumi from "@pulumi/pulumi";
import { expect, it } from "vitest";
import { rendering } from "../../components/rendering.ts";
import { clientFiles } from "../../src/nix/clientFiles.ts";
import { hostKey } from "../support/mockEngine.ts";
import { toPublicHostKey } from "../../src/ssh/hostKey.ts";

it("ends the program in one sentence, without a stack trace, for a value that only a machine could tell", () => {
  const machine = {
    alias: "dev-x86",
    hostName: "127.0.0.9",
    port: 22,
    protocol: "ssh-ng",
    systems: ["x86_64-linux"],
    sshUser: "domain\\user",
    maxJobs: 1,
    speedFactor: 1,
    supportedFeatures: [],
    mandatoryFeatures: [],
    publicHostKey: toPublicHostKey(hostKey),
  } as const;
  const render = () => rendering(() => clientFiles([machine], { directory: "/etc/nix/fleet" }));
  expect(render).toThrow(pulumi.RunError);
  expect(render).toThrow(/^dev-x86\.sshUser is "domain\\\\user", but allowed is a user name/);
  const mistake = new TypeError("of this program");
  expect(() =>
    rendering(() => {
      throw mistake;
    }),
  ).toThrow(mistake);
});
