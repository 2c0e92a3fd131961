/** A reusable GitHub Actions workflow that builds a flake's packages and checks on the fleet. */
import { parse, Scalar, stringify } from "yaml";
import { checkBuildMachines, isLoopback, type BuildMachine } from "../nix/buildMachine.ts";
import { clientFiles, clientKeyName, parseClientFiles, type ClientFileName } from "../nix/clientFiles.ts";
import { InvalidValue, NotExpressible } from "../nix/invalidValue.ts";
import { renderSettings, type NixSettings } from "../nix/nixConf.ts";
import { buildScript, evaluateScript, summaryScript } from "./buildScripts.ts";

export interface GithubWorkflowOptions {
  /** Further Nix settings, for instance of caches. */
  readonly settings?: NixSettings;
  /** As in `SshConfigOptions`. Default: 10. */
  readonly maxSessions?: number;
}

/**
 * The builders as they are, if a runner of GitHub can use every one of them.
 *
 * @throws NotExpressible for a builder on a loopback address, which is the runner itself there, and for one with a key of its own: the
 * workflow takes one secret, the fleet's client key
 */
export function refuseUnreachable(machines: readonly BuildMachine[]): readonly BuildMachine[] {
  for (const { alias, hostName, sshKey } of machines) {
    if (isLoopback(hostName)) {
      throw new NotExpressible(
        `${alias} is at ${hostName}, an address of its own machine that no runner of GitHub reaches: ` +
          "the form githubWorkflow needs builders with a public address. On that machine itself, use the forms machines and sshConfig.",
      );
    }
    if (sshKey !== undefined) {
      throw new NotExpressible(
        `${alias} takes the key ${sshKey}, which a runner of GitHub doesn't have, and the form githubWorkflow has one secret, for ` +
          "the fleet's own key: leave this builder out of the stack that the workflow is for, or use the forms machines and sshConfig.",
      );
    }
  }
  return machines;
}

/** Stands for the directory that only the runner knows. `checkPath` takes it, no fleet uses it. */
const directory = "/@FLEET_DIR@";

/**
 * The workflow, for `.github/workflows/fleet.yml` of the person's repository. Other workflows call it with
 * `uses: ./.github/workflows/fleet.yml` and the secret `fleet_ssh_key`; it can be started by hand as well.
 *
 * Nix runs without a daemon there, as the runner's user, so that this user's ssh configuration counts. The key comes after all is
 * evaluated, and lies in the memory of an ssh-agent alone: no file has it, and so neither a flake nor a build on the runner can read it.
 *
 * @throws InvalidValue if a builder or a setting can't be used
 */
export function renderGithubWorkflow(machines: readonly BuildMachine[], options: GithubWorkflowOptions = {}): string {
  const checked = checkBuildMachines(machines);
  const systems = [...new Set(checked.flatMap((machine) => machine.systems))];
  const files = clientFiles(checked, {
    directory,
    profile: "remote-only",
    ...(options.settings && { settings: options.settings }),
    ...(options.maxSessions !== undefined && { maxSessions: options.maxSessions }),
  });
  const workflow = {
    name: "fleet",
    on: {
      workflow_call: {
        inputs: describeInputs(),
        secrets: { fleet_ssh_key: { description: keyDescription, required: true } },
      },
      workflow_dispatch: { inputs: describeInputs() },
    },
    permissions: { contents: "read" },
    // Unlike GitHub's default, this shell has pipefail.
    defaults: { run: { shell: "bash" } },
    jobs: {
      build: {
        name: "Build on the fleet",
        "runs-on": "ubuntu-latest",
        "timeout-minutes": 360,
        env: {
          FLAKE: "${{ inputs.flake_directory }}",
          FILTER: "${{ inputs.filter_builds }}",
          SYSTEMS: systems.join(" "),
        },
        steps: [
          {
            name: "Ask for the key",
            env: { HAS_KEY: "${{ secrets.fleet_ssh_key != '' }}" },
            run: askScript,
          },
          { uses: pinned(checkout), with: { "persist-credentials": false } },
          {
            name: "Install Nix, without a daemon",
            uses: pinned(installNix),
            // It would write the token to files; only the evaluation needs it.
            with: { github_access_token: "" },
          },
          {
            name: "Write the client's files",
            env: { EXTRA_NIX_CONF: "${{ inputs.nix_conf }}" },
            run: filesScript(files),
          },
          { name: "Find the builds", env: { GITHUB_TOKEN: "${{ github.token }}" }, run: evaluateScript },
          { name: "Take the key", env: { FLEET_SSH_KEY: "${{ secrets.fleet_ssh_key }}" }, run: takeKeyScript },
          { name: "Build", run: buildScript },
          { name: "Summarize", if: "always()", run: summaryScript },
          { name: "Remove the key", if: "always()", run: removeKeyScript },
        ],
      },
    },
  };
  const head =
    "# Builds this flake on a fleet of Nix builders. Written by nix-builder-fleet: change the stack, not this file.\n";
  return head + stringify(workflow, { lineWidth: 0 });
}

interface Action {
  readonly name: string;
  /** Full id: a tag can be moved. */
  readonly commit: string;
  readonly version: string;
}

const checkout: Action = {
  name: "actions/checkout",
  commit: "3d3c42e5aac5ba805825da76410c181273ba90b1",
  version: "v7.0.1",
};

