/** A deployment whose disk becomes full in the middle: by the real CLI, with the state on a small file system of its own. */
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { stringify } from "yaml";
import { describe, expect, it, onTestFinished } from "vitest";
import { setUp } from "../../tools/setup/index.ts";
import { cleanEnvironment, copyOfCheckout } from "../support/checkoutCopy.ts";
import { processesNaming } from "../support/engine.ts";
import { system } from "../support/localFleet.ts";

function obstacle(): string | undefined {
  try {
    execFileSync("unshare", ["--mount", "mount", "-t", "tmpfs", "none", tmpdir()], { stdio: "pipe" });
    return undefined;
  } catch {
    return "This user may not mount a file system of its own.";
  }
}

/**
 * Fills the disk when the first builder is up, takes the CLI away when it has spoilt both the state and the copy beside it, makes room, and
 * goes on. All in one mount namespace, which ends with it.
 */
const script = (checkout: string, node: string) => `
set -u
exec 2>&1
state=${checkout}/.fleet/state
cd ${checkout}
mount -t tmpfs -o size=12m none $state
${node} tools/run.mjs start > first.log 2>&1 &
start=$!
torn() { [ -f "$1" ] && ! ${node} -e 'JSON.parse(require("fs").readFileSync(process.argv[1]))' "$1" 2> /dev/null; }
until grep -q 'sshd started' first.log; do kill -0 $start || exit 10; sleep 0.02; done
cat /dev/zero > $state/filler 2> /dev/null
states=$state/.pulumi/stacks/nix-builder-fleet
until torn $states/dev.json; do kill -0 $start || { cat first.log; exit 11; }; sleep 0.1; done
cp $states/dev.json ${checkout}/spoilt.json
echo "SPOILT $(wc -c < $states/dev.json) bytes"
pid=$(ls .fleet/runs/*/ | head -1 | cut -d. -f1)
kill -KILL $pid $start
while kill -0 $pid 2> /dev/null; do sleep 0.05; done
# What the second failed attempt would have done, half a minute later.
cat $states/dev.json > $states/dev.json.bak
echo "--- no room"; ${node} tools/run.mjs start; echo "EXIT $?"
rm $state/filler
echo "--- room"; ${node} tools/run.mjs start; echo "EXIT $?"
echo "--- again"; ${node} tools/run.mjs start; echo "EXIT $?"
echo "--- destroy"; ${node} tools/run.mjs pulumi destroy --yes --skip-preview; echo "EXIT $?"
[ ! -e .fleet/stacks ] || { ls -R .fleet/stacks; exit 12; }
`;

describe("a disk that is full in the middle of a deployment", () => {
  it("costs nothing once there is room: the fleet stands, and goes", async ({ skip }) => {
    const reason = obstacle();
    if (reason !== undefined) skip(reason);
    const folder = mkdtempSync(join(tmpdir(), "fleet-full-"));
    onTestFinished(() => {
      rmSync(folder, { recursive: true, force: true });
    });
    const checkout = copyOfCheckout(join(folder, "checkout"));
    mkdirSync(join(checkout, ".fleet", "state"), { recursive: true, mode: 0o700 });
    const builders = [{ name: "here", provider: "local", system, count: 3 }];
    writeFileSync(join(checkout, "Pulumi.dev.yaml"), stringify({ config: { "nix-builder-fleet:builders": builders } }));
    const env = { ...cleanEnvironment((await setUp()).env), PULUMI_HOME: join(folder, "pulumi") };
    const run = spawn("unshare", ["--mount", "bash", "-c", script(checkout, process.execPath)], {
      env,
      cwd: checkout,
      stdio: ["ignore", "pipe", "inherit"],
    });
    const exit = once(run, "exit") as Promise<[number | null]>;
    const [said, [exitCode]] = await Promise.all([text(run.stdout), exit]);
    expect(exitCode, said).toBe(0);
    const part = (name: string) => said.split(/^--- /m).find((each) => each.startsWith(`${name}\n`)) ?? "";
    expect(said).toMatch(/SPOILT \d+ bytes/);
    // Without room the state is restored all the same, and nothing begun.
    expect(part("no room"), said).toContain(
      "the state of stack dev was cut off, as a full disk does: it is that of 20",
    );
    expect(part("no room"), said).toMatch(
      /Nothing was begun, as the state of stack dev could not be written .*: its file system is full: /,
    );
    expect(part("no room"), said).toContain("EXIT 1");
    expect(part("room"), said).toContain("EXIT 0");
    expect(part("again"), said).toContain("EXIT 0");
    expect(part("destroy"), said).toMatch(/EXIT 0\n$/);
    expect(processesNaming(`${checkout}/.fleet/stacks`)).toEqual([]);
  });
});
