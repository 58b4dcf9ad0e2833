/** The open step on a device: its micro-batches, what was sent of them and what came back. */

import type { AnyRequest, AttemptRef, MessageOf } from "../protocol/messages.ts";
import { carried, type Packed } from "../protocol/packed.ts";
import type { HeadDone, TailDone } from "./events.ts";
import { microSizes, type SessionPlan } from "./plan.ts";

type Forward = MessageOf<"FORWARD">;
type Backward = MessageOf<"BACKWARD">;
type Gradient = MessageOf<"GRADIENT">;

/** A micro-batch: its requests, and the answers that wait to be used. */
export interface Micro {
  readonly forward: Forward;
  outputs: Packed | null;
  backward: Backward | null;
  gradient: Gradient | null;
  /** The digest of the outputs that the tail ran on. */
  outputsDigest: string | null;
}

/** What goes with a FORWARD. */
export interface AboutForward {
  readonly attempt: AttemptRef;
  readonly step: number;
  readonly oldest: number;
  /** The state before the step is the best so far, which the step's first FORWARD says. */
  readonly best: boolean;
  readonly request: string;
}

/** All FORWARDs and BACKWARDs of the step: they are kept until its last GRADIENT has arrived. */
export class OpenStep {
  micros: Micro[] = [];
  /** The number of micro-batches in the step. */
  count = 0;
  /** The number of micro-batches whose head backward has run. */
  returned = 0;

  constructor(private readonly plan: SessionPlan) {}

  /** The request of the next micro-batch, whose head was computed. */
  forward(head: HeadDone, about: AboutForward): Forward {
    this.count = microSizes(head.batch, this.plan.of.micro_batches).length;
    const forward: Forward = {
      kind: "FORWARD",
      session: this.plan.of.session,
      request: about.request,
      attempt: about.attempt,
      step: about.step,
      micro: this.micros.length,
      samples: head.samples,
      batch: this.count > 1 ? head.batch : null,
      targets: head.targets.length,
      counted: head.counted,
      oldest_checkpoint: about.oldest,
      best: about.best && !this.micros.length ? true : null,
      ...carried(head.values, head.targets),
    };
    this.micros.push({ forward, outputs: null, backward: null, gradient: null, outputsDigest: null });
    return forward;
  }

  /** The request of the micro-batch whose tail was computed. */
  backward(tail: TailDone, about: { attempt: AttemptRef; step: number; request: string }): Backward {
    const index = this.nextTail();
    if (index === null) throw new Error("no tail is to be computed");
    const micro = this.micros[index];
    micro.backward = {
      kind: "BACKWARD",
      session: this.plan.of.session,
      request: about.request,
      attempt: about.attempt,
      step: about.step,
      micro: index,
      forward: micro.forward.request,
      loss: tail.loss,
      outputs: micro.outputsDigest,
      noise: tail.noise?.key ?? null,
      noise_multiplier: tail.noise?.multiplier ?? null,
      ...carried(tail.gradients),
    };
    return micro.backward;
  }

  /** The step is over, or given up. */
  forget(): void {
    this.micros = [];
    this.count = this.returned = 0;
  }

  get needsHead(): boolean {
    return !this.micros.length || this.micros.length < this.count;
  }

  /** Whether a gradient was not finite, so that the step passes without effect. */
  get isSkipped(): boolean {
    return this.micros.some((micro) => micro.gradient?.skipped === true);
  }

  /** The first micro-batch whose tail has not run; null: all have, or there is no tail. */
  nextTail(): number | null {
    const found = this.plan.of.has_tail ? this.micros.findIndex((micro) => micro.backward === null) : -1;
    return found < 0 ? null : found;
  }

  /** The answer that the next head backward runs on, once it is there. */
  takeGradient(): Gradient | null {
    const micro = this.micros[this.returned];
    const gradient = micro.gradient;
    micro.gradient = null;
    return gradient;
  }

  /** The micro-batch whose request this answers. With a tail only BACKWARD brings a GRADIENT. */
  answeredBy(message: MessageOf<"FORWARDED"> | Gradient): Micro | null {
    const fromTail = message.kind === "GRADIENT" && this.plan.of.has_tail;
    const asked = (micro: Micro) => (fromTail ? micro.backward : micro.forward)?.request;
    return this.micros.find((micro) => asked(micro) === message.answers) ?? null;
  }

  /** The request that the worker lacks, if it was made. */
  requestMissing(message: MessageOf<"MISSING">): Forward | Backward | null {
    const found = this.micros[message.micro ?? 0];
    if (found === undefined) return null;
    return message.missing === "FORWARD" ? found.forward : found.backward;
  }

  /** All that may have to be sent again, by id. */
  requests(): [string, AnyRequest][] {
    const made = this.micros.flatMap(({ forward, backward }) => (backward ? [forward, backward] : [forward]));
    return made.map((request) => [request.request, request]);
  }
}
