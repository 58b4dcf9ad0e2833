/** Frames: a message's bytes cut into pieces, each with a header of 64 bytes (`broker/protocol/WIRE.md`). */

import { crc32 } from "./checksum.ts";
import { WireError } from "../errors.ts";
import { fromHex, toHex } from "./hex.ts";
import { ByteRanges, type Range } from "./ranges.ts";

export const HEADER_BYTES = 64;
export const FRAME_BYTES = 1 << 20;
export const CHUNK_BYTES = FRAME_BYTES - HEADER_BYTES;
export const MIN_CHUNK_BYTES = 8192;

const MAGIC = [0x53, 0x50, 0x45, 0x46];
const VERSION = 2;
const COVERED = 60;
const MAX_TOTAL = 2 ** 53;

/** The frames of a body, but for the bytes in `skip`. */
export function* toFrames(
  body: Uint8Array,
  messageId: string,
  chunkBytes: number = CHUNK_BYTES,
  skip: Iterable<Range> = [],
): Generator<Uint8Array> {
  const identity = fromHex(messageId);
  let crc = 0;
  let done = 0;
  for (const [begin, end] of new ByteRanges(skip).gaps(body.length)) {
    for (let offset = begin; offset < end; offset += chunkBytes) {
      const stop = Math.min(offset + chunkBytes, end);
      crc = crc32(body.subarray(done, stop), crc);
      done = stop;
      yield frame(identity, offset, body, stop, chunkBytes, stop === body.length ? crc : 0);
    }
  }
}

function frame(
  identity: Uint8Array, offset: number, body: Uint8Array, stop: number, chunkBytes: number, bodyCrc: number,
): Uint8Array {
  const made = new Uint8Array(HEADER_BYTES + stop - offset);
  const view = new DataView(made.buffer);
  made.set(MAGIC);
  made[4] = VERSION;
  made.set(identity, 8);
  view.setBigUint64(16, BigInt(offset), true);
  view.setBigUint64(24, BigInt(body.length), true);
  view.setUint32(32, chunkBytes, true);
  view.setUint32(36, bodyCrc, true);
  made.set(body.subarray(offset, stop), HEADER_BYTES);
  view.setUint32(COVERED, checksum(made), true);
  return made;
}

function checksum(made: Uint8Array): number {
  return crc32(made.subarray(HEADER_BYTES), crc32(made.subarray(0, COVERED)));
}

/** A frame whose checksum and place were found right. */
export interface Chunk {
  readonly messageId: string;
  readonly offset: number;
  readonly end: number;
  readonly total: number;
  readonly chunkBytes: number;
  readonly bodyCrc: number;
  readonly payload: Uint8Array;
  /** The message ends with it. */
  readonly last: boolean;
}

/** Throws WireError for anything that `toFrames` would not have made. */
export function parseFrame(data: Uint8Array): Chunk {
  if (data.length <= HEADER_BYTES) throw new WireError("too short to be a frame");
  if (MAGIC.some((byte, at) => data[at] !== byte)) throw new WireError("not a frame of SplitEasy");
  if (data[4] !== VERSION) throw new WireError(`a frame of version ${data[4]}, this side speaks ${VERSION}`);
  const zeros = [...data.subarray(5, 8), ...data.subarray(40, COVERED)];
  if (zeros.some((byte) => byte !== 0)) throw new WireError("a frame whose reserved bytes are not zero");
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  if (view.getUint32(COVERED, true) !== checksum(data)) throw new WireError("a frame's checksum is wrong");
  const payload = data.subarray(HEADER_BYTES);
  const offset = Number(view.getBigUint64(16, true));
  const total = Number(view.getBigUint64(24, true));
  const end = offset + payload.length;
  if (total >= MAX_TOTAL || end > total) throw new WireError(`bytes ${offset} to ${end} of ${total} are out of place`);
  const chunkBytes = view.getUint32(32, true);
  if (payload.length > chunkBytes) throw new WireError("a frame with more than its message is cut at");
  const bodyCrc = view.getUint32(36, true);
  const last = end === total;
  if (bodyCrc && !last) throw new WireError("a frame in the middle has the checksum of the body");
  return { messageId: toHex(data.subarray(8, 16)), offset, end, total, chunkBytes, bodyCrc, payload, last };
}
