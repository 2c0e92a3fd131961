/** A mocked engine for tests of wiring: notes what a program registers, and answers for keys and commands. */
import * as pulumi from "@pulumi/pulumi";

/** The public host key of everything. */
export const hostKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPIQCZc54poJ8vqawd8TraNryQeJnvH1eLpIDgbiqymM";

/** Key under which the SDK marks a secret in what it sends to the engine. */
export const secretMark = "4dabf18193072939515e22adb298388d";

/** What was registered. */
export interface Registered {
  readonly type: string;
  readonly name: string;
  readonly inputs: Record<string, unknown>;
}

const measured = `bootId = boot
arch = x86_64
cpus = 7
memoryMiB = 65536
diskMiB = 1000
diskFreeMiB = 900
kvm = false
nixVersion = 2.8.0
nixSystems = x86_64-linux
nixFeatures = big-parallel
sandbox = true
cores = 0
minFree = 0
maxFree = 0
maxStartups =
`;

/** The engine of one test file. */
export class MockEngine {
  /** In the order in which it was. */
  readonly registered: Registered[] = [];

  /**
   * Takes the place of the engine.
   *
   * @param outputs Outputs of a resource beside its inputs, where they are not those of every key or passed smoke test.
   */
  start(outputs: (type: string, name: string) => object | undefined = () => undefined): Promise<void> {
    return pulumi.runtime.setMocks(
      {
        newResource: ({ type, name, inputs }) => {
          this.registered.push({ type, name, inputs: inputs as Record<string, unknown> });
          const state = { ...(inputs as object), ...(outputs(type, name) ?? usualOutputs(type, name)) };
          return { id: `${name}-id`, state };
        },
        call: () => ({}),
      },
      "nix-builder-fleet",
      "dev",
    );
  }

  /** The resource of that name whose type begins so; by default any but a component. */
  find(name: string, type = ""): Registered {
    const found = this.registered.find(
      (one) => one.name === name && one.type.startsWith(type) && !one.type.startsWith("nix-builder-fleet"),
    );
    if (found === undefined) throw new Error(`${type} ${name} was not registered`);
    return found;
  }
}

function usualOutputs(type: string, name: string): object {
  if (type.startsWith("tls:")) return { privateKeyOpenssh: `PRIVATE ${name}`, publicKeyOpenssh: `${hostKey}\n` };
  if (type.startsWith("command:remote")) return { stdout: measured };
  return { stdout: `{"verified":true,"alias":"${name}","seconds":1}` };
}
