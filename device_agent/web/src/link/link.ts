/**
 * The device's link to the broker: one connection after another, requests out, replies in: `device_agent/link/link.py`.
 *
 * It reconnects without end, and tells its owner by events. What was being sent when a connection went down is
 * forgotten here: the session knows what it still needs an answer to, and asks.
 */

import { AccountRefused, LinkError, SplitEasyError, Unroutable, WireError } from "../errors.ts";
import { Assembler } from "../protocol/assembler.ts";
import { payloadDigest } from "../protocol/digest.ts";
import { decode, encode } from "../protocol/envelope.ts";
import { CHUNK_BYTES, MIN_CHUNK_BYTES, toFrames } from "../protocol/frames.ts";
import { MAX_RANGES, type AnyRequest, type MessageOf } from "../protocol/messages.ts";
import type { Range } from "../protocol/ranges.ts";
import type { Event } from "../session/events.ts";
import { fullJitter } from "./backoff.ts";
import { keyOf, Repeats } from "./repeats.ts";
import { SendWindow } from "./send_window.ts";
import { LinkSpeed } from "./speed.ts";
import type { Transport } from "./transport.ts";

/** A chunk may take this long at the measured speed: a cut costs half of it, and what follows waits as long. */
const CHUNK_S = 0.125;
const FIRST_CHUNK_BYTES = 32 << 10;
/** Frames may wait for this much of the link's time, beside two round trips. */
const WINDOW_S = 0.1;
const WINDOW_FRAMES = 8;
const REPLY_SLOTS = 16;
const MAX_PARTIAL = 8;
const MAX_DIGESTS = 4096;
const SETTLED_S = 1;

interface Item {
  readonly request: AnyRequest;
  readonly skip: readonly Range[];
  /** Of an ASK the request that it is about. */
  readonly whole: AnyRequest | null;
}

export class Link {
  /** The shard that the session's requests go to; null is the front queue. */
  shard: number | null = null;
  chunkBytes = CHUNK_BYTES;
  bytesUp = 0;
  bytesDown = 0;
  isUp = false;
  readonly speed = new LinkSpeed();
  private readonly repeats: Repeats;
  private readonly assembler = new Assembler();
  private readonly held = new Map<string, Item>();
  private slot = Math.floor(Math.random() * REPLY_SLOTS);
  private transport: Transport | null = null;
  private queue = "";
  private window = this.newWindow();
  private flying: { sinceS: number; nbytes: number }[] = [];
  private sending = 0;
  private stopped = false;

  /** `clock` is in seconds; `tell` gets what a person should know while nothing can be reached. */
  constructor(
    private readonly connect: () => Promise<Transport>,
    private readonly device: string,
    private readonly emit: (event: Event) => void,
    private readonly tell: (error: SplitEasyError) => void,
    private readonly clock: () => number = () => performance.now() / 1000,
  ) {
    this.repeats = new Repeats(clock);
  }

  /** Keep a connection until `stop`. Rejects with LinkError where no further trying helps. */
  async run(): Promise<void> {
    let delays = fullJitter();
    let told = "";
    while (!this.stopped) {
      let connectedS = Infinity;
      let error: LinkError;
      try {
        const transport = await this.connect();
        connectedS = this.clock();
        error = await this.live(transport);
      } catch (failed) {
        if (!(failed instanceof LinkError)) throw failed;
        error = failed;
      }
      if (this.stopped) return;
      if (error instanceof AccountRefused || !error.retriable) throw error;
      if (this.clock() - connectedS >= SETTLED_S) delays = fullJitter();
      if (error.message !== told) this.tell(error);
      told = error.message;
      const delay = delays.next().value * 1000;
      await new Promise((over) => setTimeout(over, delay));
    }
  }

  stop(): void {
    this.stopped = true;
    this.transport?.close();
  }

  /** The payload of a frame of the next request: what the link carries in `CHUNK_S`, at most as set. */
  get frameBytes(): number {
    const rate = this.speed.slower;
    return Math.min(this.chunkBytes, rate === null ? FIRST_CHUNK_BYTES : Math.max(MIN_CHUNK_BYTES, Math.floor(rate * CHUNK_S)));
  }

  /** Send without the bytes in `skip`. Emits Sent or NotSent, or nothing where the link goes down first. */
  send(request: AnyRequest, skip: readonly Range[] = [], whole: AnyRequest | null = null): void {
    if (!this.isUp) return;
    const item = { request, skip, whole };
    const key = keyOf(request);
    const replaced = this.held.get(key);
    if (replaced !== undefined) {
      this.held.set(key, item); // the newest of them is sent
      if (replaced.request.request !== request.request) this.emit({ type: "Sent", request: replaced.request.request });
      return;
    }
    const waitS = this.repeats.waitS(request);
    if (waitS <= 0) {
      this.begin(item);
      return;
    }
    const transport = this.transport;
    this.held.set(key, item);
    setTimeout(() => {
      const due = this.transport === transport ? this.held.get(key) : undefined;
      if (due === undefined) return;
      this.held.delete(key);
      this.begin(due);
    }, waitS * 1000);
  }

