import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { resolve } from "node:path";
import * as z from "zod";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { execa } from "execa";
import { HcloudApi } from "../../src/hcloud/api.ts";
import { findLabelled, findOrphans, labels, remove } from "../../src/hcloud/inventory.ts";
import { place, release } from "../../src/hcloud/placement.ts";
import { EmulatedApi } from "../support/hcloud/emulatedApi.ts";
import { forbidden } from "../support/hostileText.ts";

let emulated: EmulatedApi;
let api: HcloudApi;
beforeEach(async () => {
  emulated = await EmulatedApi.start();
  api = new HcloudApi({ token: emulated.token, endpoint: emulated.endpoint }, 5000);
});
afterEach(() => emulated.stop());

const own = { [labels.fleet]: "dev", [labels.stack]: "s1", [labels.builder]: "arm" };
const wanted = {
  alias: "dev-arm",
  candidates: [
    { serverType: "cax31", location: "fsn1" },
    { serverType: "cax41", location: "hel1" },
  ],
  labels: own,
  image: "debian-12",
};
const makeKey = (name: string, has: Record<string, string>) => {
  const key = Buffer.from(name).toString("base64");
  return api.request("POST", "/ssh_keys", { name, public_key: `ssh-ed25519 ${key}`, labels: has });
};
const silent = () => undefined;

describe("the API's client", () => {
  it("reads all pages of a list", async () => {
    for (let i = 0; i < 51; i += 1) await makeKey(`key-${i}`, own);
    expect(await findLabelled(api, { [labels.fleet]: "dev" })).toHaveLength(51);
  });

  it.each([
    ["429", { status: 429, code: "rate_limit_exceeded" }],
    ["locked", { status: 423, code: "locked" }],
    ["an error page", { status: 502, code: "" }],
    ["a broken connection", "hang up"],
  ] as const)("tries again after %s", async (_, answer) => {
    let times = 0;
    emulated.faults.push(() => ((times += 1) < 3 ? answer : undefined));
    await api.request("GET", "/locations");
    expect(times).toBe(3);
  });

  it("gives up after a while, and says in words what was wrong", async () => {
    const hasty = new HcloudApi({ token: "wrong", endpoint: emulated.endpoint }, 10);
    await expect(hasty.request("GET", "/locations")).rejects.toThrow("refuses the token; set hcloud:token");
    emulated.faults.push(() => "hang up");
    await expect(hasty.request("GET", "/locations")).rejects.toThrow("the Hetzner Cloud API can't be reached: ");
  });
});

it.each([
  ["the page of a proxy", "<html>sign in</html>"],
  ["a list that is none", JSON.stringify({ ssh_keys: "none" })],
  ["a list of something else", JSON.stringify({ ssh_keys: [{ id: "x" }] })],
  ["another number of pages", JSON.stringify({ ssh_keys: [], meta: { pagination: { next_page: "two" } } })],
])("says in words that the API answers with %s", async (_, text) => {
  const page = createServer((_request, response) => response.end(text)).listen(0, "127.0.0.1");
  await once(page, "listening");
  try {
    const endpoint = `http://127.0.0.1:${(page.address() as AddressInfo).port}`;
    const asked = new HcloudApi({ token: "t", endpoint }, 10).list(
      "/ssh_keys?x=y",
      "ssh_keys",
      z.object({ id: z.number() }),
    );
    await expect(asked).rejects.toThrow(
      /^the Hetzner Cloud API answers \/ssh_keys otherwise than expected( \([\w.]+\))?; look whether/,
    );
  } finally {
    page.close();
  }
});

it("waits for an action only so long, and words of the API that would take over a terminal are plain", async () => {
  emulated.faults.push(() => ({ status: 422, code: "\u001b[2Jodd" }));
  const error: unknown = await api.request("GET", "/locations").catch((refused: unknown) => refused);
  expect(String(error)).toContain("odd");
  expect(forbidden(String(error))).toEqual([]);
  emulated.faults.length = 0;
  const running = { action: { id: 7, status: "running" } };
  const never = Object.assign(new HcloudApi({ token: emulated.token }), { request: () => Promise.resolve(running) });
  await expect(never.finish(running, 300)).rejects.toThrow("action 7 of the Hetzner Cloud API did not end within");
});

describe("the inventory", () => {
  it("holds apart what is ours, another stack's, and nobody's", async () => {
    await makeKey("ours", own);
    await makeKey("theirs", { ...own, [labels.stack]: "s2" });
    await makeKey("nobody's", {});
    const orphans = await findOrphans(api, { labels: own, keep: {} });
    expect(orphans.map(({ name }) => name)).toEqual(["ours"]);
    const keep = { ssh_keys: [String(orphans[0]?.id)] };
    expect(await findOrphans(api, { labels: own, keep })).toEqual([]);
    expect(await findOrphans(api, { labels: {}, keep: {} })).toEqual([]);
    // Gone already is as good as deleted.
    await remove(api, orphans);
    await remove(api, orphans);
    expect(emulated.inventory()).toEqual(["ssh_keys nobody's", "ssh_keys theirs"]);
  });
});

