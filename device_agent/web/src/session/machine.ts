/** A device's session: the protocol as a state machine, without I/O: `device_agent/session/machine.py`. */

import { RemoteError, StateError, type SplitEasyError } from "../errors.ts";
import { digestOf } from "../protocol/digest.ts";
import { newNonce } from "../protocol/hex.ts";
import {
  MAX_HELD_STEPS, type AnyMessage, type AnyRequest, type AttemptRef, type MessageOf,
} from "../protocol/messages.ts";
import { carried, NOTHING, packedIn } from "../protocol/packed.ts";
import { note, type Action, type Event, type HandInDone } from "./events.ts";
import { OpenStep, type Micro } from "./open_step.ts";
import { Outbox } from "./outbox.ts";
import { SessionPlan, type Settings } from "./plan.ts";
import { answersOf, attemptOf, isReceipt, isReply, isSessionReply } from "./replies.ts";
import { COMPUTING, moved, WAITING, type State } from "./states.ts";

export class DeviceSession {
  state: State = "RAISING";
  /** The last step that this device has applied. */
  step = 0;
  durableStep = 0;
  /** Steps that were applied in this run; those of a rewind count again. */
  taken = 0;
  /** The digest of a newer version of the job, where the worker knows of one. */
  newest: string | null = null;
  readonly plan: SessionPlan;
  private attempt: AttemptRef | null = null;
  private readonly open: OpenStep;
  private readonly outbox: Outbox;
  /** The hand-in at the end of a round, while its mean is waited for. */
  private ready: MessageOf<"READY"> | null = null;
  private stopping = false;
  /** Why no step may begin now. */
  private hold: string | null = null;
  private reopening = false;
  private checkpointAsked = false;
  private evalIndex = 0;
  /** The step of the last evaluation. */
  private evaluatedStep = -1;
  /** The training has ended at this step, by its evaluations. */
  private endedEarly = false;
  /** The step whose state is kept as the best so far; 0: none. */
  private best = 0;
  private takeover: boolean;
  private restart: boolean;

  constructor(
    settings: Settings,
    public held: readonly number[],
    private readonly newId: () => string = newNonce,
  ) {
    this.plan = new SessionPlan(settings);
    this.open = new OpenStep(this.plan);
    this.outbox = new Outbox(this.plan, newId);
    this.takeover = settings.takeover;
    this.restart = settings.restart;
  }

  /** The first actions. */
  start(): Action[] {
    return [{ type: "RaiseAttempt", above: 0 }];
  }

  /** Take one event. An event that nobody waits for any more changes nothing. */
  handle(event: Event): Action[] {
    if (this.state === "ENDED") return [];
    switch (event.type) {
      case "LinkUp":
        return this.outbox.linkUp();
      case "LinkDown":
        return this.outbox.linkDown();
      case "Sent":
        return this.outbox.sent(event.request);
      case "Arriving":
        return this.outbox.awaitReply();
      case "NotSent":
        return this.outbox.notSent(event.request);
      case "Fired":
        if (event.timer === "STOP") return this.inStep ? this.stopNow() : [];
        return event.timer === "REPLY" ? this.outbox.noReply() : this.outbox.nudge();
      case "StopAsked":
        return this.stop();
      case "Hold":
        return this.holdBack(event.why);
      case "Go":
        this.hold = null;
        return this.state === "PAUSED" ? this.beginStep() : [];
      case "Received":
        return this.received(event.message);
      default:
        return this.computed(event);
    }
  }

  private holdBack(why: string): Action[] {
    const changed = why !== this.hold;
    this.hold = why;
    return changed && this.state === "PAUSED" ? [note(`paused: ${why}`)] : [];
  }

  // computations that ended

