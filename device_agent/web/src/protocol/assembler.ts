/** Puts messages together from their frames, in any order, within what unfinished ones may take. */

import { crc32 } from "./checksum.ts";
import { WireError } from "../errors.ts";
import { parseFrame, type Chunk } from "./frames.ts";
import { ByteRanges, type Range } from "./ranges.ts";

const MAX_PIECES = 1024;
const MAX_MESSAGES = 16;
const EXPIRE_MS = 120_000;

/** A message whose frames are all there; null: more are to come, or the frame had no room. */
export type Outcome = { readonly body: Uint8Array; readonly chunkBytes: number } | null;

interface Upload {
  readonly total: number;
  readonly buffer: Uint8Array;
  readonly received: ByteRanges;
  touched: number;
  bodyCrc: number;
}

/** `clock` is in milliseconds. */
export class Assembler {
  private readonly uploads = new Map<string, Upload>();

  constructor(
    private readonly limitBytes: number = 256 << 20,
    private readonly clock: () => number = () => performance.now(),
  ) {}

  /** Take one frame. Throws WireError for a malformed one, and for one that contradicts those before it. */
  add(frame: Uint8Array): Outcome {
    this.expire();
    const chunk = parseFrame(frame);
    if (chunk.total > this.limitBytes) throw new WireError(`a message of ${chunk.total} bytes is too large`);
    if (chunk.offset === 0 && chunk.last) return assembled(chunk, chunk.payload.slice(), chunk.bodyCrc);
    const upload = this.uploads.get(chunk.messageId) ?? this.begin(chunk);
    if (upload === null) return null;
    this.uploads.delete(chunk.messageId); // what contradicts itself is dropped as a whole
    take(upload, chunk);
    if (upload.received.covers(0, upload.total)) return assembled(chunk, upload.buffer, upload.bodyCrc);
    upload.touched = this.clock();
    this.uploads.set(chunk.messageId, upload);
    return null;
  }

  /** Ids of unfinished messages, the stalest first. */
  unfinished(): string[] {
    return [...this.uploads.keys()];
  }

  /** The byte ranges that are there of an unfinished message. */
  held(messageId: string): Range[] {
    return this.uploads.get(messageId)?.received.list() ?? [];
  }

  private begin(chunk: Chunk): Upload | null {
    const held = [...this.uploads.values()].reduce((sum, upload) => sum + upload.total, 0);
    if (this.uploads.size >= MAX_MESSAGES || held + chunk.total > this.limitBytes) return null;
    const buffer = new Uint8Array(chunk.total);
    return { total: chunk.total, buffer, received: new ByteRanges(), touched: this.clock(), bodyCrc: 0 };
  }

  private expire(): void {
    const horizon = this.clock() - EXPIRE_MS;
    for (const [id, upload] of this.uploads) if (upload.touched <= horizon) this.uploads.delete(id);
  }
}

function take(upload: Upload, chunk: Chunk): void {
  if (upload.total !== chunk.total) throw new WireError(`two messages under the id ${chunk.messageId}`);
  for (const [begin, end] of upload.received.within(chunk.offset, chunk.end)) {
    for (let at = begin; at < end; at++) {
      if (upload.buffer[at] !== chunk.payload[at - chunk.offset]) {
        throw new WireError(`two messages under the id ${chunk.messageId}`);
      }
    }
  }
  upload.received.add(chunk.offset, chunk.end);
  if (upload.received.count > MAX_PIECES) {
    upload.received.remove(chunk.offset, chunk.end);
    return;
  }
  upload.buffer.set(chunk.payload, chunk.offset);
  if (chunk.last) upload.bodyCrc = chunk.bodyCrc;
}

function assembled(chunk: Chunk, body: Uint8Array, bodyCrc: number): Outcome {
  if (crc32(body) !== bodyCrc) throw new WireError("a message's frames do not belong together");
  return { body, chunkBytes: chunk.chunkBytes };
}