describe("a place", () => {
  it("is held by a server that is off and has no address, and given up again", async () => {
    emulated.actionPolls = 2;
    expect(await place(api, wanted, silent)).toEqual(wanted.candidates[0]);
    expect(emulated.all("servers")).toMatchObject([
      { status: "off", public_net: { ipv4: null, ipv6: null }, labels: { ...own, [labels.role]: "reservation" } },
    ]);
    // Held already: asking again takes no second one.
    expect(await place(api, wanted, silent)).toEqual(wanted.candidates[0]);
    expect(emulated.all("servers")).toHaveLength(1);
    await release(api, own);
    expect(emulated.inventory()).toEqual([]);
  });

  it("is not asked for where the API's list says that it is sold out or does not exist", async () => {
    emulated.sellOut("cax31", "fsn1");
    const reasons: string[] = [];
    const candidates = [
      ...wanted.candidates.slice(0, 1),
      { serverType: "cax99", location: "fsn1" },
      ...wanted.candidates,
    ];
    expect(await place(api, { ...wanted, candidates }, (reason) => reasons.push(reason))).toEqual(wanted.candidates[1]);
    expect(reasons).toContain("cax31 in fsn1 can't be had: sold out at the moment");
    expect(reasons).toContain("cax99 in fsn1 can't be had: there is no such server type any more");
    expect(emulated.requests.filter(({ method }) => method === "POST")).toHaveLength(1);
  });
});

describe("a place that is asked for", () => {
  it("twice, because the first answer was lost, is held once", async () => {
    let times = 0;
    emulated.faults.push(({ method, path }) => {
      if (method !== "POST" || path !== "/servers") return undefined;
      return (times += 1) === 1 ? { status: 503, code: "service_error", afterwards: true } : undefined;
    });
    expect(await place(api, wanted, silent)).toEqual(wanted.candidates[0]);
    expect(times).toBe(2);
    expect(emulated.all("servers")).toMatchObject([{ server_type: { name: "cax31" } }]);
  });

  it("by two fleets of one name, is held for each", async () => {
    const theirs = { ...own, [labels.stack]: "s2" };
    const both = [wanted, { ...wanted, labels: theirs }];
    for (const one of both) expect(await place(api, one, silent)).toEqual(wanted.candidates[0]);
    await release(api, own);
    expect(emulated.all("servers")).toMatchObject([{ labels: theirs }]);
  });

  it("after another one, which a killed deployment holds still and nobody wants any more, is held beside it", async () => {
    await place(api, wanted, silent);
    const candidates = wanted.candidates.slice(1);
    const longName = { ...wanted, alias: "dev-arm".padEnd(63, "x"), candidates };
    for (let i = 0; i < 2; i += 1) expect(await place(api, longName, silent)).toEqual(wanted.candidates[1]);
    expect(emulated.all("servers")).toHaveLength(2);
    for (const { name } of emulated.all("servers")) expect(name).toMatch(/^[a-z][a-z0-9-]{0,61}[a-z0-9]$/);
    await release(api, own);
    expect(emulated.inventory()).toEqual([]);
  });

  it("by a builder that has its server, stays where the server is, whatever place is held besides", async () => {
    await place(api, wanted, silent);
    const made = {
      name: "arm-1",
      server_type: "cax41",
      location: "hel1",
      image: "debian-12",
      start_after_create: false,
    };
    await api.request("POST", "/servers", { ...made, labels: own });
    expect(await place(api, wanted, silent)).toEqual(wanted.candidates[1]);
  });
});

describe("`fleet verify-gone`", () => {
  const verifyGone = () => {
    const main = resolve(import.meta.dirname, "../../src/cli/main.ts");
    const env = { ...emulated.env, HCLOUD_TOKEN: emulated.token };
    return execa(process.execPath, [main, "--stack", "dev", "verify-gone"], { env, reject: false });
  };

  it("exits with 1 and names what still carries the fleet's label, and with 0 when there is nothing", async () => {
    await makeKey("left", own);
    await makeKey("another fleet's", { [labels.fleet]: "prod" });
    await makeKey("theirs", { ...own, [labels.stack]: "s2" });
    const { exitCode, stdout } = await verifyGone();
    expect(exitCode).toBe(1);
    expect(stdout).toMatch(/ssh_keys left .*builder arm, stack id s1,/);
    expect(stdout).toMatch(/ssh_keys theirs .*stack id s2,/);
    expect(stdout).toMatch(/deleted in the console, unless its stack id is that of another checkout's fleet/);
    await remove(api, await findLabelled(api, { [labels.fleet]: "dev" }));
    expect(await verifyGone()).toMatchObject({ exitCode: 0, stdout: "Nothing of fleet dev is left at Hetzner Cloud." });
  });

  it("fails in words when the API refuses it", async () => {
    emulated.faults.push(() => ({ status: 401, code: "unauthorized" }));
    expect(await verifyGone()).toMatchObject({
      exitCode: 1,
      stderr: expect.stringMatching(/^fleet: .*refuses the token/) as unknown,
    });
  });
});