  private computed(event: Event): Action[] {
    const ended = `${this.state} ${event.type}`;
    switch (ended) {
      case "HEAD HeadDone":
      case "HANDING_IN HandInDone":
      case "TAIL TailDone":
      case "APPLYING HeadBackwardDone":
      case "EVAL_HEAD EvalHeadDone":
        if (this.stopping || this.reopening) return this.stopNow();
    }
    if (ended === "RAISING AttemptRaised" && event.type === "AttemptRaised") return this.beginAttempt(event.attempt);
    if (ended === "RESTORING Restored" && event.type === "Restored") {
      this.held = event.held;
      this.evaluatedStep = event.evaluated ? this.step : -1;
      this.endedEarly = event.finished === true;
      this.best = event.best ?? 0;
      return this.next(true);
    }
    if (ended === "HEAD HeadDone" && event.type === "HeadDone") {
      const best = this.step > 0 && this.best === this.step;
      const about = { attempt: this.live(), step: this.step + 1, oldest: Math.min(...this.held), best, request: this.newId() };
      return [...this.outbox.submit(this.open.forward(event, about)), ...this.goOn()];
    }
    if (ended === "TAIL TailDone" && event.type === "TailDone") {
      const about = { attempt: this.live(), step: this.step + 1, request: this.newId() };
      return [...this.outbox.submit(this.open.backward(event, about)), ...this.goOn()];
    }
    if (ended === "HANDING_IN HandInDone" && event.type === "HandInDone") return this.handIn(event);
    if (ended === "APPLYING HeadBackwardDone") {
      this.open.returned += 1;
      return this.goOn();
    }
    if (ended === "APPLYING Applied") return this.applied();
    if (ended === "SAVING Saved" && event.type === "Saved") {
      this.held = event.held;
      this.checkpointAsked = false;
      return this.afterSaving();
    }
    if (ended === "EVAL_HEAD EvalHeadDone" && event.type === "EvalHeadDone") {
      const request = { kind: "EVAL", ...this.identity(), step: this.step, samples: event.samples } as const;
      return this.request("EVALUATING", { ...request, ...carried(event.values) });
    }
    if (ended === "EVAL_TAIL EvalTailDone" && event.type === "EvalTailDone") return this.evaluated(event);
    if (ended === "GOING_BACK WentBack" && event.type === "WentBack") return this.wentBack(event.held);
    throw new Error(`${event.type} while ${this.state}`);
  }

  private beginAttempt(attempt: AttemptRef): Action[] {
    this.attempt = attempt;
    this.outbox.fence = 0;
    const { digest, agent, total_steps, previous } = this.plan.of;
    const held = this.held.slice(-MAX_HELD_STEPS);
    const restart = this.restart;
    return this.request("OPENING", {
      kind: "OPEN", ...this.identity(), digest, held, agent, total_steps, restart, previous, values: [],
    });
  }

  private applied(): Action[] {
    this.step += 1;
    if (!this.plan.isRoundEnd(this.step)) this.taken += 1;
    this.outbox.begunBefore = false;
    this.open.forget();
    return this.next(false);
  }

  private handIn(done: HandInDone): Action[] {
    this.ready = {
      kind: "READY",
      ...this.identity(),
      step: this.step + 1,
      round: done.round,
      last: this.step + 1 >= this.plan.of.total_steps,
      names: Object.keys(done.ends),
      values: Object.values(done.ends),
      fleet_key: done.fleet_key,
      samples: done.samples,
      nonce: done.nonce,
      whole: done.whole,
      accuracy: done.accuracy ?? null,
      oldest_checkpoint: Math.min(...this.held),
    };
    return this.request("ROUND_END", this.ready);
  }

  private evaluated({ more, finished, best }: { readonly more: boolean; readonly finished?: boolean; readonly best?: number }): Action[] {
    if (!more || this.stopping) {
      this.evaluatedStep = this.step;
      this.endedEarly = finished === true;
      this.best = best ?? 0;
      // The best step's checkpoint is the one that the training may end with.
      return this.best === this.step ? this.save() : this.next(!this.plan.of.stops_early);
    }
    this.evalIndex += 1;
    this.move("EVAL_HEAD");
    return [{ type: "EvalHead", index: this.evalIndex }];
  }

