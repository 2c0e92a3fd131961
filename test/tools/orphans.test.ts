/** Ending what a killed run of the CLI left. The whole of it, with the CLI, is in test/engine/orphans.test.ts. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { checkout } from "../../tools/launch.mjs";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "fleet-orphans-"));
});
afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

/** A run whose launcher is killed, and which leaves a process that is frozen, so that not even SIGKILL ends it; then the next one. */
const script = () => `
set -eu
mkdir ${folder}/cgroup
mount -t cgroup -o freezer none ${folder}/cgroup 2> /dev/null || { echo "SKIP this kernel freezes nothing"; exit 0; }
group=${folder}/cgroup/fleet-test-$$
mkdir $group
cat > ${folder}/run.mts <<'END'
import { spawn } from "node:child_process";
import { writeFileSync } from "node:fs";
import { markRun } from "${checkout}/tools/orphans.ts";
const child = spawn("sleep", ["600"], { env: markRun(process.env, "${folder}").env, stdio: "ignore", detached: true });
writeFileSync(process.argv[2] + "/cgroup.procs", String(child.pid));
writeFileSync(process.argv[2] + "/freezer.state", "FROZEN");
process.kill(process.pid, "SIGKILL");
END
cat > ${folder}/next.mts <<'END'
import { endOrphans } from "${checkout}/tools/orphans.ts";
console.log(JSON.stringify([await endOrphans("${folder}"), await endOrphans("${folder}")]));
END
${process.execPath} ${folder}/run.mts $group || true
timeout 15 ${process.execPath} ${folder}/next.mts || echo "still waiting"
echo THAWED > $group/freezer.state
tries=0
until rmdir $group 2> /dev/null || [ $tries = 100 ]; do sleep 0.05; tries=$((tries + 1)); done
echo "left: $(ls -d $group 2> /dev/null)"
`;

it("waits for no process that the kernel can't end now: it does nothing any more", ({ skip }) => {
  const { stdout, status } = spawnSync("unshare", ["--mount", "bash", "-c", script()], {
    encoding: "utf8",
    timeout: 60_000,
  });
  skip(status !== 0 && stdout === "", "This user may not mount a control group of its own.");
  skip(stdout.startsWith("SKIP"), stdout.slice(5).trim());
  expect(stdout).toBe('[["sleep"],[]]\nleft: \n');
});
