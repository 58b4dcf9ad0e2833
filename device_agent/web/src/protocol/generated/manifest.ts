/** Made by `npm run types` out of the JSON Schemas; not to be changed by hand. */

export interface PartEntry {
  readonly sha256: string;
  readonly size: number;
}

export interface ManifestRoot {
  readonly format?: "spliteasy-job";
  readonly name: string;
  readonly needs?: readonly string[];
  readonly parts: { readonly [name: string]: PartEntry };
  readonly version?: 1;
}