  private wentBack(held: readonly number[]): Action[] {
    this.held = held;
    if (this.stopping) return this.end(false);
    this.move("RAISING");
    return [{ type: "RaiseAttempt", above: this.live().number }];
  }

  private closed(): Action[] {
    const answered = this.allAnswered();
    if (this.best === 0 || this.best === this.step) return [...answered, ...this.end(true)];
    // Only now: what the worker keeps of the best step can't be lost any more.
    this.move("GOING_BACK");
    return [...answered, { type: "GoBack", step: this.best }];
  }

  // what comes next

  /** The actions that follow when the device's own state is that of `step`, whole. */
  private next(saved: boolean): Action[] {
    const { total_steps, eval_batches, stops_early } = this.plan.of;
    const last = this.step >= total_steps || this.endedEarly;
    const due = this.plan.evaluatesAfter(this.step) && eval_batches > 0 && this.evaluatedStep !== this.step;
    if (due && stops_early && !this.stopping) return this.beginEvaluation();
    const leaving = last || this.stopping || this.hold !== null;
    if (!saved && (this.plan.keeps(this.step) || leaving || this.checkpointAsked)) return this.save();
    if (this.stopping && !last) return this.end(false);
    const justRestored = this.state === "RESTORING" && this.step < total_steps;
    if (due && !justRestored) return this.beginEvaluation();
    if (!last) return this.beginStep();
    return this.request("CLOSING", { kind: "CLOSE", ...this.identity(), step: this.step, values: [] });
  }

  private beginEvaluation(): Action[] {
    this.evalIndex = 0;
    this.move("EVAL_HEAD");
    return [{ type: "EvalHead", index: 0 }];
  }

  private beginStep(): Action[] {
    if (this.hold !== null) {
      this.move("PAUSED");
      return [note(`paused: ${this.hold}`)];
    }
    const resumed = this.state === "PAUSED" ? [note("going on")] : [];
    if (!this.plan.isRoundEnd(this.step + 1)) return [...resumed, ...this.goOn()];
    this.move("HANDING_IN");
    return [...resumed, { type: "HandIn" }];
  }

  /** Begin the step's next computation, or wait for what it needs. Heads come first: link and worker have work early. */
  private goOn(): Action[] {
    const step = this.open;
    if (step.isSkipped) {
      this.move("APPLYING");
      return [...this.allAnswered(), { type: "Apply", gradients: NOTHING, loss: null, skipped: true }];
    }
    if (step.needsHead) {
      this.move("HEAD");
      return [{ type: "RunHead", step: this.step + 1, micro: step.micros.length }];
    }
    const tail = step.nextTail();
    const waiting = tail === null ? null : step.micros[tail];
    if (tail !== null && waiting !== null && waiting.outputs !== null) {
      const values = waiting.outputs;
      waiting.outputs = null;
      waiting.outputsDigest = digestOf(values.values);
      this.move("TAIL");
      return [{ type: "RunTail", values, micro: tail }];
    }
    const gradient = step.takeGradient();
    if (gradient !== null) {
      this.move("APPLYING");
      const its = { gradients: packedIn(gradient), loss: gradient.loss ?? null };
      const last = step.returned === step.count - 1;
      return [last ? { type: "Apply", ...its, skipped: false } : { type: "RunHeadBackward", ...its }];
    }
    const to = this.plan.of.has_tail && tail === null ? "BACKWARDING" : "FORWARDING";
    if (this.state !== to) this.move(to);
    return [];
  }

  private afterSaving(): Action[] {
    if (this.stopping) return this.end(false);
    if (this.reopening) {
      this.reopening = false;
      this.move("RAISING");
      return [{ type: "RaiseAttempt", above: this.live().number }];
    }
    return this.next(true);
  }

  // messages

  private received(message: AnyMessage): Action[] {
    if (this.isFromAnOlderOwner(message)) return this.doubtTheStore();
    if (!this.isOurs(message)) return [];
    const taken = this.take(message);
    const computes = message.kind === "FORWARDED" || message.kind === "GRADIENT";
    return computes ? [...taken, ...this.outbox.askANewOwner(message.fence)] : taken;
  }

