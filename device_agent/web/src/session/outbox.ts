/** The requests of a device that an answer is awaited to: sent, asked about, sent again. Without I/O. */

import type { AnyRequest, MessageOf } from "../protocol/messages.ts";
import type { Range } from "../protocol/ranges.ts";
import { Tensor } from "../protocol/tensor.ts";
import { arm, disarm, note, type Action } from "./events.ts";
import type { SessionPlan } from "./plan.ts";

const LEAST_RETRY_S = 0.05;
/** This many reasons to wait are told for one request: a worker must not fill a log with them. */
const MAX_REASONS = 8;

type StepRequest = MessageOf<"FORWARD"> | MessageOf<"BACKWARD">;

function isStepRequest(request: AnyRequest | undefined): request is StepRequest {
  return request?.kind === "FORWARD" || request?.kind === "BACKWARD";
}

export class Outbox {
  /** The requests that an answer is awaited to, by id. */
  readonly pending = new Map<string, AnyRequest>();
  online = false;
  /** The fence of the newest owner that has answered under this attempt. */
  fence = 0;
  /** An agent before this one may have sent requests of the open step. */
  begunBefore = false;
  /** A pending request was asked about, or sent again. */
  nudged = false;
  /** The requests that the link was given and has not sent yet. */
  private readonly sending = new Set<string>();
  /** Requests that may have arrived, and the fence of the newest owner that they can have reached. */
  private readonly reached = new Map<string, number>();
  private readonly asks = new Set<string>();
  private notesSilence = 0;
  private waitsFor: string | null = null;
  private notesWaiting = 0;

  constructor(
    private readonly plan: SessionPlan,
    private readonly newId: () => string,
  ) {}

  // what becomes of the link

  linkUp(): Action[] {
    this.online = true;
    return this.nudge();
  }

  linkDown(): Action[] {
    this.online = false;
    this.sending.clear();
    return [disarm("REPLY"), disarm("RETRY")];
  }

  /** The broker has all of it. */
  sent(request: string): Action[] {
    this.sending.delete(request);
    return this.awaitReply();
  }

  /** No queue took the request. */
  notSent(request: string): Action[] {
    this.sending.delete(request);
    this.reached.delete(request);
    return this.retryLater(this.plan.of.retry_s, "waiting for a worker to serve this broker");
  }

  // sending

  /** Send a request that is to be answered. */
  submit(request: AnyRequest): Action[] {
    if (!this.pending.size) this.nudged = false;
    this.pending.set(request.request, request);
    return this.send(this.question(request));
  }

  /** Send a request without the bytes in `skip`, which the worker has. */
  send(request: AnyRequest, skip: readonly Range[] = []): Action[] {
    if (!this.online) return [];
    this.sending.add(request.request);
    this.reached.set(request.request, this.fence);
    const about = request.kind === "ASK" ? this.pending.get(request.about) : undefined;
    const whole = isStepRequest(about) && this.mayBeThereInPart(about) ? about : null;
    return [disarm("REPLY"), { type: "Send", message: request, skip, whole }];
  }

  /** Send what the worker lacks, unless it is on its way; null: there is no such request yet. */
  sendMissing(request: AnyRequest | null, message: MessageOf<"MISSING">): Action[] {
    if (this.reached.has(message.answers)) this.reached.set(message.answers, message.fence);
    return request !== null && !this.sending.has(request.request) ? this.send(request) : [];
  }

  /** Find out what became of the pending requests: ASK where tensors may be there already. */
  nudge(): Action[] {
    if (!this.online || !this.pending.size) return [];
    this.nudged = true;
    return this.askAbout(this.unsent());
  }

  /** A new owner computes the step: ask about what else is pending, if only an owner before it had that. */
  askANewOwner(fence: number): Action[] {
    if (!this.online) return [];
    return this.askAbout(this.unsent().filter((key) => (this.reached.get(key) ?? fence) < fence));
  }

  private unsent(): string[] {
    return [...this.pending.keys()].filter((key) => !this.sending.has(key));
  }

  private askAbout(keys: readonly string[]): Action[] {
    return keys.flatMap((key) => this.send(this.question(this.pending.get(key) as AnyRequest)));
  }

  /** What to send about a pending request: an ASK, or the request itself. */
  private question(request: AnyRequest): AnyRequest {
    if (request.kind !== "FORWARD" && request.kind !== "BACKWARD" && request.kind !== "READY") return request;
    if (!this.reached.has(request.request) && !this.mayBeThereInPart(request)) return request;
    const ask: MessageOf<"ASK"> = {
      kind: "ASK",
      session: request.session,
      request: this.newId(),
      attempt: request.attempt,
      step: request.step,
      about: request.request,
      about_kind: request.kind,
      micro: request.kind === "READY" ? 0 : (request.micro ?? 0),
      forward: request.kind === "BACKWARD" ? request.forward : request.request,
      values: [],
    };
    this.asks.add(ask.request);
    this.reached.set(request.request, this.fence);
    return ask;
  }

  /** Whether an agent before this one may have sent the same values, and they are worth asking for. */
  private mayBeThereInPart(request: StepRequest | MessageOf<"READY">): boolean {
    if (request.kind === "READY") return false;
    const nbytes = request.values.reduce<number>((sum, v) => sum + (v instanceof Tensor ? v.bytes.length : 0), 0);
    return this.begunBefore && nbytes > this.plan.of.ask_above_bytes;
  }

  // waiting

  /** Whether that is an ASK of the pending requests. */
  asked(request: string): boolean {
    return this.asks.has(request);
  }

  /** The deadline of what is pending runs from when all was sent, or something came. */
  awaitReply(): Action[] {
    return this.pending.size && !this.sending.size ? [arm("REPLY", this.plan.of.reply_timeout_s)] : [];
  }

  /** The deadline has passed. */
  noReply(): Action[] {
    if (!this.pending.size) return [];
    this.notesSilence += 1;
    return [...(this.notesSilence === 2 ? [note("no answer yet: is a worker running?")] : []), ...this.nudge()];
  }

  /** A pending request was answered. */
  answered(request: string): Action[] {
    this.pending.delete(request);
    this.notesSilence = 0;
    return this.pending.size ? this.awaitReply() : this.allAnswered();
  }

  /** Nothing is pending any more. `quiet`: nothing follows that a person would wait for. */
  allAnswered(quiet = false): Action[] {
    this.pending.clear();
    this.reached.clear();
    this.asks.clear();
    this.notesSilence = 0;
    const goesOn = this.waitsFor !== null && !quiet ? [note("going on")] : [];
    this.waitsFor = null;
    this.notesWaiting = 0;
    return [...goesOn, disarm("REPLY"), disarm("RETRY")];
  }

  /** Wait before asking again. A reason that stays is told once, and few reasons are. */
  retryLater(delay_s: number, why: string): Action[] {
    if (why !== this.waitsFor) this.notesWaiting += 1;
    const told = why === this.waitsFor || this.notesWaiting > MAX_REASONS ? [] : [note(why)];
    this.waitsFor = why;
    return [...told, disarm("REPLY"), arm("RETRY", Math.max(delay_s, LEAST_RETRY_S))];
  }
}
