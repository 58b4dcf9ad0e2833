/** `fp16` and `bf16`: float32 rounded to 16 bits, to nearest even: `spliteasy/codecs/narrow.py`. */

import { Tensor, viewed } from "../../protocol/tensor.ts";
import { expectFlat, expectMeta, expectParts, type Codec, type Encoded, type Layout } from "./codec.ts";
import type { Meta } from "../../protocol/packed.ts";

type Convert = (from: Uint32Array, to: Uint16Array) => void;
type Widen = (from: Uint16Array, to: Uint32Array) => void;

class Narrow implements Codec {
  readonly feedback = false;

  constructor(
    readonly name: "fp16" | "bf16",
    private readonly dtype: "float16" | "bfloat16",
    private readonly convert: Convert,
    private readonly widen: Widen,
  ) {}

  pack(flat: Float32Array, layout: Layout): Encoded {
    const narrow = new Uint16Array(layout.size);
    this.convert(new Uint32Array(flat.buffer, flat.byteOffset, flat.length), narrow);
    return { parts: [Tensor.of(this.dtype, [layout.size], narrow)], meta: {}, memory: null };
  }

  unpack(parts: readonly Tensor[], meta: Meta, layout: Layout): Float32Array {
    expectMeta(meta);
    const [part] = expectParts(parts, 1);
    const wide = new Uint32Array(layout.size);
    this.widen(viewed(expectFlat(part, layout.size, this.dtype), 2, Uint16Array), wide);
    return new Float32Array(wide.buffer);
  }
}

/** `value` without its lowest `bits`, to nearest, and to even where two are as near. */
function shifted(value: number, bits: number): number {
  const half = 2 ** (bits - 1);
  const rest = value % (2 * half);
  const whole = (value - rest) / (2 * half);
  return rest > half || (rest === half && whole % 2) ? whole + 1 : whole;
}

/** The 16 bits of a bfloat16 nearest to a float32. */
export function toBfloat16(bits: number): number {
  const size = bits & 0x7fffffff;
  if (size > 0x7f800000) return (bits >>> 16) | 0x40; // NaN stays NaN
  return ((bits >>> 31) << 15) | shifted(size, 16);
}

function toFloat16(bits: number): number {
  const sign = (bits >>> 31) << 15;
  const size = bits & 0x7fffffff;
  if (size > 0x7f800000) return sign | 0x7e00;
  if (size >= 0x477ff000) return sign | 0x7c00; // from 65520 on
  if (size >= 0x38800000) return sign | shifted(size - 0x38000000, 13);
  const exponent = size >>> 23;
  if (exponent < 102) return sign; // below half of the smallest number
  return sign | shifted((size & 0x7fffff) | 0x800000, 126 - exponent);
}

function fromFloat16(half: number): number {
  const sign = ((half & 0x8000) << 16) >>> 0;
  const exponent = (half >>> 10) & 31;
  const fraction = half & 0x3ff;
  if (exponent === 31) return (sign | 0x7f800000 | (fraction << 13)) >>> 0;
  if (exponent) return (sign | ((exponent + 112) << 23) | (fraction << 13)) >>> 0;
  if (!fraction) return sign;
  const shift = Math.clz32(fraction) - 21; // up to the place of the hidden bit
  return (sign | ((113 - shift) << 23) | (((fraction << shift) & 0x3ff) << 13)) >>> 0;
}

export const FP16 = new Narrow(
  "fp16",
  "float16",
  (from, to) => from.forEach((bits, at) => (to[at] = toFloat16(bits))),
  (from, to) => from.forEach((half, at) => (to[at] = fromFloat16(half))),
);
export const BF16 = new Narrow(
  "bf16",
  "bfloat16",
  (from, to) => from.forEach((bits, at) => (to[at] = toBfloat16(bits))),
  (from, to) => from.forEach((half, at) => (to[at] = half << 16)),
);