  /** Use the connection until it ends; why it did. */
  private async live(transport: Transport): Promise<LinkError> {
    this.transport = transport;
    this.slot = (this.slot + 1) % REPLY_SLOTS;
    this.queue = `spliteasy.reply.${this.device}.${this.slot.toString(16).padStart(16, "0")}`;
    try {
      if (this.stopped) transport.close();
      await transport.declare(this.queue);
      await transport.subscribe(this.queue, (frame) => this.read(frame));
      this.isUp = true;
      this.window = this.newWindow();
      this.speed.connected();
      this.repeats.connected();
      this.emit({ type: "LinkUp" });
      return await transport.lost;
    } catch (error) {
      if (error instanceof LinkError) return error;
      throw error;
    } finally {
      transport.close();
      this.ended();
    }
  }

  private ended(): void {
    const [first] = this.flying;
    if (first !== undefined) this.speed.gaveUp(first.nbytes, this.clock() - first.sinceS);
    this.flying = [];
    this.sending = 0;
    this.held.clear();
    this.transport = null;
    if (this.isUp) this.emit({ type: "LinkDown" });
    this.isUp = false;
  }

  private read(frame: Uint8Array): void {
    this.bytesDown += frame.length;
    try {
      const outcome = this.assembler.add(frame);
      this.speed.arrived(frame.length, this.clock(), outcome !== null);
      if (outcome === null) this.emit({ type: "Arriving" });
      else this.emit({ type: "Received", message: decode(outcome.body) });
    } catch (error) {
      if (!(error instanceof WireError)) throw error; // a reply that can't be read is dropped: it will be asked for again
    }
  }

  private begin(item: Item): void {
    const { request, whole } = item;
    const asked = request.kind === "ASK" ? this.asking(request, whole) : request;
    const transport = this.transport;
    if (transport !== null) void this.publish(transport, asked, item.skip);
  }

  private async publish(transport: Transport, request: AnyRequest, skip: readonly Range[]): Promise<void> {
    const shard = request.kind === "GET_JOB" || this.shard === null ? "front" : String(this.shard).padStart(2, "0");
    const key = `s.${this.device}.${shard}`;
    const urgency = request.kind === "FORWARD" ? 1 : 0;
    const { window, queue } = this;
    const ticket = window.ticket();
    const beganS = this.clock();
    const first = this.sending === 0;
    this.sending += 1;
    let total = 0;
    const confirms: Promise<void>[] = [];
    try {
      for (const frame of toFrames(encode(request), request.request, this.frameBytes, skip)) {
        await window.acquire(frame.length, urgency, ticket);
        if (this.transport !== transport) return;
        this.flying.push({ sinceS: this.clock(), nbytes: frame.length });
        const confirmed = transport.publish(key, queue, frame).finally(() => window.release(frame.length));
        confirms.push(confirmed.then(() => void (total += this.confirmed(frame.length))));
        confirms[confirms.length - 1].catch(() => undefined); // it is looked at below
      }
      await Promise.all(confirms);
      if (this.transport !== transport) return;
      if (first) this.speed.sent(total, this.clock() - beganS); // others share the link with those before them
      this.emit({ type: "Sent", request: request.request });
    } catch (error) {
      if (!(error instanceof LinkError)) throw error;
      if (!(error instanceof Unroutable) || this.transport !== transport) return;
      this.flying = [];
      this.emit({ type: "NotSent", request: request.request });
    } finally {
      if (this.transport === transport) this.sending -= 1;
    }
  }

  /** One more frame has arrived: only now it is the next one's turn. */
  private confirmed(nbytes: number): number {
    this.flying.shift();
    if (this.flying.length) this.flying[0].sinceS = this.clock();
    this.bytesUp += nbytes;
    return nbytes;
  }

  /** Say which bytes of replies have come, and of what the request consists that may have come in part. */
  private asking(ask: MessageOf<"ASK">, whole: AnyRequest | null): MessageOf<"ASK"> {
    const partial = this.assembler.unfinished().slice(-MAX_PARTIAL);
    const partial_ranges = partial.map((id) => this.assembler.held(id).slice(0, MAX_RANGES));
    if (whole === null) return { ...ask, partial, partial_ranges };
    const body = encode(whole);
    const block_bytes = this.frameBytes;
    const blocks = Math.min(MAX_DIGESTS, Math.ceil(body.length / block_bytes));
    const digests = Array.from({ length: blocks }, (_, at) =>
      payloadDigest(body.subarray(at * block_bytes, (at + 1) * block_bytes)),
    );
    return { ...ask, partial, partial_ranges, total: body.length, block_bytes, digests };
  }

  private newWindow(): SendWindow {
    return new SendWindow(WINDOW_FRAMES, () => {
      const { up, rttS } = this.speed;
      return up === null || rttS === null ? Infinity : up * (2 * rttS + WINDOW_S);
    });
  }
}
