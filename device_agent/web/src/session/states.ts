/** The states of a device's session, and which may follow which: `device_agent/session/states.py`. */

export type State =
  | "RAISING" | "OPENING" | "RESTORING" | "PAUSED" | "HEAD" | "FORWARDING" | "TAIL" | "BACKWARDING" | "APPLYING"
  | "HANDING_IN" | "ROUND_END" | "SAVING" | "EVAL_HEAD" | "EVALUATING" | "EVAL_TAIL" | "GOING_BACK" | "CLOSING" | "ENDED";

const EDGES: Readonly<Record<State, readonly State[]>> = {
  RAISING: ["OPENING"],
  OPENING: ["RESTORING", "RAISING"],
  RESTORING: ["HEAD", "HANDING_IN", "PAUSED", "EVAL_HEAD", "CLOSING"],
  PAUSED: ["HEAD", "HANDING_IN", "SAVING"],
  HEAD: ["HEAD", "FORWARDING", "TAIL", "APPLYING", "SAVING"],
  FORWARDING: ["TAIL", "APPLYING", "SAVING"],
  TAIL: ["TAIL", "FORWARDING", "BACKWARDING", "APPLYING", "SAVING"],
  BACKWARDING: ["APPLYING", "SAVING"],
  APPLYING: ["APPLYING", "TAIL", "FORWARDING", "BACKWARDING", "SAVING", "EVAL_HEAD", "CLOSING", "HEAD", "HANDING_IN"],
  HANDING_IN: ["ROUND_END", "SAVING"],
  ROUND_END: ["APPLYING", "SAVING"],
  SAVING: ["RAISING", "EVAL_HEAD", "CLOSING", "HEAD", "HANDING_IN", "PAUSED"],
  EVAL_HEAD: ["EVALUATING", "SAVING"],
  EVALUATING: ["EVAL_TAIL", "SAVING"],
  EVAL_TAIL: ["EVAL_HEAD", "SAVING", "CLOSING", "HEAD", "HANDING_IN", "PAUSED"],
  GOING_BACK: ["RAISING"],
  CLOSING: ["SAVING", "GOING_BACK"],
  ENDED: [],
};

/** In these states the session waits for an answer. */
export const WAITING: ReadonlySet<State> = new Set<State>([
  "OPENING", "FORWARDING", "BACKWARDING", "ROUND_END", "EVALUATING", "CLOSING",
]);
/** In these the session computes a step, while requests of its other micro-batches may be on the way. */
export const COMPUTING: ReadonlySet<State> = new Set<State>(["HEAD", "TAIL", "APPLYING", "HANDING_IN"]);

/** `to`, if it may follow `state`. */
export function moved(state: State, to: State): State {
  if (!EDGES[state].includes(to)) throw new Error(`no way from ${state} to ${to}`);
  return to;
}
