/** User data of a server that cloud-init, or a snapshot's own birth service, reads at first boot. */
import {
  appliedMark,
  builderDirectory,
  keyFiles,
  moduleFiles,
  type BuilderKeys,
  type BuilderParameters,
} from "./builderFiles.ts";
import { conversionScript, type Conversion } from "./conversion.ts";

/** Size that Hetzner Cloud accepts, in bytes. */
export const userDataLimit = 32 * 1024;

/** What a server is told at birth. */
export interface Birth extends BuilderKeys {
  /** OpenSSH private host key (PEM), made before the server. */
  readonly hostPrivateKey: string;
  /** Its public line. */
  readonly hostPublicKey: string;
  readonly parameters: BuilderParameters;
  /** Text of nixos/builder.nix. */
  readonly builderNix: string;
  /** Text of nixos/hcloud.nix. */
  readonly hcloudNix: string;
  /** How Debian becomes NixOS; `undefined`: the image is NixOS. */
  readonly conversion: Conversion | undefined;
}

/**
 * Cloud-config with the pinned host key; nothing is generated on the server.
 *
 * It is JSON below the first line, which is YAML as well: a snapshot's birth service reads it with jq.
 *
 * @throws Error when it is larger than Hetzner accepts.
 */
export function cloudConfig(birth: Birth): string {
  const { conversion } = birth;
  const module = moduleFiles(birth.parameters, birth.builderNix, birth.hcloudNix);
  const files = {
    ...module,
    ...keyFiles(birth),
    born: "",
    // A snapshot runs what it was baked with, until the fleet has compared.
    ...(conversion !== undefined && { applied: appliedMark(module) }),
  };
  const config = {
    // The image's own keys go; with ssh_keys, cloud-init generates none.
    ssh_deletekeys: true,
    ssh_keys: {
      ed25519_private: `${birth.hostPrivateKey.trimEnd()}\n`,
      ed25519_public: `${birth.hostPublicKey.trim()}\n`,
    },
    ssh_pwauth: false,
    disable_root: false,
    users: [{ name: "root", lock_passwd: true, ssh_authorized_keys: [birth.adminPublicKey.trim()] }],
    write_files: [
      ...Object.entries(files).map(([name, content]) => ({
        path: `${builderDirectory}/${name}`,
        permissions: "0644",
        content,
      })),
      ...(conversion === undefined
        ? []
        : [{ path: conversionPath, permissions: "0700", content: conversionScript(conversion) }]),
    ],
    ...(conversion !== undefined && { runcmd: [["sh", conversionPath]] }),
  };
  const text = `#cloud-config\n${JSON.stringify(config)}\n`;
  const size = Buffer.byteLength(text);
  if (size > userDataLimit) throw new Error(`the user data has ${size} bytes, but only ${userDataLimit} are allowed`);
  return text;
}

const conversionPath = "/var/lib/nix-builder-convert";
