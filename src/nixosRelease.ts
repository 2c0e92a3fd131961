/** The one place that knows which NixOS is current, and the exact Nix and nixpkgs that a conversion starts from. */
import type { System } from "./nix/system.ts";

/** The NixOS release that new builders get: `YY.MM`. */
export const currentRelease = "26.05" satisfies PinnedRelease;

/** The oldest that the modules in `nixos/` are written for. */
export const oldestRelease = "25.11";

/** Whether the modules in `nixos/` are written for this release, named `YY.MM`. Newer ones than any that exists count. */
export function isSupportedRelease(release: string): boolean {
  return /^\d\d\.(05|11)$/.test(release) && release >= oldestRelease;
}

/** A file to fetch, and what it has to be. */
export interface Pin {
  /** `https://…`. */
  readonly url: string;
  /** SHA-256. Of nixpkgs that of the unpacked tree, in any form that Nix takes; of Nix's release archive that of the file, in hexadecimal. */
  readonly hash: string;
}

/**
 * nixpkgs of each release that is installed by its name. A release of the channel `nixos-YY.MM`, so that cache.nixos.org has what it builds.
 *
 * Another one: take the newest folder of https://releases.nixos.org/?prefix=nixos/YY.MM/ and the hash that
 * `nix-prefetch-url --unpack URL` prints, in the form of `nix hash to-sri --type sha256 HASH`.
 */
export const pinnedNixpkgs = {
  "26.05": {
    url: "https://releases.nixos.org/nixos/26.05/nixos-26.05.11576.7c8764b7c7b0/nixexprs.tar.xz",
    hash: "sha256-/hsaG8yWXZjTs6WJS2xnerd9VKBgJ8jN8e5ELHLt+bs=",
  },
} satisfies Readonly<Record<string, Pin>>;

/** A release that is installed by its name. */
export type PinnedRelease = keyof typeof pinnedNixpkgs;

/**
 * Nix's official release archive, which evaluates and installs that nixpkgs. Another one: https://releases.nixos.org/?prefix=nix/ has a
 * `….tar.xz.sha256` beside each archive.
 */
export const pinnedNix: Readonly<Record<System, Pin>> = {
  "x86_64-linux": {
    url: "https://releases.nixos.org/nix/nix-2.34.7/nix-2.34.7-x86_64-linux.tar.xz",
    hash: "eafe5042404e818505e28c5ca3d0885f3ec45c31f955489a25bb38258f87560e",
  },
  "aarch64-linux": {
    url: "https://releases.nixos.org/nix/nix-2.34.7/nix-2.34.7-aarch64-linux.tar.xz",
    hash: "f1cee64ae7a02330c6421924c28f597c41813f2214ff108622087d8056378b08",
  },
};
