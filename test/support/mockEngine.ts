/** A mocked engine for tests of wiring: notes what a program registers, and answers for keys and commands. */
import { createHash, generateKeyPairSync } from "node:crypto";
import * as pulumi from "@pulumi/pulumi";
import { MockMonitor } from "@pulumi/pulumi/runtime/mocks.js";

/** A public host key that no program made. */
export const hostKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPIQCZc54poJ8vqawd8TraNryQeJnvH1eLpIDgbiqymM";

/** The public key that the key pair of this name has here. */
export function publicKeyOf(name: string): string {
  const digest = createHash("sha256").update(name).digest();
  return `ssh-ed25519 ${Buffer.concat([Buffer.from(hostKey.split(" ")[1] ?? "", "base64").subarray(0, -32), digest]).toString("base64")}`;
}

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
  /** `Type name` of every resource → the same of what it lies in, or "". */
  readonly parents = new Map<string, string>();

  /**
   * Takes the place of the engine.
   *
   * @param outputs Outputs of a resource beside its inputs, where they are not those of every key or passed smoke test.
   */
  async start(outputs: (type: string, name: string) => object | undefined = () => undefined): Promise<void> {
    await pulumi.runtime.setMocks(
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
      false,
      "organization",
    );
    // Mocks aren't told of parents.
    const monitor: unknown = pulumi.runtime.getMonitor();
    if (!(monitor instanceof MockMonitor)) throw new Error("there is another engine");
    const register = monitor.registerResource.bind(monitor);
    monitor.registerResource = (request: Registration, callback) => {
      const parent = request.getParent().split("::").slice(-2).join("::");
      this.parents.set(shortened(`${request.getType()}::${request.getName()}`), shortened(parent));
      return register(request, callback);
    };
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

/** What is used of a request to register a resource. */
type Registration = Readonly<Record<"getType" | "getName" | "getParent", () => string>>;

/** `command:local:Command::x86` → `Command x86`. */
function shortened(typeAndName: string): string {
  return typeAndName.replace(/^.*?([^:]+)::/, "$1 ");
}

function usualOutputs(type: string, name: string): object {
  if (type.startsWith("tls:"))
    return {
      privateKeyOpenssh: `PRIVATE ${name}`,
      publicKeyOpenssh: `${publicKeyOf(name)}\n`,
      privateKeyPemPkcs8: generateKeyPairSync("ed25519", {
        privateKeyEncoding: { type: "pkcs8", format: "pem" },
        publicKeyEncoding: { type: "spki", format: "pem" },
      }).privateKey,
    };
  if (type.startsWith("command:remote")) return { stdout: measured };
  return { stdout: `{"verified":true,"alias":"${name}","seconds":1}` };
}
