/** What a builder's instance is born from. Fleets of one name may share an account, so that only the stack's id says whose an instance is. */
import type { AwsBuilderSpec } from "../fleetSpec.ts";
import { ownValue } from "../record.ts";

/** An instance of some fleet of this name, that of another checkout included. */
export interface FoundInstance {
  /** The stack's id, as in the tag. */
  readonly stack: string | undefined;
  /** The builder's name. */
  readonly builder: string | undefined;
  readonly instanceType: string | undefined;
  readonly image: string | undefined;
  readonly generation: string | undefined;
}

/** What was found at AWS that decides about instances. */
export interface FoundOrigins {
  /** Builder name → image for a new instance; nothing where AWS has none and an instance of that builder's name runs. */
  readonly images: Readonly<Record<string, string>>;
  /** Builder name → why it has no image, and what there is instead. */
  readonly missing: Readonly<Record<string, string>>;
  readonly instances: readonly FoundInstance[];
  /** Generation of an instance that is made now. */
  readonly nextGeneration: string;
}

/** What a builder's instance is made of. */
export interface Origin {
  /** That of the builder's own instance, while there is one of a wanted type; else the configured or the newest official one. */
  readonly image: string;
  /** Another one than before when the instance is gone, as a spot instance may be at any time. */
  readonly generation: string;
}

/** What the configuration asks for and AWS doesn't have: the message is all that a person needs. */
export class NotAtAws extends Error {
  override readonly name = "NotAtAws";
}

/**
 * @param stack Id of the stack whose builder it is.
 * @throws NotAtAws when the builder needs an image and AWS has none any more.
 */
export function originOf(
  { images, missing, instances, nextGeneration }: FoundOrigins,
  { name, candidates, ami }: Pick<AwsBuilderSpec, "name" | "candidates" | "ami">,
  stack: string,
): Origin {
  const own = instances.find((one) => one.stack === stack && one.builder === name);
  const kept = own?.instanceType !== undefined && candidates.includes(own.instanceType) ? own.image : undefined;
  const image = ami ?? kept ?? ownValue(images, name);
  if (image === undefined) throw new NotAtAws(`builders: '${name}': ${ownValue(missing, name) ?? "there is no image"}`);
  return { image, generation: own?.generation ?? nextGeneration };
}
