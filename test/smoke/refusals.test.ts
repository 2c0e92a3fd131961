/** What the tries of a builder's refusals leave behind. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { afterAll, beforeAll, expect, it, vi } from "vitest";
import { checkout } from "../../tools/launch.mjs";
import { startHostileBuilder, type HostileBuilder } from "../support/hostileBuilder.ts";

let builder: HostileBuilder;
beforeAll(async () => {
  builder = await startHostileBuilder("127.20.0.23");
});
afterAll(() => builder.stop());

it("is nothing outside of the stack's folder, which destroy removes, where they are killed", async () => {
  builder.answer("sleep 5");
  const { machine, clientDirectory, server } = builder;
  const elsewhere = `${server.dir}/tmp`;
  mkdirSync(elsewhere);
  const script = `${server.dir}/refusals.mts`;
  writeFileSync(
    script,
    `import { tryRefusals } from "${checkout}/src/smoke/refusals.ts";
await tryRefusals(${JSON.stringify(machine)}, { clientDirectory: "${clientDirectory}", ownMachine: true });`,
  );
  const env = { ...process.env, TMPDIR: elsewhere };
  const child = spawn(process.execPath, [script], { stdio: "ignore", env });
  const ended = once(child, "exit");
  await vi.waitUntil(() => builder.logins() > 0, { timeout: 30_000 });
  child.kill("SIGKILL");
  await ended;
  expect(readdirSync(elsewhere)).toEqual([]);
});
