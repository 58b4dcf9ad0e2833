/** An engine over the kernels that were built for the tests, and tensors from recorded ones. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

import { createEngine } from "../src/engine/index.ts";
import type { Engine, Tensor } from "../src/engine/types.ts";

export interface Packed {
  readonly dtype: "float32" | "int64" | "bool";
  readonly shape: readonly number[];
  /** Little-endian bytes of the elements, in base 64. */
  readonly data: string;
}

export function bytesOf(text: string): Uint8Array {
  return new Uint8Array(Buffer.from(text, "base64"));
}

export function tensorOf({ dtype, shape, data }: Packed): Tensor {
  const buffer = bytesOf(data).slice().buffer;
  const kinds = { float32: Float32Array, int64: BigInt64Array, bool: Uint8Array };
  return { dtype, shape, data: new kinds[dtype](buffer) };
}

export function kernelBytes(): Uint8Array {
  return new Uint8Array(readFileSync(process.env.SPLITEASY_KERNELS!));
}

export function engine(maxBytes?: number): Promise<Engine> {
  return createEngine({ kernels: kernelBytes(), maxBytes });
}

/** Fail unless every number is within `tolerance` of the largest, and NaN where the other is. */
export function assertClose(ours: Tensor, theirs: Tensor, tolerance: number, where: string): void {
  assert.equal(ours.dtype, theirs.dtype, where);
  assert.deepEqual([...ours.shape], [...theirs.shape], where);
  const [a, b] = [ours, theirs].map(({ data }) => Array.from(data as ArrayLike<number | bigint>, Number));
  const largest = b.reduce((most, x) => (Number.isFinite(x) ? Math.max(most, Math.abs(x)) : most), 0);
  const worst = a.reduce((most, x, place) => {
    const same = Object.is(x, b[place]) || x === b[place] || (Number.isNaN(x) && Number.isNaN(b[place]));
    const away = same ? 0 : Math.abs(x - b[place]);
    return Number.isNaN(away) ? Infinity : Math.max(most, away);
  }, 0);
  assert(worst <= tolerance * Math.max(largest, 1e-6), `${where}: off by ${worst} of ${largest}\n${a.slice(0, 24)}\n${b.slice(0, 24)}`);
}
