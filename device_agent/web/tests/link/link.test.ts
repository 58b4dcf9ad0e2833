/** The link over a broker in memory: what is sent comes, what is lost is told, and what comes is put together. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { LinkError, Unroutable, WireError } from "../../src/errors.ts";
import { Link } from "../../src/link/link.ts";
import { encodePacket, errorOf, Kind, parsePacket } from "../../src/link/packets.ts";
import { Repeats } from "../../src/link/repeats.ts";
import { SendWindow } from "../../src/link/send_window.ts";
import { LinkSpeed } from "../../src/link/speed.ts";
import type { Transport } from "../../src/link/transport.ts";
import { Assembler } from "../../src/protocol/assembler.ts";
import { decode, encode } from "../../src/protocol/envelope.ts";
import { toFrames } from "../../src/protocol/frames.ts";
import type { AnyMessage, AnyRequest } from "../../src/protocol/messages.ts";
import { Tensor } from "../../src/protocol/tensor.ts";
import type { Event } from "../../src/session/events.ts";

const ATTEMPT = { number: 1, nonce: "00000000000000aa" };
const FORWARD: AnyRequest = {
  kind: "FORWARD", session: "digits.phone-1", request: "0123456789abcdef", attempt: ATTEMPT, step: 1, samples: 2,
  oldest_checkpoint: 0, values: [Tensor.float32([40_000], new Float32Array(40_000).fill(1.5))],
};
const WORKING: AnyMessage = { kind: "WORKING", session: "digits.phone-1", answers: FORWARD.request, attempt: ATTEMPT, step: 1, values: [] };

/** One connection to a broker that hands a device's frames to `worker`. */
class Broker implements Transport {
  readonly lost: Promise<LinkError>;
  lose!: (error: LinkError) => void;
  keys: string[] = [];
  reader: (frame: Uint8Array) => void = () => undefined;
  refuses: LinkError | null = null;

  constructor(private readonly worker: (frame: Uint8Array, broker: Broker) => void) {
    this.lost = new Promise((lose) => (this.lose = lose));
  }

  async declare(): Promise<void> {}

  async subscribe(_: string, take: (frame: Uint8Array) => void): Promise<void> {
    this.reader = take;
  }

  async publish(key: string, replyTo: string, frame: Uint8Array): Promise<void> {
    if (this.refuses !== null) throw this.refuses;
    this.keys.push(`${key} ${replyTo.slice(0, 24)}`);
    this.worker(frame, this);
  }

  close(): void {
    this.lose(new LinkError("closed"));
  }
}

function linked(worker: (frame: Uint8Array, broker: Broker) => void) {
  const events: Event[] = [];
  const brokers: Broker[] = [];
  let wake = (): void => undefined;
  const connect = async (): Promise<Transport> => {
    brokers.push(new Broker(worker));
    return brokers[brokers.length - 1];
  };
  const emit = (event: Event): void => {
    events.push(event);
    wake();
  };
  const link = new Link(connect, "phone-1", emit, () => undefined);
  const running = link.run();
  const until = async (type: Event["type"]): Promise<Event> => {
    for (;;) {
      const found = events.findIndex((event) => event.type === type);
      if (found >= 0) return events.splice(0, found + 1)[found];
      await new Promise<void>((woken) => (wake = woken));
    }
  };
  const stop = async (): Promise<void> => {
    link.stop();
    await running;
  };
  return { link, brokers, until, stop };
}

test("a request is cut, confirmed and answered", async () => {
  const assembler = new Assembler();
  const { link, brokers, until, stop } = linked((frame, broker) => {
    const whole = assembler.add(frame);
    if (whole === null) return;
    assert.deepEqual(decode(whole.body), { ...FORWARD });
    for (const part of toFrames(encode(WORKING), "fedcba9876543210", 64)) broker.reader(part);
  });
  await until("LinkUp");
  link.shard = 3;
  link.send(FORWARD);
  assert.deepEqual(await until("Received"), { type: "Received", message: WORKING });
  assert.deepEqual(await until("Sent"), { type: "Sent", request: FORWARD.request });
  assert(brokers[0].keys.length > 1, "it was cut");
  assert(brokers[0].keys.every((key) => key === "s.phone-1.03 spliteasy.reply.phone-1."));
  assert(link.bytesUp > 160_000);
  await stop();
});