const installNix: Action = {
  name: "nixbuild/nix-quick-install-action",
  commit: "9f63be77f412a248c9d9a65a4c82cf066cdf8f0c",
  version: "v35",
};

/** With the version as a comment, which is what updates read. */
function pinned({ name, commit, version }: Action): Scalar<string> {
  const scalar = new Scalar(`${name}@${commit}`);
  scalar.comment = ` ${version}`;
  return scalar;
}

const keyCommand =
  "`npm run --silent pulumi -- stack output clientPrivateKey --show-secrets | gh secret set fleet_ssh_key`";

const askScript = `[ "$HAS_KEY" = true ] && exit 0
echo '::error::This run has no secret fleet_ssh_key: GitHub gives none to a pull request from a fork, and nothing was evaluated or built; who may push to this repository can push the branch here, or set the secret: ${keyCommand}'
exit 1
`;

/** `id_ed25519` is the public key then, by which ssh asks the agent for the private one. */
const takeKeyScript = `umask 077
eval "$(env --unset=FLEET_SSH_KEY ssh-agent -s -a "$FLEET_DIR/agent")" >/dev/null
{
  echo "FLEET_AGENT_PID=$SSH_AGENT_PID"
  echo "SSH_AUTH_SOCK=$SSH_AUTH_SOCK"
} >>"$GITHUB_ENV"
printf '%s\\n' "$FLEET_SSH_KEY" | ssh-add -q - || {
  echo '::error::The secret fleet_ssh_key is not a private key, or one with a passphrase; set it again: ${keyCommand}'
  exit 1
}
ssh-add -L >"$FLEET_DIR/${clientKeyName}"
`;

/** With the connections that the key has opened: they would stay for a while. */
const removeKeyScript = `[ -z "\${FLEET_AGENT_PID:-}" ] || kill "$FLEET_AGENT_PID" || true
[ -n "\${FLEET_DIR:-}" ] || exit 0
for socket in "$FLEET_DIR"/nix-*; do
  [ ! -S "$socket" ] || ssh -o ControlPath="$socket" -O exit builder || true
done
rm -rf "$FLEET_DIR"
`;

const keyDescription = "The client's private key: `pulumi stack output clientPrivateKey --show-secrets`";

/** Both triggers take the same inputs; GitHub has no way to share them. */
function describeInputs() {
  return {
    flake_directory: {
      description: "Directory of flake.nix in the repository",
      type: "string",
      required: false,
      default: ".",
    },
    filter_builds: {
      description:
        "A jq condition over .top_attr (packages or checks), .system, .attr and .name that says which of them to build",
      type: "string",
      required: false,
      default: '.top_attr == "packages" or .top_attr == "checks"',
    },
    nix_conf: { description: "Further lines for nix.conf", type: "string", required: false, default: "" },
  };
}

const end = "END_OF_FILE";

function filesScript(files: Record<ClientFileName, string>): string {
  const write = Object.entries({
    ...files,
    "nix.conf": files["nix.conf"] + renderSettings({ "extra-experimental-features": "nix-command flakes" }),
  }).map(([name, text]) => `sed "s|${directory}|$FLEET_DIR|g" >"$FLEET_DIR/${name}" <<'${end}'\n${text}${end}\n`);
  return `# Short, private, and not in the checkout: connections are shared through sockets in it.
FLEET_DIR=$(mktemp -d)
${write.join("")}printf '%s\\n' "$EXTRA_NIX_CONF" >>"$FLEET_DIR/nix.conf"
{
  echo "FLEET_DIR=$FLEET_DIR"
  echo "NIX_CONF_DIR=$FLEET_DIR"
  # Not the runner's own, which takes settings from any flake: a hook that runs here, builds on the runner.
  echo "NIX_USER_CONF_FILES=/dev/null"
  echo "NIX_CONFIG=accept-flake-config = false"
  echo "NIX_SSHOPTS=-F $FLEET_DIR/ssh_config"
} >>"$GITHUB_ENV"
`;
}

/**
 * The builders that a workflow written here builds on.
 *
 * @throws InvalidValue if it isn't such a workflow
 */
export function parseGithubWorkflow(text: string): BuildMachine[] {
  const script = findScript(parse(text), "mktemp -d") ?? "";
  const files = new Map(
    [...script.matchAll(/>"\$FLEET_DIR\/([a-z_.]+)" <<'END_OF_FILE'\n([^]*?)END_OF_FILE\n/g)].map(
      ([, name = "", content = ""]) => [name, content],
    ),
  );
  const read = (name: string) => {
    const content = files.get(name);
    if (content === undefined) throw new InvalidValue("workflow", name, "a step that writes this file");
    return content;
  };
  const clientDirectory = {
    machines: read("machines"),
    ssh_config: read("ssh_config"),
    known_hosts: read("known_hosts"),
  };
  return parseClientFiles(clientDirectory, { directory });
}

/** The first script in the workflow that contains `text`. */
function findScript(node: unknown, text: string): string | undefined {
  if (typeof node === "string") return node.includes(text) ? node : undefined;
  if (typeof node !== "object" || node === null) return undefined;
  for (const child of Object.values(node)) {
    const found = findScript(child, text);
    if (found !== undefined) return found;
  }
  return undefined;
}
