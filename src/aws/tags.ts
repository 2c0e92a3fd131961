/** How the fleet marks what is its own at AWS. */
import type { Tag } from "@aws-sdk/client-ec2";

/** Tags on everything that the fleet makes. */
export const tags = {
  /** The fleet's name. */
  fleet: "nix-builder-fleet.fleet",
  /** Tells fleets of one name apart: made once for each stack. */
  stack: "nix-builder-fleet.stack",
  /** The builder's name; absent on what builders share. */
  builder: "nix-builder-fleet.builder",
  /** `reservation`: an instance that only holds a place until the builder's own is made. */
  role: "nix-builder-fleet.role",
  /** Made anew whenever a builder's instance was found gone. */
  generation: "nix-builder-fleet.generation",
  /** Day after which it should be gone, or `never`. */
  expires: "nix-builder-fleet.expires",
} as const;

/** The value of a tag of a thing, as the API describes it; `undefined` where it has none of that name. */
export function tagOf({ Tags }: { readonly Tags?: readonly Tag[] | undefined }, name: string): string | undefined {
  return Tags?.find(({ Key }) => Key === name)?.Value;
}
