/** Made by `npm run types` out of the JSON Schemas; not to be changed by hand. */

export interface Law {
  readonly memory?: readonly Memory[];
  readonly steps?: readonly Step[];
  readonly version?: 1;
  readonly views?: readonly View[];
}

export interface Memory {
  readonly dtype: "float32" | "float64" | "float16" | "bfloat16" | "int64" | "int32" | "int16" | "int8" | "uint8" | "bool";
  readonly size: number;
}

export interface Step {
  readonly args?: readonly unknown[];
  readonly kwargs?: { readonly [name: string]: unknown };
  readonly op: string;
  readonly out?: readonly number[];
}

export interface View {
  readonly memory: number;
  readonly offset?: number;
  readonly shape: readonly number[];
  readonly strides: readonly number[];
}

export interface EndsRoot {
  readonly drawn?: { readonly [name: string]: { readonly [name: string]: number } };
  readonly format?: "spliteasy-ends";
  readonly law?: Law;
  readonly public?: { readonly [name: string]: { readonly [name: string]: string } };
  readonly version?: 1;
}
