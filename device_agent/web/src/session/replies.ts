/** The kinds of replies, as a device tells them apart. */

import type { AnyMessage, AnyReply, AttemptRef, MessageOf } from "../protocol/messages.ts";

type Kind = AnyMessage["kind"];

const RECEIPTS: ReadonlySet<Kind> = new Set<Kind>(["HAVE", "BUSY"]);
const REQUESTS: ReadonlySet<Kind> = new Set<Kind>([
  "GET_JOB", "OPEN", "FORWARD", "BACKWARD", "READY", "EVAL", "ASK", "GET_BODY", "CLOSE",
]);
const SESSION_REPLIES: ReadonlySet<Kind> = new Set<Kind>([
  "OPENED", "FORWARDED", "GRADIENT", "MEAN", "EVALUATED", "MISSING", "BODY", "CLOSED",
]);

type Receipt = MessageOf<"HAVE"> | MessageOf<"BUSY">;
type SessionReply = MessageOf<
  "OPENED" | "FORWARDED" | "GRADIENT" | "MEAN" | "EVALUATED" | "MISSING" | "BODY" | "CLOSED"
>;

export function isReply(message: AnyMessage): message is AnyReply {
  return !REQUESTS.has(message.kind);
}

/** A worker's word about a request's bytes. */
export function isReceipt(message: AnyMessage): message is Receipt {
  return RECEIPTS.has(message.kind);
}

/** A reply within an attempt, by the owner with its fence. */
export function isSessionReply(message: AnyMessage): message is SessionReply {
  return SESSION_REPLIES.has(message.kind);
}

export function answersOf(message: AnyReply): string {
  return message.answers;
}

/** The attempt that a reply is to; null for one that names none. */
export function attemptOf(message: AnyReply): AttemptRef | null {
  return "attempt" in message ? message.attempt : null;
}