  private take(message: AnyMessage): Action[] {
    const awaited = this.outbox.pending.size > 0;
    switch (message.kind) {
      case "OPENED":
        return this.state === "OPENING" ? this.opened(message) : [];
      case "FORWARDED": {
        const micro = this.awaiting(message);
        if (micro === null) return [];
        micro.outputs = packedIn(message);
        return this.arrived(message.answers);
      }
      case "GRADIENT": {
        const micro = this.awaiting(message);
        if (micro === null) return [];
        this.durableStep = Math.max(this.durableStep, message.durable_step);
        this.checkpointAsked ||= message.checkpoint === true;
        micro.gradient = message;
        return this.arrived(message.answers);
      }
      case "MEAN":
        if (this.state !== "ROUND_END" || !this.outbox.pending.has(message.answers)) return [];
        this.durableStep = Math.max(this.durableStep, message.durable_step);
        this.move("APPLYING");
        this.ready = null;
        return [...this.allAnswered(), { type: "TakeMean", mean: message }];
      case "MISSING":
        if (message.missing === "READY" && this.state === "ROUND_END") return this.outbox.sendMissing(this.ready, message);
        return message.step === this.step + 1 ? this.outbox.sendMissing(this.open.requestMissing(message), message) : [];
      case "WORKING":
        return this.outbox.awaitReply();
      case "EVALUATED":
        if (this.state !== "EVALUATING" || message.step !== this.step) return [];
        this.move("EVAL_TAIL");
        return [
          ...this.allAnswered(),
          { type: "EvalTail", index: this.evalIndex, step: this.step, values: packedIn(message) },
        ];
      case "CLOSED":
        return this.state === "CLOSING" ? this.closed() : [];
      case "HAVE": {
        const request = awaited ? this.kept().get(message.answers) : undefined;
        return request === undefined ? [] : this.outbox.send(request, message.ranges);
      }
      case "BUSY":
        return awaited ? this.outbox.retryLater(message.retry_after_s, message.reason ?? "the worker's budget is full") : [];
      case "REOPEN":
        return awaited && this.state !== "OPENING" ? [note(`opening again: ${message.reason}`), ...this.reopen()] : [];
      case "SUPERSEDED":
        return this.superseded(message.newest);
      case "ERROR":
        return awaited ? this.refused(message) : [];
      default:
        return [];
    }
  }

  private opened(message: MessageOf<"OPENED">): Action[] {
    this.step = message.step;
    this.durableStep = message.durable_step;
    this.newest = message.newest ?? null;
    this.takeover = this.restart = false;
    this.outbox.begunBefore = message.attempt.number > 1;
    this.move("RESTORING");
    const told = this.newest === null ? [] : [note(`a newer version was submitted: ${this.newest.slice(0, 12)}`)];
    return [...told, ...this.allAnswered(), { type: "Restore", step: message.step }];
  }

  /** Whether a message is a reply to this attempt, and to what it has sent. */
  private isOurs(message: AnyMessage): boolean {
    if (!isReply(message)) return false;
    const answersUs = this.kept().has(answersOf(message)) || this.outbox.asked(answersOf(message));
    if (isReceipt(message)) return answersUs;
    if (message.session !== this.plan.of.session) return false;
    const attempt = attemptOf(message);
    if (attempt === null) return answersUs;
    if (!this.isLive(attempt)) return false;
    if (isSessionReply(message)) this.outbox.fence = message.fence;
    return true;
  }

  private isFromAnOlderOwner(message: AnyMessage): boolean {
    return (
      isSessionReply(message) && message.session === this.plan.of.session &&
      this.isLive(message.attempt) && message.fence < this.outbox.fence
    );
  }

