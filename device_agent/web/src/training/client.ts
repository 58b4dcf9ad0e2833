/** Single requests of a device: for its job, and for predictions: `spliteasy_cli/support/session_client.py`. */

import { LinkError, RemoteError, StateError } from "../errors.ts";
import type { Link } from "../link/link.ts";
import type { AnyMessage, AnyRequest, MessageOf } from "../protocol/messages.ts";
import type { Event } from "../session/events.ts";
import type { Queue } from "./queue.ts";

const ASK_AGAIN_MS = 10_000;
const RETRY_MS = 1_000;

export class Client {
  constructor(
    private readonly link: Link,
    private readonly events: Queue<Event>,
    private readonly tell: (text: string) => void,
  ) {}

  /** The reply, sending the request again as often as it takes. Rejects with LinkError after `withinMs`. */
  async ask<K extends AnyMessage["kind"]>(request: AnyRequest, kind: K, withinMs = Infinity): Promise<MessageOf<K>> {
    const untilMs = performance.now() + withinMs;
    this.link.send(request);
    while (performance.now() < untilMs) {
      const event = await this.events.next(Math.min(ASK_AGAIN_MS, untilMs - performance.now()));
      if (event === null) {
        if (this.link.isUp) this.tell("no answer yet: is a worker running?");
        this.link.send(request);
      } else if (event.type === "LinkUp") {
        this.link.send(request);
      } else if (event.type === "NotSent" && event.request === request.request) {
        this.tell("waiting for a worker to serve this broker");
        this.later(request, RETRY_MS);
      } else if (event.type === "Failed") {
        throw event.error;
      } else if (event.type === "Received" && "answers" in event.message && event.message.answers === request.request) {
        if (event.message.kind === kind) return event.message as MessageOf<K>;
        this.react(request, event.message);
      }
    }
    throw new LinkError("no answer came", "the server may be busy or stopped; try again later");
  }

  private react(request: AnyRequest, reply: AnyMessage): void {
    if (reply.kind === "ERROR" && !reply.retriable) throw new RemoteError(reply.message, reply.code, reply.hint ?? null);
    if (reply.kind === "SUPERSEDED" || reply.kind === "REOPEN") {
      throw new StateError("this phone and the server are not at the same step", "load the page again, then try again");
    }
    this.later(request, reply.kind === "BUSY" ? reply.retry_after_s * 1000 : RETRY_MS);
  }

  private later(request: AnyRequest, ms: number): void {
    setTimeout(() => this.link.send(request), Math.max(ms, 50));
  }
}
