/** Binary caches beside the fleet, by the name that they are known under or by URL and key. */
import { InvalidValue } from "./invalidValue.ts";
import type { NixSettings } from "./nixConf.ts";
import { ownValue } from "../record.ts";

/** A substituter and the key that signs what it holds. */
export interface Cache {
  /** URL of the store, for instance `https://cache.garnix.io`. */
  readonly url: string;
  /** `NAME:` and 32 bytes in base64. */
  readonly publicKey: string;
}

/** The cache of garnix.io, a CI for flakes. Source: its manual; the same key stands in many public configurations. */
export const garnix: Cache = {
  url: "https://cache.garnix.io",
  publicKey: "cache.garnix.io:CTFPyKSLcx5RMJKfLo5EEPUObbA78b0YQ2DTCJXqr9g=",
};

/** Keys of Cachix caches that many people use, as their pages on cachix.org publish them. */
const cachixKeys: Readonly<Record<string, string>> = {
  "nix-community": "nix-community.cachix.org-1:mB9FSh9qf2dCimDSUo8Zy7bkq5CX+/rkCWyvRCYg3Fs=",
};

/**
 * A cache at cachix.org.
 *
 * @param publicKey as `https://app.cachix.org/cache/NAME` shows it; needed for all but well-known caches
 * @throws InvalidValue if the name is none, or the key is missing or malformed
 */
export function cachix(name: string, publicKey: string | undefined = ownValue(cachixKeys, name)): Cache {
  if (!/^[a-z0-9]([a-z0-9-]*[a-z0-9])?$/.test(name)) {
    throw new InvalidValue("cachix", name, "the name of a cache: lower-case letters, digits and hyphens");
  }
  if (publicKey === undefined) {
    throw new InvalidValue(
      `cachix ${name} publicKey`,
      undefined,
      `the public key that https://app.cachix.org/cache/${name} shows`,
    );
  }
  return checkCache({ url: `https://${name}.cachix.org`, publicKey });
}

/**
 * Any substituter with its key.
 *
 * @throws InvalidValue
 */
export function checkCache({ url, publicKey }: Cache): Cache {
  if (!/^(https?|s3|file|ssh|ssh-ng):\/\/[A-Za-z0-9._~:/?&=%+@[\]-]+$/.test(url)) {
    throw new InvalidValue("cache url", url, "the URL of a store (https, http, s3, file, ssh-ng, ssh), without spaces");
  }
  const [, key] = /^[A-Za-z0-9._/-]+:([A-Za-z0-9+/]{43}=)$/.exec(publicKey) ?? [];
  if (key === undefined) {
    throw new InvalidValue("cache publicKey", publicKey, "NAME:KEY, with the 32 bytes of an ed25519 key in base64");
  }
  return { url, publicKey };
}

/** The Nix settings that add these caches to those that the client has. None for none. */
export function cacheSettings(caches: readonly Cache[]): NixSettings {
  const checked = caches.map(checkCache);
  return checked.length === 0
    ? {}
    : {
        "extra-substituters": checked.map(({ url }) => url).join(" "),
        "extra-trusted-public-keys": checked.map(({ publicKey }) => publicKey).join(" "),
      };
}
