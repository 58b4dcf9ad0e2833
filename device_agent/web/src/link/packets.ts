/** The packets of a gateway's WebSocket: `docs/gateway.md`. */

import { AccountRefused, LinkError, Unroutable, WireError } from "../errors.ts";

export const PROTOCOL = "spliteasy.1";
const HEADER = 16;
const MAX_TEXT = 1024;

export const Kind = {
  HELLO: 1, DECLARE: 2, SUBSCRIBE: 3, PUBLISH: 4, ACK: 5, END: 6,
  WELCOME: 16, DONE: 17, FAILED: 18, DELIVERY: 19, ENDED: 20,
} as const;

/** SUBSCRIBE: nobody else may read the queue. */
export const EXCLUSIVE = 1;

export interface Packet {
  readonly kind: number;
  readonly flags: number;
  readonly number: number;
  readonly argument: number;
  readonly text: string;
  readonly body: Uint8Array;
}

export function encodePacket(kind: number, its: Partial<Omit<Packet, "kind">> = {}): Uint8Array<ArrayBuffer> {
  const { flags = 0, number = 0, argument = 0, body = new Uint8Array(0) } = its;
  const text = new TextEncoder().encode(its.text ?? "");
  if (text.length > MAX_TEXT) throw new WireError("a text that is too long for a packet");
  const start = bodyStart(text.length);
  const packet = new Uint8Array(start + body.length);
  const view = new DataView(packet.buffer);
  packet[0] = kind;
  packet[1] = flags;
  view.setUint16(2, text.length, true);
  view.setUint32(4, number, true);
  view.setUint32(8, argument, true);
  packet.set(text, HEADER);
  packet.set(body, start);
  return packet;
}

/** Throws WireError for what no gateway sends. */
export function parsePacket(data: Uint8Array): Packet {
  if (data.length < HEADER) throw new WireError("too short to be a packet");
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const length = view.getUint16(2, true);
  const start = bodyStart(length);
  const [kind, flags] = data;
  if (kind < Kind.WELCOME || kind > Kind.ENDED) throw new WireError("a packet of an unknown kind");
  if (length > MAX_TEXT || start > data.length || view.getUint32(12, true)) throw new WireError("a packet that is not laid out as one");
  const text = new TextDecoder("utf-8").decode(data.subarray(HEADER, HEADER + length));
  const number = view.getUint32(4, true);
  return { kind, flags, number, argument: view.getUint32(8, true), text, body: data.subarray(start) };
}

/** What a FAILED or ENDED packet says, as an error. */
export function errorOf(packet: Packet): LinkError {
  const hint = new TextDecoder("utf-8").decode(packet.body.subarray(0, 2000)) || null;
  switch (packet.argument) {
    case 3:
      return new LinkError(packet.text, hint, false);
    case 4:
    case 5:
      return new AccountRefused(packet.text, hint);
    case 6:
      return new Unroutable(packet.text, hint);
    default:
      return new LinkError(packet.text, hint);
  }
}

function bodyStart(textBytes: number): number {
  return HEADER + Math.ceil(textBytes / 8) * 8;
}
