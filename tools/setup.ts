/** `npm run setup`: gets what the project needs on this machine, or says what is missing, and lists what it found. */
import { fail } from "./launch.mjs";
import { setUp } from "./setup/index.ts";
import { say } from "./setup/progress.ts";

try {
  const { pulumi, plugins, nix, ssh, emulation } = await setUp({ renew: true });
  const rows = [
    ["Pulumi", pulumi],
    ...plugins.map(({ name, version, kind }) => [`plugin ${name}`, `${version}, ${kind}`]),
    ["Nix", nix],
    ["sshd", ssh.sshd],
    ...Object.entries(emulation.busybox).map(([cpu, path]) => [`busybox ${cpu}`, path]),
    ["qemu", emulation.qemu ?? "none: no emulated builder"],
    ["pasta", emulation.pasta ?? "none: builds on this machine have no network"],
  ];
  for (const [what = "", where = ""] of rows) say(`  ${what.padEnd(18)}${where}`);
} catch (error) {
  fail(error);
}
