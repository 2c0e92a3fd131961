/** `command:local:Command` and `command:local:run`: the same expectations for the genuine plugin and for the substitute. */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { UNKNOWN, asAsset, isObject, isSecret } from "../../tools/plugins/propertyValue.ts";
import { RunningPlugin, asSecret, pluginsUnderTest } from "./pluginUnderTest.ts";

const TYPE = "command:local:Command";

describe.each(pluginsUnderTest("command"))("local.Command of $title", (tested) => {
  let plugin: RunningPlugin;
  let dir: string;

  beforeAll(async () => {
    plugin = await RunningPlugin.start(tested);
    dir = mkdtempSync(join(tmpdir(), "fleet-local-"));
  });
  afterEach(() => {
    plugin.log.length = 0;
  });
  afterAll(async () => {
    await plugin.stop();
    rmSync(dir, { recursive: true, force: true });
  });

  it("has the version of the npm package", async () => {
    const { version } = JSON.parse(readFileSync("node_modules/@pulumi/command/package.json", "utf8")) as {
      version: string;
    };
    expect(await plugin.version()).toBe(version);
  });

  it("runs create and keeps stdout and stderr without the last line end", async () => {
    const { id, state } = await plugin.create(
      TYPE,
      { create: "echo one; echo two; echo three >&2" },
      { name: "shell" },
    );
    expect(state).toEqual({ create: "echo one; echo two; echo three >&2", stdout: "one\ntwo", stderr: "three" });
    expect(id).toMatch(/^shell[0-9a-f]{8}$/);
  });

  it("runs nothing in a preview, and leaves the outputs open", async () => {
    const marker = join(dir, "preview");
    const { state } = await plugin.create(TYPE, { create: `touch ${marker}` }, { preview: true });
    expect(state).toEqual({ create: `touch ${marker}`, stdout: UNKNOWN, stderr: UNKNOWN });
    const old = { create: "true", stdout: "", stderr: "" };
    expect(await plugin.update(TYPE, old, { create: `touch ${marker}` }, { preview: true })).toMatchObject({
      stdout: UNKNOWN,
    });
    expect(existsSync(marker)).toBe(false);
  });

  it("does nothing without create", async () => {
    const { state } = await plugin.create(TYPE, { delete: "false" });
    expect(state).toEqual({ delete: "false", stdout: "", stderr: "" });
  });

  it("passes environment, stdin and dir, and takes another interpreter", async () => {
    const { state } = await plugin.create(TYPE, {
      create: 'printf "%s %s %s" "$0" "$GREETING" "$(pwd)"; cat',
      environment: { GREETING: "hi there" },
      stdin: ": input",
      dir,
      interpreter: ["/bin/bash", "-ec"],
    });
    expect(state["stdout"]).toBe(`/bin/bash hi there ${dir}: input`);
  });

  it("fails with the exit status, the command and all that it wrote", async () => {
    const create = 'echo "some output"; echo complaint >&2; exit 3';
    await expect(plugin.create(TYPE, { create })).rejects.toThrow(
      /^exit status 3: running "echo \\"some output\\"; echo complaint >&2; exit 3":\n(some output\ncomplaint|complaint\nsome output)\n$/,
    );
  });

  it("keeps stdin out of the error", async () => {
    const failing = plugin.create(TYPE, { create: "cat > /dev/null; exit 1", stdin: asSecret("hunter2") });
    await expect(failing).rejects.toThrow(/exit status 1/);
    await expect(failing).rejects.not.toThrow(/hunter2/);
  });

  it("names a directory that doesn't exist", async () => {
    await expect(plugin.create(TYPE, { create: "true", dir: join(dir, "missing") })).rejects.toThrow(
      /chdir .*missing: no such file or directory/,
    );
  });

  it("names an interpreter that doesn't exist", async () => {
    await expect(plugin.create(TYPE, { create: "true", interpreter: ["no-such-shell"] })).rejects.toThrow(
      /exec: "no-such-shell": executable file not found in \$PATH/,
    );
  });

  it("runs update on a change, with the previous outputs in the environment", async () => {
    const inputs = {
      create: "echo first",
      update: 'echo "then $GREETING after $PULUMI_COMMAND_STDOUT"',
      environment: { GREETING: "hi" },
    };
    const state = { create: "echo first", stdout: "first", stderr: "" };
    expect(await plugin.update(TYPE, state, inputs)).toEqual({ ...inputs, stdout: "then hi after first", stderr: "" });
  });

  it("runs create again on a change where there is no update", async () => {
    const state = { create: "echo old", stdout: "old", stderr: "" };
    expect(await plugin.update(TYPE, state, { create: 'echo "new, not $PULUMI_COMMAND_STDOUT"' })).toMatchObject({
      stdout: "new, not old",
    });
  });

  it("keeps the previous outputs out of the environment when told so", async () => {
    const inputs = { create: 'echo "[$PULUMI_COMMAND_STDOUT]"', addPreviousOutputInEnv: false };
    expect(await plugin.update(TYPE, { create: "x", stdout: "old", stderr: "" }, inputs)).toMatchObject({
      stdout: "[]",
    });
  });

  it("keeps the outputs when a change leaves nothing to run", async () => {
    const state = { update: "echo x", stdout: "kept", stderr: "" };
    expect(await plugin.update(TYPE, state, { delete: "true" })).toEqual({
      delete: "true",
      stdout: "kept",
      stderr: "",
    });
  });

  it("runs delete with the environment and outputs of the state", async () => {
    const file = join(dir, "deleted");
    await plugin.delete(TYPE, {
      delete: `echo "$GREETING $PULUMI_COMMAND_STDOUT" > ${file}`,
      environment: { GREETING: "bye" },
      stdout: "from create",
      stderr: "",
    });
    expect(readFileSync(file, "utf8")).toBe("bye from create\n");
  });

  it("fails the deletion when delete fails", async () => {
    await expect(plugin.delete(TYPE, { delete: "exit 4", stdout: "", stderr: "" })).rejects.toThrow(/exit status 4/);
  });

  describe("what counts as a change", () => {
    const inputs = { create: "echo a", triggers: ["one", { nested: [1, true] }], environment: { A: "b" } };
    const state = { ...inputs, stdout: "a", stderr: "" };

    it("is nothing when nothing changed", async () => {
      expect(await plugin.diff(TYPE, state, inputs)).toEqual({ changed: false, inputs: [], replaces: [] });
    });
    it.each([
      ["create", { ...inputs, create: "echo b" }],
      ["delete", { ...inputs, delete: "true" }],
      ["environment", { ...inputs, environment: { A: "c" } }],
      ["environment", { ...inputs, environment: {} }],
      ["create", { triggers: inputs.triggers, environment: inputs.environment }],
      ["stdin", { ...inputs, stdin: asSecret("s") }],
      ["addPreviousOutputInEnv", { ...inputs, addPreviousOutputInEnv: true }],
    ])("updates when %s differs", async (name, changed) => {
      expect(await plugin.diff(TYPE, state, changed)).toEqual({ changed: true, inputs: [name], replaces: [] });
    });
    it("is a different trigger", async () => {
      const diff = await plugin.diff(TYPE, state, { ...inputs, triggers: ["two", { nested: [1, true] }] });
      expect(diff).toMatchObject({ changed: true, inputs: ["triggers"] });
    });
    it("is a trigger where there was none, and replaces", async () => {
      const untriggered = { ...state, triggers: null };
      expect(await plugin.diff(TYPE, untriggered, inputs)).toEqual({
        changed: true,
        inputs: ["triggers"],
        replaces: ["triggers"],
      });
    });
    it.each([
      ["of a map", { environment: { A: "c", "B-1": "new" } }, ["environment.A", 'environment["B-1"]']],
      ["of a list, at whatever depth", { triggers: ["one", { nested: [1, false] }] }, ["triggers[1].nested[1]"]],
      ["of a list that gets longer", { triggers: [...inputs.triggers, "two"] }, ["triggers[2]"]],
      ["of a list that gets shorter", { triggers: ["one"] }, ["triggers[1]"]],
      ["that takes another type", { triggers: ["one", "two"] }, ["triggers[1]"]],
      ["that becomes secret, as a whole", { environment: asSecret({ A: "c" }) }, ["environment"]],
      ["that is new, as a whole", { interpreter: ["sh"] }, ["interpreter"]],
    ])("names the part %s", async (_what, changed, paths) => {
      expect(await plugin.differingPaths(TYPE, state, { ...inputs, ...changed })).toEqual(paths);
    });
    it("is nothing when a secret input stays the same", async () => {
      const stdin = asSecret("s");
      expect(await plugin.diff(TYPE, { ...state, stdin }, { ...inputs, stdin })).toMatchObject({ changed: false });
    });
  });

  it("keeps secret inputs secret in the state", async () => {
    const { inputs } = await plugin.check(TYPE, { create: "wc -c", stdin: asSecret("hunter2") });
    const { state } = await plugin.create(TYPE, inputs);
    expect(isSecret(state["stdin"])).toBe(true);
    expect(state["stdout"]).toBe("7");
  });

  it("logs what the command writes, line by line, as passing messages", async () => {
    await plugin.create(TYPE, { create: "printf 'one\\ntwo\\nthree'" });
    const messages = () => plugin.log.map(({ message }) => message);
    expect(messages()).toEqual(["one", "two", "three"]);
    await plugin.create(TYPE, { create: "echo wrong >&2" });
    expect(messages().slice(3)).toEqual(["wrong"]);
    expect(plugin.log.every(({ ephemeral, severity }) => ephemeral && severity === 1)).toBe(true);
    expect(plugin.log[0]?.urn).toContain(TYPE);
  });

  it("logs before the command has ended", async () => {
    const go = join(dir, "go");
    const running = plugin.create(TYPE, { create: `echo waiting; until [ -e ${go} ]; do sleep 0.05; done; echo done` });
    await expect.poll(() => plugin.log.map(({ message }) => message)).toEqual(["waiting"]);
    writeFileSync(go, "");
    await expect(running).resolves.toMatchObject({ state: { stdout: "waiting\ndone" } });
  });

  it.each([
    ["none", []],
    ["stdout", ["out"]],
    ["stderr", ["err"]],
  ])("logs %s only when told so", async (logging, lines) => {
    const { state } = await plugin.create(TYPE, { create: "echo out; echo err >&2", logging });
    expect(plugin.log.map(({ message }) => message)).toEqual(lines);
    expect(state).toMatchObject({ stdout: "out", stderr: "err" });
  });

  it("returns files as assets and as an archive", async () => {
    const { state } = await plugin.create(TYPE, {
      create: "mkdir -p sub/deep; echo a > a.txt; echo b > sub/b.txt; echo s > sub/deep/secret.txt; echo c > c.md",
      dir,
      assetPaths: ["**.txt", "!**secret*"],
      archivePaths: ["*.{md,txt}"],
    });
    const assets = isObject(state["assets"]) ? state["assets"] : {};
    expect(Object.keys(assets).sort()).toEqual(["a.txt", "sub/b.txt"]);
    expect(asAsset(assets["sub/b.txt"])).toEqual({
      kind: "asset",
      path: join(dir, "sub/b.txt"),
      hash: "0263829989b6fd954f72baaf2fc64bc2e2f01d692d4de72986ea808f6e99813f",
    });
    const archive = isObject(state["archive"]) ? state["archive"] : {};
    expect(Object.keys(isObject(archive["assets"]) ? archive["assets"] : {}).sort()).toEqual(["a.txt", "c.md"]);
  });

  it("answers a refresh with what it is told", async () => {
    const inputs = { create: "echo a" };
    const state = { ...inputs, stdout: "a", stderr: "" };
    expect(await plugin.read(TYPE, "it1", state, inputs)).toEqual({ id: "it1", state });
    expect(await plugin.read(TYPE, "looked up", {}, {})).toEqual({ id: "looked up", state: {} });
  });

  it("leaves out what is null, at whatever depth, in inputs and state", async () => {
    const given = {
      create: "echo a",
      update: null,
      stdin: null,
      environment: { A: "b", C: null },
      triggers: ["x", null],
    };
    const kept = { create: "echo a", environment: { A: "b" }, triggers: ["x", null] };
    const { inputs, failures } = await plugin.check(TYPE, given);
    expect({ inputs, failures }).toEqual({ inputs: kept, failures: [] });
    const { state } = await plugin.create(TYPE, inputs);
    expect(state).toEqual({ ...kept, stdout: "a", stderr: "" });
    expect(await plugin.diff(TYPE, state, inputs)).toMatchObject({ changed: false });
  });

  it.each([
    ["a command that is no text", { create: 5 }, "create"],
    ["an environment that is no map of texts", { create: "true", environment: { A: 1 } }, "environment"],
    ["an unknown way of logging", { create: "true", logging: "loudly" }, "logging"],
    ["an input that doesn't exist", { create: "true", creat: "x" }, "creat"],
  ])("refuses %s", async (what, inputs, property) => {
    if (tested.kind === "genuine" && what.endsWith("logging")) return; // It logs nothing then: tools/plugins/README.md.
    const refused = await plugin.check(TYPE, inputs).then(
      ({ failures }) => JSON.stringify(failures),
      (error: unknown) => String(error),
    );
    expect(refused).toContain(property);
  });

  it("runs a function and returns its arguments with its outputs", async () => {
    expect(
      await plugin.invoke("command:local:run", { command: 'echo "Hello, $WHO"', environment: { WHO: "World" } }),
    ).toEqual({
      command: 'echo "Hello, $WHO"',
      environment: { WHO: "World" },
      stdout: "Hello, World",
      stderr: "",
    });
  });

  it("kills the command when the engine cancels", async () => {
    const own = await RunningPlugin.start(tested);
    try {
      const running = own.create(TYPE, { create: "echo $$; exec sleep 600" });
      const failed = expect(running).rejects.toThrow(/cancel|killed/);
      await expect.poll(() => own.log.length).toBe(1);
      await own.cancel();
      await failed;
      const pid = Number(own.log[0]?.message);
      await expect
        .poll(() => existsSync(`/proc/${pid}`) && !readFileSync(`/proc/${pid}/stat`, "utf8").includes(") Z "))
        .toBe(false);
    } finally {
      await own.stop();
    }
  });
});
