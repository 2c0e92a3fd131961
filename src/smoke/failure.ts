/** Says in words why a build on a builder failed, and what to do, from what Nix and ssh printed. */

import { quoted } from "../machineText.ts";

/** A reason that was recognized. */
export interface Failure {
  /** What is wrong and what to do, in one or two sentences. */
  readonly reason: string;
  /** True where waiting may help: the builder may still be starting. */
  readonly mayPass: boolean;
}

/** Whose key a login was tried with: what is to be done about it differs. */
export type LoginKey =
  | "client"
  | "administrator"
  /** A builder's own `sshKey`. */
  | { readonly file: string };

interface Symptom extends Omit<Failure, "reason"> {
  readonly pattern: RegExp;
  readonly reason: string | ((key: LoginKey) => string);
}

const wrongSystem =
  "it does not build for the system or features that it is configured with; check `system` and `supportedFeatures`";

/** First match counts: the causes stand before their consequences. */
const symptoms: readonly Symptom[] = [
  {
    pattern:
      /REMOTE HOST IDENTIFICATION HAS CHANGED|Host key verification failed|No .* host key is known|host key .* mismatch/i,
    reason:
      "it presents another host key than the pinned one, so nothing was sent to it. Either this is another machine " +
      "(do not trust it), or its host key was changed: put the right line into `hostKey`",
    mayPass: false,
  },
  {
    pattern: /bad permissions|invalid format|error in libcrypto|no such identity|Load key .*: /i,
    reason: (key) =>
      `ssh can't use the private key${typeof key === "object" ? ` ${key.file}` : ""}; ` +
      "the file must exist, be readable by you alone (chmod 600) and hold a private key",
    mayPass: false,
  },
  {
    // With the methods that ssh tried: Nix and the file system deny permission in the same two words.
    pattern: /Permission denied \([a-z,-]+\)|Too many authentication failures/i,
    reason: refusesKey,
    mayPass: false,
  },
  {
    pattern: /Could not resolve hostname/i,
    reason: "its address does not resolve; check `address`",
    mayPass: true,
  },
  {
    // Nix says the same of its daemon's socket.
    pattern: /connect to host .* port \d+: Connection refused/i,
    reason: "nothing listens on its SSH port; check `address` and `port`, and that sshd runs",
    mayPass: true,
  },
  {
    // Before the login; after it, ssh and Nix have other words.
    pattern: /kex_exchange_identification|Connection (closed|reset) by \S+ port \d+/i,
    reason:
      "its SSH port takes connections and drops them; sshd may still be starting, turn away too many at once (`MaxStartups`), " +
      "or something else listens there",
    mayPass: true,
  },
  {
    pattern: /timed out|No route to host|Network is unreachable/i,
    reason: "it can't be reached over the network; check `address`, firewalls, and that it is switched on",
    mayPass: true,
  },
  {
    pattern: /lacks a (valid )?signature/i,
    reason:
      "it refuses a store path that only this client has, because nobody whom it trusts has signed it; set `trust: signed` (what the client " +
      "builds from then on is signed; `nix store sign` signs what is there), or add the user to `trusted-users` on a host of your own",
    mayPass: false,
  },
  {
    pattern: /not privileged to build|not trusted|is not allowed to|untrusted/i,
    reason:
      "its Nix does not trust the user that the fleet logs in as, and only trusted users may build this way; use the builder as a store " +
      "(--remote-store), Nix 2.16 or newer on both sides, or `trust: full` (`trusted-users` on a host of your own)",
    mayPass: false,
  },
  {
    pattern: /required system or feature not available|with features \{|required .* but I am|platform mismatch/i,
    reason: wrongSystem,
    mayPass: false,
  },
  {
    pattern:
      /cloning builder process|\bclone\(|unable to .*namespace|(user|kernel|mount) namespaces?|unable to make '.*' private|uid_map|cannot .*sandbox|sandbox.*not supported/i,
    reason:
      "its Nix can't set up the build sandbox; the kernel must allow user namespaces. The usual causes, to be changed with sysctl: " +
      "`kernel.apparmor_restrict_unprivileged_userns` is 1 (Ubuntu 23.10 and later), `kernel.unprivileged_userns_clone` is 0, " +
      "or `user.max_user_namespaces` is 0",
    mayPass: false,
  },
  {
    pattern: /(lock file|creating directory|database|'\/nix\/).*(Permission denied|Read-only file system)/i,
    reason:
      "Nix may not write to its store as the user that the fleet logs in as; run nix-daemon there, or log in as the user who " +
      "owns the store",
    mayPass: false,
  },
  {
    pattern: /^\S*sh: .*: Permission denied/im,
    reason:
      "the program that answers its clients may not be run; it must be executable, on a file system that isn't mounted noexec " +
      "(of a local builder it lies in the checkout)",
    mayPass: false,
  },
  {
    pattern:
      /protocol mismatch|store nix protocol|daemon-socket|unexpected end-of-file|daemon disconnected unexpectedly|failed to start SSH connection|Connection closed|Connection reset|Broken pipe/i,
    reason:
      "SSH works but no Nix answers behind it; check that `nix-daemon --stdio` works for the user that the fleet logs in as " +
      "(a real shell, Nix on its PATH, a running daemon)",
    mayPass: true,
  },
  {
    pattern: /No space left on device/i,
    reason: "its disk is full; free space (`nix-collect-garbage` on the builder) or give it a larger disk",
    mayPass: false,
  },
  {
    // Last, because Nix also says so when it could not connect.
    pattern: /may not have all required system features|Failed to find a machine for remote build/i,
    reason: wrongSystem,
    mayPass: false,
  },
];

function refusesKey(key: LoginKey): string {
  if (key === "administrator") {
    return "it refuses the administrator's key, which a deployment gives it (`npm run pulumi -- up`)";
  }
  if (key === "client") {
    return (
      "it refuses the key. The builder must have the client's public key (`npm run pulumi -- stack output clientPublicKey`) " +
      "in the authorized_keys of the user that the fleet logs in as"
    );
  }
  return (
    `it refuses the key ${key.file} (\`sshKey\`). The builder must have what \`ssh-keygen -y -f ${key.file}\` prints in the ` +
    "authorized_keys of the user that the fleet logs in as"
  );
}

/** The key that a client logs in to a builder with. */
export function loginKey({ sshKey }: { readonly sshKey?: string }): LoginKey {
  return sshKey === undefined ? "client" : { file: sshKey };
}

const printsSomething =
  "it prints something where Nix should answer, which breaks Nix's protocol. The user that the fleet logs in as needs a real shell " +
  "(not `nologin`) whose start-up files print nothing to programs: in ~/.bashrc, put `[[ $- == *i* ]] || return` first.";

/** What a machine printed before its Nix could speak, as Nix quotes it; whatever it says, it is no symptom. Empty: nothing. */
function wordsBeforeNix(output: string): string {
  const quotation = /protocol mismatch(?: from '[^'\n]*')?, got '(.*?)(?:\nFailed to find a machine|\nerror: |$)/s;
  const [, words = ""] = quotation.exec(output) ?? [];
  // Behind them comes the beginning of what the Nix there says, by either protocol, and the end of the quotation.
  return words.replace(/\s*(oixd|\uFFFD+RT)?[\s\uFFFD]*'?\s*$/, "").replaceAll(/\n {7}( {7})?/g, "\n");
}

/**
 * The reason for a failed build.
 *
 * @param output Everything that Nix and ssh printed.
 * @param key What the login was tried with.
 * @returns A reason in words; what isn't recognized comes back as its last lines, quoted.
 */
export function explainFailure(output: string, key: LoginKey): Failure {
  // A cache that a builder can't reach is no reason: Nix warns of it, in the same words as of a builder, and goes on.
  const relevant = output.replaceAll(/^warning: .*$/gm, "");
  const printed = wordsBeforeNix(relevant);
  if (printed !== "") return { reason: `${printsSomething} It printed:\n${quoted(printed)}`, mayPass: false };
  const known = symptoms.find(({ pattern }) => pattern.test(relevant));
  if (known !== undefined) {
    return { reason: typeof known.reason === "string" ? known.reason : known.reason(key), mayPass: known.mayPass };
  }
  const lines = quoted(output, 4);
  return { reason: lines === "" ? "Nix failed without a word" : `Nix said:\n${lines}`, mayPass: false };
}
