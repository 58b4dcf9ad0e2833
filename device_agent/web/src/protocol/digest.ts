/** Digests of values: `spliteasy/training/digest.py`. */

import { blake2b } from "@noble/hashes/blake2.js";

import { toHex } from "./hex.ts";
import type { Value } from "./messages.ts";
import { Tensor, viewed } from "./tensor.ts";

const ROW_WORDS = 1024;
const TEXT = new TextEncoder();

/** 32 hexadecimal digits over dtypes, shapes and bits of the values, in order. It tells computations apart, quickly. */
export function digestOf(values: readonly Value[]): string {
  const hasher = blake2b.create({ dkLen: 16 });
  for (const value of values) {
    if (value instanceof Tensor) {
      hasher.update(TEXT.encode(told(value)));
      const bytes = value.contiguous().bytes;
      const rows = Math.floor(bytes.length / (8 * ROW_WORDS));
      if (rows) hasher.update(rowSums(bytes, rows));
      hasher.update(bytes.subarray(rows * 8 * ROW_WORDS));
    } else {
      hasher.update(TEXT.encode(value === null ? "None" : String(value)));
    }
  }
  return toHex(hasher.digest());
}

/** A cryptographic hash over dtype, shape and bits. */
export function strongDigest(tensor: Tensor): string {
  const hasher = blake2b.create({ dkLen: 32 });
  hasher.update(TEXT.encode(told(tensor))).update(tensor.contiguous().bytes);
  return toHex(hasher.digest());
}

/** The digest of a block of a message's bytes: 16 hexadecimal digits. */
export function payloadDigest(bytes: Uint8Array): string {
  return toHex(blake2b(bytes, { dkLen: 8 }));
}

/** Dtype and shape as Python prints them: `torch.float32(2, 3)`. */
function told(tensor: Tensor): string {
  const [first, ...more] = tensor.shape;
  const shape = first === undefined ? "" : more.length ? tensor.shape.join(", ") : `${first},`;
  return `torch.${tensor.dtype}(${shape})`;
}

/** The sum of each row of 64-bit words, modulo 2^64. Halves are added up apart: their sums are exact. */
function rowSums(bytes: Uint8Array, rows: number): Uint8Array {
  const halves = viewed(bytes.subarray(0, rows * 8 * ROW_WORDS), 4, Uint32Array);
  const sums = new Uint32Array(2 * rows);
  for (let row = 0; row < rows; row++) {
    let low = 0;
    let high = 0;
    for (let at = 2 * row * ROW_WORDS; at < 2 * (row + 1) * ROW_WORDS; at += 2) {
      low += halves[at];
      high += halves[at + 1];
    }
    sums[2 * row] = low % 2 ** 32;
    sums[2 * row + 1] = (high + Math.floor(low / 2 ** 32)) % 2 ** 32;
  }
  return new Uint8Array(sums.buffer);
}