test("a lost connection is told and made again, and a request that no queue takes is told", async () => {
  const { link, brokers, until, stop } = linked(() => undefined);
  await until("LinkUp");
  brokers[0].lose(new LinkError("cut"));
  await until("LinkDown");
  await until("LinkUp");
  brokers[1].refuses = new Unroutable("nobody");
  link.send(FORWARD);
  assert.deepEqual(await until("NotSent"), { type: "NotSent", request: FORWARD.request });
  await stop();
});

test("an ASK says which bytes of replies have come, and of what its request consists", async () => {
  const asked: AnyMessage[] = [];
  const assembler = new Assembler();
  const { link, brokers, until, stop } = linked((frame) => {
    const whole = assembler.add(frame);
    if (whole !== null) asked.push(decode(whole.body));
  });
  await until("LinkUp");
  brokers[0].reader([...toFrames(new Uint8Array(300), "fedcba9876543210", 100)][1]);
  const ask: AnyRequest = { kind: "ASK", session: "digits.phone-1", request: "00000000000000bb", attempt: ATTEMPT, step: 1, about: FORWARD.request, about_kind: "FORWARD", forward: FORWARD.request, values: [] };
  link.send(ask, [], FORWARD);
  await until("Sent");
  const [found] = asked;
  assert(found.kind === "ASK");
  assert.deepEqual(found.partial, ["fedcba9876543210"]);
  assert.deepEqual(found.partial_ranges, [[[100, 200]]]);
  assert.equal(found.total, encode(FORWARD).length);
  assert.equal(found.digests?.length, Math.ceil(encode(FORWARD).length / found.block_bytes!));
  await stop();
});

test("a worker can't make a device send the same at will", () => {
  let now = 0;
  const repeats = new Repeats(() => now);
  const waits = Array.from({ length: 7 }, () => {
    const wait = repeats.waitS(FORWARD);
    now += wait;
    return wait;
  });
  assert.deepEqual(waits.slice(0, 3), [0, 0, 0]);
  assert(waits.slice(3).every((wait, at, all) => wait > 0 && wait <= 8 && (!at || wait >= all[at - 1])));
  repeats.connected();
  assert.equal(repeats.waitS(FORWARD), 0);
});

test("few frames wait for confirms, and the urgent ones go first", async () => {
  const window = new SendWindow(2, () => Infinity);
  const admitted: string[] = [];
  const take = (name: string, urgency: number) => void window.acquire(10, urgency, window.ticket()).then(() => admitted.push(name));
  for (const [name, urgency] of [["a", 1], ["b", 1], ["c", 1], ["d", 0]] as const) take(name, urgency);
  await Promise.resolve();
  assert.deepEqual(admitted, ["a", "b"]);
  window.release(10);
  await Promise.resolve();
  assert.deepEqual(admitted, ["a", "b", "d"]);
});

test("the speed of the link is what its traffic shows", () => {
  const speed = new LinkSpeed();
  assert.equal(speed.slower, null);
  speed.sent(100, 0.1);
  speed.sent(100_000, 1.1);
  assert.equal(speed.up, 100_000);
  speed.arrived(50_000, 0, false);
  speed.arrived(50_000, 1, true);
  assert.equal(speed.slower, 50_000);
  speed.gaveUp(1000, 10);
  assert.equal(speed.up, 100);
});

test("packets are read as they are written, and what no gateway sends is refused", () => {
  const packet = encodePacket(Kind.DELIVERY, { number: 7, argument: 9, text: "s.ä\nx", body: Uint8Array.of(1, 2, 3) });
  assert.equal(packet.length % 8, 3, "the body begins at a multiple of 8");
  const { number, argument, text, body } = parsePacket(packet);
  assert.deepEqual([number, argument, text, [...body]], [7, 9, "s.ä\nx", [1, 2, 3]]);
  for (const wrong of [packet.slice(0, 15), packet.slice(0, 20), encodePacket(Kind.HELLO), packet.map((byte, at) => (at === 12 ? 1 : byte))]) {
    assert.throws(() => parsePacket(wrong), WireError);
  }
  const failed = (argument: number) => errorOf(parsePacket(encodePacket(Kind.FAILED, { argument, text: "no" })));
  assert.deepEqual([1, 2, 3, 4, 5, 6].map((kind) => failed(kind).name), ["LinkError", "LinkError", "LinkError", "AccountRefused", "AccountRefused", "Unroutable"]);
  assert.deepEqual([1, 2, 3, 4].map((kind) => failed(kind).retriable), [true, true, false, false]);
});
