/** What a browser can't train, by the name that it has in a job file: it is refused before anything is computed. */

import { JobError } from "../errors.ts";
import { isRecord } from "../protocol/schema.ts";
import type { Job, SampleSpec } from "./job.ts";

/** A setting that is refused: any value of it but those allowed. `submit` and `plan` read the list (`operators.json`). */
export interface Refusal {
  /** Where it stands in the spec: names with points between them. */
  readonly key: string;
  /** Its values that are no setting, or that a browser can do; absent, null, false and 0 are always among them. */
  readonly allowed: readonly (string | number)[];
  /** As a person reads it. */
  readonly said: string;
}

export const REFUSED_SETTINGS: readonly Refusal[] = [
  { key: "evaluation.keep_best", allowed: [], said: "[evaluation] keep_best" },
  { key: "model.max_length", allowed: [], said: "samples with lengths of their own ([model] max_length)" },
  { key: "precision", allowed: ["fp32"], said: 'precision other than "fp32"' },
  { key: "privacy.peer_labels", allowed: [], said: "[privacy] peer_labels" },
  { key: "privacy.dp", allowed: [], said: "[privacy.dp]" },
];

/** Throws JobError, which names the first setting that this build can't do. */
export function refuseUnsupported({ spec, signature }: Job): void {
  const settings = REFUSED_SETTINGS.filter((each) => isSet(each, spec)).map(({ said }) => said);
  const [input, target] = [signature.inputs[0], signature.targets[0]];
  const forms: [string, boolean][] = [
    ["more than one input", signature.inputs.length !== 1],
    ["more than one target", signature.targets.length !== 1],
    [`inputs of ${told(input)}`, input !== undefined && !isUsable(input)],
    [`targets of ${told(target)}`, target !== undefined && !isTarget(target)],
  ];
  const [found] = [...settings, ...forms.filter(([, present]) => present).map(([said]) => said)];
  if (found !== undefined) {
    throw new JobError(`the training needs ${found}, which a browser can't do yet`, "train it with the Python agent");
  }
}

function isSet({ key, allowed }: Refusal, spec: unknown): boolean {
  const value = key.split(".").reduce((at: unknown, name) => (isRecord(at) ? at[name] : undefined), spec);
  return Boolean(value) && !allowed.some((each) => each === value);
}

function told(spec: SampleSpec | undefined): string {
  return spec === undefined ? "none" : `${spec.dtype}[${spec.shape.join(", ")}]`;
}

function isUsable(input: SampleSpec): boolean {
  return isPicture(input) || (input.dtype === "float32" && input.shape.length === 1);
}

/** Whether the input is a picture: channels, height, width. */
export function isPicture({ dtype, shape }: SampleSpec): boolean {
  return shape.length === 3 && (shape[0] === 1 || shape[0] === 3) && (dtype === "float32" || dtype === "uint8");
}

function isTarget({ dtype, shape }: SampleSpec): boolean {
  return (dtype === "int64" && !shape.length) || (dtype === "float32" && shape.length <= 1);
}