  /** A reply of an older owner is a zombie's; but if it answers what was asked again, the store has gone back. */
  private doubtTheStore(): Action[] {
    if (!this.outbox.nudged || this.state === "OPENING" || !this.outbox.pending.size) return [];
    return [note("opening again: the store went back"), ...this.reopen()];
  }

  /** The micro-batch that waits for this. */
  private awaiting(message: MessageOf<"FORWARDED"> | MessageOf<"GRADIENT">): Micro | null {
    return this.outbox.pending.has(message.answers) ? this.open.answeredBy(message) : null;
  }

  /** Begin the computation whose input has come, now or after the one that is running. */
  private arrived(answers: string): Action[] {
    const answered = this.outbox.answered(answers);
    return COMPUTING.has(this.state) ? answered : [...answered, ...this.goOn()];
  }

  /** The requests that are pending or can be sent again, by id. */
  private kept(): Map<string, AnyRequest> {
    return new Map([...this.open.requests(), ...this.outbox.pending]);
  }

  private superseded(newest: number): Action[] {
    if (this.state === "OPENING" && (this.takeover || this.restart)) {
      this.move("RAISING");
      return [...this.allAnswered(), { type: "RaiseAttempt", above: newest }];
    }
    const what = `the store knows attempt ${newest} of ${this.plan.of.session}, newer than this one`;
    return this.fail(new StateError(what, "another agent runs as this device, or its state is an old or a new one"));
  }

  private refused(message: MessageOf<"ERROR">): Action[] {
    if (message.retriable) return this.outbox.retryLater(this.plan.of.retry_s, message.message);
    const hint = message.hint ?? null;
    if (message.code === "no-common-step" || message.code === "other-job") {
      return this.fail(new StateError(message.message, hint));
    }
    return this.fail(new RemoteError(message.message, message.code, hint));
  }

  private identity(): { session: string; request: string; attempt: AttemptRef } {
    return { session: this.plan.of.session, request: this.newId(), attempt: this.live() };
  }

  /** Go to `state` and wait there for the answer to `request`. */
  private request(state: State, request: AnyRequest): Action[] {
    this.move(state);
    return this.outbox.submit(request);
  }

  private allAnswered(): Action[] {
    return this.outbox.allAnswered(this.state === "CLOSING");
  }

  // going back and stopping

  private save(): Action[] {
    this.move("SAVING");
    return [{ type: "Save", step: this.step, durable_step: this.durableStep, asked: this.checkpointAsked }];
  }

  /** Keep what this side has (the state after `step`), then begin a new attempt from there. */
  private reopen(): Action[] {
    this.reopening = true;
    if (!COMPUTING.has(this.state)) return this.stopNow();
    this.open.forget(); // once that has ended
    return this.allAnswered();
  }

  private stop(): Action[] {
    this.stopping = true;
    if (this.state === "OPENING" || this.state === "RAISING" || this.state === "RESTORING") return this.end(false);
    if (this.inStep && this.outbox.online) return [{ type: "Arm", timer: "STOP", delay_s: this.plan.of.stop_grace_s }];
    return WAITING.has(this.state) || this.state === "PAUSED" ? this.stopNow() : [];
  }

  /** Leave with a checkpoint of the last whole step; an unfinished one is forgotten. */
  private stopNow(): Action[] {
    this.open.forget();
    return [...this.allAnswered(), ...this.save()];
  }

  private end(done: boolean): Action[] {
    this.state = "ENDED";
    return [{ type: "Finish", done }];
  }

  private fail(error: SplitEasyError): Action[] {
    this.state = "ENDED";
    return [{ type: "Fail", error }];
  }

  private get inStep(): boolean {
    return this.state === "FORWARDING" || this.state === "BACKWARDING";
  }

  private live(): AttemptRef {
    if (this.attempt === null) throw new Error("no attempt was raised");
    return this.attempt;
  }

  private isLive(attempt: AttemptRef): boolean {
    return attempt.number === this.attempt?.number && attempt.nonce === this.attempt.nonce;
  }

  private move(to: State): void {
    this.state = moved(this.state, to);
  }
}
