/** Events of a device's session, and actions that it asks its shell for: `device_agent/session/events.py`. */

import type { SplitEasyError } from "../errors.ts";
import type { AnyMessage, AnyRequest, AttemptRef, MessageOf } from "../protocol/messages.ts";
import type { Packed } from "../protocol/packed.ts";
import type { Range } from "../protocol/ranges.ts";
import type { Tensor } from "../protocol/tensor.ts";

/** REPLY: no answer came. RETRY: the worker was busy. STOP: the step did not end soon enough after a stop was asked. */
export type Timer = "REPLY" | "RETRY" | "STOP";

/** The source of the noise that the worker adds under DP-SGD. */
export interface BodyNoise {
  readonly key: string;
  readonly multiplier: number;
}

export type Event =
  | { readonly type: "LinkUp" }
  | { readonly type: "LinkDown" }
  | { readonly type: "Failed"; readonly error: unknown }
  | { readonly type: "Received"; readonly message: AnyMessage }
  | { readonly type: "Arriving" }
  | { readonly type: "Sent"; readonly request: string }
  | { readonly type: "NotSent"; readonly request: string }
  | { readonly type: "Fired"; readonly timer: Timer }
  | { readonly type: "StopAsked" }
  | { readonly type: "Hold"; readonly why: string }
  | { readonly type: "Go" }
  | { readonly type: "AttemptRaised"; readonly attempt: AttemptRef }
  | Restored
  | HeadDone
  | TailDone
  | { readonly type: "HeadBackwardDone" }
  | { readonly type: "Applied" }
  | HandInDone
  | { readonly type: "Saved"; readonly held: readonly number[] }
  | { readonly type: "WentBack"; readonly held: readonly number[] }
  | { readonly type: "EvalHeadDone"; readonly values: Packed; readonly samples: number }
  | { readonly type: "EvalTailDone"; readonly more: boolean; readonly finished?: boolean; readonly best?: number };

/** Head, tail and optimizers are as they were after the step asked for; newer checkpoints are gone. */
export interface Restored {
  readonly type: "Restored";
  readonly held: readonly number[];
  /** The state has the judgement of the evaluation after its step, where evaluations are judged. */
  readonly evaluated?: boolean;
  /** The training has ended at this step, by its evaluations. */
  readonly finished?: boolean;
  /** The step whose state is kept as the best so far; 0 where none is. */
  readonly best?: number;
}

/** The head's wire values of a micro-batch; with shared labels the targets follow them. */
export interface HeadDone {
  readonly type: "HeadDone";
  readonly values: Packed;
  readonly samples: number;
  readonly targets: readonly Tensor[];
  /** Samples of the whole batch. */
  readonly batch: number;
  /** Labelled elements of the whole batch, where labels are shared and the loss's mean is over those. */
  readonly counted: number | null;
}

export interface TailDone {
  readonly type: "TailDone";
  readonly gradients: Packed;
  readonly loss: number | null;
  readonly noise: BodyNoise | null;
}

/** The hand-in of head and tail, by name; nothing where these stay, or the device comes new. */
export interface HandInDone {
  readonly type: "HandInDone";
  readonly round: number;
  readonly ends: Readonly<Record<string, Tensor>>;
  readonly fleet_key: string | null;
  readonly samples: number;
  readonly nonce: string | null;
  /** It has ended its round; false: there are more windows of a body that is shared. */
  readonly whole: boolean;
  /** The accuracy that it measured last, where the job lets it be told. */
  readonly accuracy?: number | null;
}

export type Action =
  | {
      readonly type: "Send";
      readonly message: AnyRequest;
      /** The bytes of it that the worker has. */
      readonly skip: readonly Range[];
      /** The request that an ASK is about, where the worker may have a part of the same values under another id. */
      readonly whole: MessageOf<"FORWARD" | "BACKWARD"> | null;
    }
  | { readonly type: "Arm"; readonly timer: Timer; readonly delay_s: number }
  | { readonly type: "Disarm"; readonly timer: Timer }
  | { readonly type: "Note"; readonly text: string }
  | { readonly type: "Finish"; readonly done: boolean }
  | { readonly type: "Fail"; readonly error: SplitEasyError }
  | Computation;

/** What the shell computes or writes; each gives one event. */
export type Computation =
  | { readonly type: "RaiseAttempt"; readonly above: number }
  | { readonly type: "Restore"; readonly step: number }
  | { readonly type: "RunHead"; readonly step: number; readonly micro: number }
  | { readonly type: "RunTail"; readonly values: Packed; readonly micro: number }
  | { readonly type: "RunHeadBackward"; readonly gradients: Packed; readonly loss: number | null }
  | { readonly type: "Apply"; readonly gradients: Packed; readonly loss: number | null; readonly skipped: boolean }
  | { readonly type: "HandIn" }
  | { readonly type: "TakeMean"; readonly mean: MessageOf<"MEAN"> }
  | { readonly type: "Save"; readonly step: number; readonly durable_step: number; readonly asked: boolean }
  | { readonly type: "GoBack"; readonly step: number }
  | { readonly type: "EvalHead"; readonly index: number }
  | { readonly type: "EvalTail"; readonly index: number; readonly step: number; readonly values: Packed };

export function note(text: string): Action {
  return { type: "Note", text };
}

export function arm(timer: Timer, delay_s: number): Action {
  return { type: "Arm", timer, delay_s };
}

export function disarm(timer: Timer): Action {
  return { type: "Disarm", timer };
}
