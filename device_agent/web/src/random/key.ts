/** Keys and their streams: `spliteasy/runtime/randomness.py`. */

import { blake2b } from "@noble/hashes/blake2.js";
import { shake256 } from "@noble/hashes/sha3.js";

export const KEY_BYTES = 32;

const TEXT = new TextEncoder();
const PERSON = padded("spliteasy-key", 16);
const STREAM = TEXT.encode("spliteasy-stream");

export type Part = string | number;

/** 32 secret bytes, or what was derived from them; a key is never shown. */
export class Key {
  readonly #bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    if (bytes.length !== KEY_BYTES) throw new RangeError(`a key has ${KEY_BYTES} bytes, not ${bytes.length}`);
    this.#bytes = bytes.slice();
  }

  /** The key of a purpose and place: every part counts, and it tells nothing of this or another. */
  at(...parts: readonly Part[]): Key {
    const hasher = blake2b.create({ dkLen: KEY_BYTES, key: this.#bytes, personalization: PERSON });
    for (const part of parts) {
      const kind = typeof part === "string" ? "s" : "i";
      const text = TEXT.encode(typeof part === "string" ? part : wholeNumber(part));
      hasher.update(TEXT.encode(`${kind}${text.length}:`)).update(text);
    }
    return new Key(hasher.digest());
  }

  /** The first `count` bytes of this key's stream. */
  stream(count: number): Uint8Array {
    return shake256.create({ dkLen: count }).update(STREAM).update(this.#bytes).digest();
  }

  /** The secret bytes, for the engine, which may run in another thread. */
  bytes(): Uint8Array {
    return this.#bytes.slice();
  }

  toJSON(): string {
    return "<Key>";
  }
}

/** 63 bits that depend on every part; a seed is no secret. */
export function seedOf(...parts: readonly Part[]): bigint {
  const text = parts.map((part) => (typeof part === "string" ? part : wholeNumber(part))).join("\x1f");
  let seed = 0n;
  for (const byte of blake2b(TEXT.encode(text), { dkLen: 8 })) seed = (seed << 8n) | BigInt(byte);
  return seed >> 1n;
}

function wholeNumber(part: number): string {
  if (!Number.isSafeInteger(part)) throw new RangeError(`${part} is no whole number below 2^53`);
  return part.toString();
}

function padded(text: string, size: number): Uint8Array {
  const bytes = new Uint8Array(size);
  bytes.set(TEXT.encode(text));
  return bytes;
}
