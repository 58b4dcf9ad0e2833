/** What a browser can't train, by the name that it has in a job file: it is refused before anything is computed. */

import { JobError } from "../errors.ts";
import type { Job, SampleSpec } from "./job.ts";

/** Throws JobError, which names the first setting that this build can't do. */
export function refuseUnsupported({ spec, signature }: Job): void {
  const privacy = spec.privacy ?? {};
  const reasons: [string, unknown][] = [
    ['[fleet] mode other than "personal"', (spec.fleet?.mode ?? "personal") !== "personal"],
    ["[evaluation] patience", spec.evaluation?.patience],
    ["[evaluation] keep_best", spec.evaluation?.keep_best],
    ["[evaluation] best_by", spec.evaluation?.best_by],
    ["accumulate", (spec.accumulate ?? 1) > 1],
    ["[optimizer] ema", spec.optimizer.ema],
    [`the optimizer ${spec.optimizer.name}`, !isKnown(spec.optimizer)],
    ['precision other than "fp32"', (spec.precision ?? "fp32") !== "fp32"],
    ["[privacy] clip_activations and noise_activations", privacy.clip_activations || privacy.noise_activations],
    ["[privacy] gradient_noise", privacy.gradient_noise],
    ["[privacy] nopeek", privacy.nopeek],
    ["[privacy] label_dp", privacy.label_dp],
    ["[privacy] peer_labels", privacy.peer_labels],
    ["[privacy.dp]", privacy.dp],
    ["more than one input", signature.inputs.length !== 1],
    ["more than one target", signature.targets.length !== 1],
    [`inputs of ${told(signature.inputs[0])}`, signature.inputs[0] && !isUsable(signature.inputs[0])],
    [`targets of ${told(signature.targets[0])}`, signature.targets[0] && !isTarget(signature.targets[0])],
  ];
  const found = reasons.find(([, present]) => present);
  if (found !== undefined) {
    throw new JobError(`the training needs ${found[0]}, which a browser can't do yet`, "train it with the Python agent");
  }
}

/** Whether the engine has the optimizer. */
export function isKnown(optimizer: Job["spec"]["optimizer"]): optimizer is Known {
  return optimizer.name === "sgd" || optimizer.name === "adam" || optimizer.name === "adamw";
}

type Known = Extract<Job["spec"]["optimizer"], { readonly name: "sgd" | "adam" | "adamw" }>;

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
