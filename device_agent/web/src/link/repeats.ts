/** Repeats bound how soon a device sends the same request again, whatever a worker answers: `device_agent/link/repeats.py`. */

import type { AnyRequest } from "../protocol/messages.ts";

/** A request is sent this often without delay, over one connection. */
const FREE = 3;
/** Then after so long, and twice as long each time, up to what `mostS` says. */
const LEAST_S = 0.5;
const FORGIVEN_S = 10;
const MOST_COUNTED = 64;
const MAX_KEYS = 4096;

export class Repeats {
  private sent = new Map<string, { times: number; lastS: number }>();

  /** `clock` is in seconds. */
  constructor(private readonly clock: () => number) {}

  /** Start again on a new connection: what was cut off is sent at once, while attempts go on counting. */
  connected(): void {
    this.sent = new Map([...this.sent].filter(([key]) => key === "OPEN"));
  }

  /** How long to wait before the request is sent. It counts as sent then. */
  waitS(request: AnyRequest): number {
    const key = keyOf(request);
    const nowS = this.clock();
    const before = this.sent.get(key) ?? { times: 0, lastS: nowS };
    this.sent.delete(key);
    const forgiven = Math.max(0, nowS - before.lastS) / FORGIVEN_S;
    const times = Math.min(MOST_COUNTED, Math.max(0, before.times - forgiven));
    const leastS = times < FREE ? 0 : Math.min(LEAST_S * 2 ** (times - FREE), mostS(request));
    const dueS = Math.max(nowS, before.lastS + leastS);
    this.sent.set(key, { times: times + 1, lastS: dueS });
    if (this.sent.size > MAX_KEYS) this.sent.delete(this.sent.keys().next().value as string);
    return dueS - nowS;
  }
}

/** The key that two sendings share where they count as the same. */
export function keyOf(request: AnyRequest): string {
  switch (request.kind) {
    case "ASK":
      return `ASK ${request.about}`;
    case "OPEN":
    case "CLOSE":
    case "GET_JOB":
      return request.kind; // a new one each time
    default:
      return request.request;
  }
}

function mostS(request: AnyRequest): number {
  if (request.kind === "OPEN") return 30;
  return request.kind === "FORWARD" || request.kind === "BACKWARD" || request.kind === "EVAL" ? 8 : 2;
}
