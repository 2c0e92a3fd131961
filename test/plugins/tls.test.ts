/** `tls:index/privateKey:PrivateKey`: the same expectations for the genuine plugin and for the substitute. */
import { execFileSync } from "node:child_process";
import { createHash, createPrivateKey, createPublicKey } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Properties, UNKNOWN, isSecret, plainObject } from "../../tools/plugins/propertyValue.ts";
import { keyId } from "../../tools/plugins/tls/privateKey.ts";
import { RunningPlugin, pluginsUnderTest } from "./pluginUnderTest.ts";
import { SshServer, noSshServer } from "./sshServer.ts";

const TYPE = "tls:index/privateKey:PrivateKey";
const SECRETS = ["privateKeyOpenssh", "privateKeyPem", "privateKeyPemPkcs8"];
const missing = noSshServer();
if (missing !== undefined) console.warn(`Keys are not tried against a server: ${missing}`);

describe.each(pluginsUnderTest("tls"))("tls.PrivateKey of $title", (tested) => {
  let plugin: RunningPlugin;
  let dir: string;

  beforeAll(async () => {
    plugin = await RunningPlugin.start(tested);
    dir = mkdtempSync(join(tmpdir(), "fleet-tls-"));
  });
  afterAll(async () => {
    await plugin.stop();
    rmSync(dir, { recursive: true, force: true });
  });

  const create = async (inputs: Properties): Promise<{ id: string; state: Properties }> => {
    const checked = await plugin.check(TYPE, inputs);
    expect(checked.failures).toEqual([]);
    return plugin.create(TYPE, checked.inputs);
  };
  /** The key's texts, by output. */
  const texts = async (inputs: Properties): Promise<Record<string, string>> => {
    const { state } = await create(inputs);
    return Object.fromEntries(
      Object.entries(plainObject(state)).map(([name, value]) => [name, typeof value === "string" ? value : ""]),
    );
  };
  const keyFile = (name: string, content: string): string => {
    writeFileSync(join(dir, name), content, { mode: 0o600 });
    return join(dir, name);
  };

  it("has the version of the npm package", async () => {
    const { version } = JSON.parse(readFileSync("node_modules/@pulumi/tls/package.json", "utf8")) as {
      version: string;
    };
    expect(await plugin.version()).toBe(version);
  });

  it("leaves the outputs open in a preview, but for the inputs and their defaults", async () => {
    const { inputs } = await plugin.check(TYPE, { algorithm: "ED25519" });
    const { state } = await plugin.create(TYPE, inputs, { preview: true });
    expect(plainObject(state)).toMatchObject({
      algorithm: "ED25519",
      privateKeyOpenssh: UNKNOWN,
      publicKeyOpenssh: UNKNOWN,
    });
  });

  it("marks the private forms secret, and only these", async () => {
    const { state } = await create({ algorithm: "ED25519" });
    const secrets = Object.entries(state).filter(([, value]) => isSecret(value));
    expect(secrets.map(([name]) => name).sort()).toEqual(SECRETS);
  });

  it("keeps the defaults in the state", async () => {
    const { state } = await create({ algorithm: "ED25519" });
    expect(state).toMatchObject({ algorithm: "ED25519", ecdsaCurve: "P224", rsaBits: 2048 });
  });

  it("notes the version of the schema in the state, and takes a state without it for the same", async () => {
    const { state } = await create({ algorithm: "ED25519" });
    const { __meta: meta, ...older } = state;
    expect(meta).toBe('{"schema_version":"1"}');
    const { inputs } = await plugin.check(TYPE, { algorithm: "ED25519" });
    expect(await plugin.diff(TYPE, state, inputs)).toMatchObject({ changed: false });
    expect(await plugin.diff(TYPE, older, inputs)).toMatchObject({ changed: false });
  });

  it("makes another key each time", async () => {
    const [one, other] = [await create({ algorithm: "ED25519" }), await create({ algorithm: "ED25519" })];
    expect(one.id).toMatch(/^[0-9a-f]{40}$/);
    expect(one.id).not.toBe(other.id);
  });

  it("hashes the public key to its id without white space at the end", async () => {
    const der = (pem: string) => createPublicKey(pem).export({ type: "spki", format: "der" });
    const endsInSpace = (key: Buffer) => " \t\n\v\f\r".includes(String.fromCharCode(key.at(-1) ?? 0));
    // One key in 43 ends so.
    for (let tries = 0; tries < 2000; tries += 1) {
      const { id, publicKeyPem = "" } = await texts({ algorithm: "ED25519" });
      const key = der(publicKeyPem);
      if (!endsInSpace(key)) continue;
      expect(id).not.toBe(createHash("sha1").update(key).digest("hex"));
      expect(id).toBe(keyId(key));
      return;
    }
    expect.fail("no key ended in white space");
  });

  it.each([
    [{ algorithm: "ED25519" }, "ssh-ed25519", "PRIVATE KEY"],
    [{ algorithm: "RSA" }, "ssh-rsa", "RSA PRIVATE KEY"],
    [{ algorithm: "ECDSA", ecdsaCurve: "P256" }, "ecdsa-sha2-nistp256", "EC PRIVATE KEY"],
    [{ algorithm: "ECDSA", ecdsaCurve: "P384" }, "ecdsa-sha2-nistp384", "EC PRIVATE KEY"],
    [{ algorithm: "ECDSA", ecdsaCurve: "P521" }, "ecdsa-sha2-nistp521", "EC PRIVATE KEY"],
  ])("writes %o in forms that agree, as ssh-keygen and OpenSSL read them", async (inputs, type, pemLabel) => {
    const key = await texts(inputs);
    const {
      privateKeyOpenssh = "",
      privateKeyPem = "",
      privateKeyPemPkcs8 = "",
      publicKeyPem = "",
      publicKeyOpenssh = "",
    } = key;

    expect(publicKeyOpenssh).toMatch(new RegExp(`^${type} [A-Za-z0-9+/=]+\n$`));
    expect(privateKeyPem).toMatch(new RegExp(`^-----BEGIN ${pemLabel}-----\n`));
    for (const [name, text] of Object.entries({ privateKeyOpenssh, privateKeyPem, privateKeyPemPkcs8, publicKeyPem })) {
      expect(text, name).toMatch(/^-----BEGIN [A-Z ]+-----\n[\s\S]+\n-----END [A-Z ]+-----\n$/);
    }
    const file = keyFile(type, privateKeyOpenssh);
    const read = execFileSync("ssh-keygen", ["-y", "-f", file], { encoding: "utf8" });
    expect(read.trim()).toBe(publicKeyOpenssh.trim());
    for (const pem of [privateKeyPem, privateKeyPemPkcs8]) {
      expect(createPublicKey(createPrivateKey(pem)).export({ type: "spki", format: "pem" })).toBe(publicKeyPem);
    }
    const publicFile = keyFile(`${type}.pub`, publicKeyOpenssh);
    const fingerprint = (hash: string) =>
      execFileSync("ssh-keygen", ["-l", "-E", hash, "-f", publicFile], { encoding: "utf8" }).split(" ")[1];
    expect(key["publicKeyFingerprintSha256"]).toBe(fingerprint("sha256"));
    expect(`MD5:${key["publicKeyFingerprintMd5"] ?? ""}`).toBe(fingerprint("md5"));
    // The same key material in both worlds: what OpenSSH reads from PEM is what it has in its own form.
    if (type === "ssh-ed25519") {
      expect(Buffer.from(publicKeyOpenssh.split(" ")[1] ?? "", "base64").subarray(-32)).toEqual(
        createPublicKey(publicKeyPem).export({ type: "spki", format: "der" }).subarray(-32),
      );
    } else {
      const pem = keyFile(`${type}.pem`, publicKeyPem);
      const fromPem = execFileSync("ssh-keygen", ["-i", "-m", "PKCS8", "-f", pem], { encoding: "utf8" });
      expect(fromPem.trim()).toBe(publicKeyOpenssh.trim());
    }
  });

  it("has no OpenSSH forms for the curve P224", async () => {
    const key = await texts({ algorithm: "ECDSA" });
    expect(key).toMatchObject({
      privateKeyOpenssh: "",
      publicKeyOpenssh: "",
      publicKeyFingerprintMd5: "",
      publicKeyFingerprintSha256: "",
    });
    expect(key["privateKeyPem"]).toMatch(/^-----BEGIN EC PRIVATE KEY-----/);
  });

  it("makes RSA keys of the size asked for", async () => {
    const { privateKeyPem = "" } = await texts({ algorithm: "RSA", rsaBits: 3072 });
    expect(createPrivateKey(privateKeyPem).asymmetricKeyDetails?.modulusLength).toBe(3072);
  });

  it.skipIf(missing !== undefined)("makes a client key and a host key that OpenSSH logs in with", async () => {
    const [host, client] = [await texts({ algorithm: "ED25519" }), await texts({ algorithm: "ED25519" })];
    const server = await SshServer.prepare("127.21.0.1");
    try {
      writeFileSync(join(server.dir, "host"), host["privateKeyOpenssh"] ?? "", { mode: 0o600 });
      writeFileSync(join(server.dir, "host.pub"), host["publicKeyOpenssh"] ?? "");
      server.authorize(client["publicKeyOpenssh"] ?? "");
      await server.listen();
      const identity = keyFile("identity", client["privateKeyOpenssh"] ?? "");
      const known = keyFile("known_hosts", `[${server.address}]:${server.port} ${host["publicKeyOpenssh"] ?? ""}`);
      const options = [
        "BatchMode=yes",
        "IdentitiesOnly=yes",
        "StrictHostKeyChecking=yes",
        `UserKnownHostsFile=${known}`,
        "GlobalKnownHostsFile=/dev/null",
      ];
      const said = execFileSync(
        "ssh",
        [
          "-F",
          "none",
          ...options.flatMap((option) => ["-o", option]),
          "-i",
          identity,
          "-p",
          String(server.port),
          `${server.user}@${server.address}`,
          "echo in",
        ],
        { encoding: "utf8", timeout: 10_000 },
      );
      expect(said).toBe("in\n");
    } finally {
      await server.stop();
    }
  });

  it.each([
    ["algorithm", { algorithm: "ECDSA", ecdsaCurve: "P256" }],
    ["ecdsaCurve", { algorithm: "RSA", ecdsaCurve: "P256" }],
    ["rsaBits", { algorithm: "RSA", rsaBits: 4096 }],
  ])("replaces the key when %s changes", async (name, changed) => {
    const { state } = await create({ algorithm: "RSA" });
    const { inputs } = await plugin.check(TYPE, changed);
    const diff = await plugin.diff(TYPE, state, inputs);
    expect(diff.changed).toBe(true);
    expect(diff.replaces).toContain(name);
  });

  it("keeps the key when nothing changes, or a default is written out", async () => {
    const { id, state } = await create({ algorithm: "ED25519" });
    const { inputs } = await plugin.check(TYPE, { algorithm: "ED25519" });
    expect(await plugin.diff(TYPE, state, inputs)).toMatchObject({ changed: false, replaces: [] });
    const { inputs: explicit } = await plugin.check(TYPE, { algorithm: "ED25519", rsaBits: 2048, ecdsaCurve: "P224" });
    expect(await plugin.diff(TYPE, state, explicit)).toMatchObject({ changed: false });
    expect(await plugin.read(TYPE, id, state, inputs)).toMatchObject({ id });
  });

  it("takes null for an input that isn't given", async () => {
    const { inputs, failures } = await plugin.check(TYPE, { algorithm: "ED25519", rsaBits: null, ecdsaCurve: null });
    expect(failures).toEqual([]);
    // The genuine plugin hands them back.
    if (tested.kind === "substitute") expect(Object.values(inputs)).not.toContain(null);
    const { state } = await create({ algorithm: "ED25519" });
    expect(await plugin.diff(TYPE, state, inputs)).toMatchObject({ changed: false });
  });

  it("can't be imported, nor looked up by its id", async () => {
    await expect(plugin.read(TYPE, "0123456789", {}, {})).rejects.toThrow(/import/i);
  });

  it("deletes without doing anything", async () => {
    const { state } = await create({ algorithm: "ED25519" });
    await expect(plugin.delete(TYPE, state)).resolves.toBeUndefined();
  });

  it.each([
    ["an algorithm that doesn't exist", { algorithm: "DSA" }, "algorithm"],
    ["no algorithm", {}, "algorithm"],
    ["a curve that doesn't exist", { algorithm: "ECDSA", ecdsaCurve: "P999" }, "ecdsa"],
  ])("refuses %s", async (_what, inputs, property) => {
    const refused = await plugin.check(TYPE, inputs).then(
      ({ failures }) => JSON.stringify(failures),
      (error: unknown) => String(error),
    );
    expect(refused).toContain(property);
  });
});

describe("the id of a key", () => {
  const sha1 = (hex: string) => createHash("sha1").update(Buffer.from(hex, "hex")).digest("hex");

  // What strings.TrimSpace of Go 1.26 made of these bytes.
  it.each([
    ["ASCII white space", "3078090a0b0c0d20", "3078"],
    ["U+0085 and U+00A0 in UTF-8", "3078c285c2a0", "3078"],
    ["U+2003", "3078e28083", "3078"],
    ["U+3000, then ASCII", "3078e380800a", "3078"],
    ["U+00A0 after a byte that begins another character", "3078e2c2a0", "3078e2"],
    ["the byte 85 alone", "307885", "307885"],
    ["the byte A0 alone", "3078a0", "3078a0"],
    ["U+FEFF, which JavaScript trims", "3078efbbbf", "3078efbbbf"],
    ["U+200B", "3078e2808b", "3078e2808b"],
    ["white space before the end", "30200a78", "30200a78"],
  ])("takes bytes with %s for what Go leaves of them", (_what, bytes, left) => {
    expect(keyId(Buffer.from(bytes, "hex"))).toBe(sha1(left));
  });
});
