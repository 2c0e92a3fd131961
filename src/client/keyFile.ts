/** Whether ssh can log in with a key file of a person's, found out before anything is made. */
import { spawnSync } from "node:child_process";
import { readFileSync, statSync } from "node:fs";

/** What is wrong with a private key file, in words that follow its path; `undefined`: ssh can use it. */
export function keyProblem(path: string): string | undefined {
  try {
    const file = statSync(path);
    if (!file.isFile()) return "is no file";
    const text = readFileSync(path, "utf8");
    if (/^(ssh|ecdsa|sk)-\S+ AAAA/.test(text)) return "is a public key";
    if (text.startsWith("PuTTY-User-Key-File"))
      return `is PuTTY's kind of key, which ssh doesn't read (puttygen ${path} -O private-openssh -o NEW)`;
    if (!/^-----BEGIN ([A-Z0-9]+ )*PRIVATE KEY-----/m.test(text)) return "holds no private key";
    // ssh looks at the mode of files of this user alone.
    if (file.uid === process.getuid?.() && (file.mode & 0o077) !== 0)
      return "is open to others, so that ssh refuses it (chmod 600)";
    if (text.includes("\r")) return `has line ends of Windows, which ssh doesn't read (sed -i 's/\\r$//' ${path})`;
    if (/-----END [A-Z0-9 ]+-----$/.test(text))
      return `lacks the line end after its last line, without which ssh doesn't read it (echo >> ${path})`;
  } catch (error) {
    return error instanceof Error && "code" in error && error.code === "ENOENT" ? "isn't there" : "can't be read";
  }
  const { status, stderr } = sshTool("ssh-keygen", "-y", "-P", "", "-f", path);
  if (status === 0 || status === null) return undefined;
  if (!stderr.includes("passphrase")) return "holds no private key that ssh can read";
  return agentHas(path)
    ? undefined
    : `has a passphrase, for which Nix can ask nobody (remove it with \`ssh-keygen -p -N '' -f ${path}\`, or name another key)`;
}

/** Whether an ssh-agent has the key open, so that its passphrase isn't asked for. */
function agentHas(path: string): boolean {
  const [, fingerprint] = /^\d+ (\S+:\S+) /.exec(sshTool("ssh-keygen", "-l", "-f", path).stdout) ?? [];
  return fingerprint !== undefined && sshTool("ssh-add", "-l").stdout.includes(` ${fingerprint} `);
}

/** @returns `status` is null where it isn't installed, or doesn't end. */
function sshTool(program: string, ...words: readonly string[]) {
  return spawnSync(program, words, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"], timeout: 10_000 });
}
