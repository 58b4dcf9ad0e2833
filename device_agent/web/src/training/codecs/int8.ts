/** `int8`: one byte an element and one scale a channel: `spliteasy/codecs/int8.py`. */

import { WireError } from "../../errors.ts";
import { Tensor, viewed } from "../../protocol/tensor.ts";
import type { Meta } from "../../protocol/packed.ts";
import { expectFlat, expectMeta, expectParts, type Codec, type Encoded, type Layout } from "./codec.ts";
import { Sfc64 } from "./sfc64.ts";

const LEVELS = 127;
const MIN_SCALE = 2 ** -120;

class Int8 implements Codec {
  readonly name = "int8";
  readonly feedback = false;

  pack(flat: Float32Array, layout: Layout, seed: bigint | null): Encoded {
    const { count, inner } = channelsOf(layout);
    const { scales, words } = scalesOf(flat, count, inner);
    const factors = scales.map((scale) => (Number.isNaN(scale) ? 0 : Math.fround(1 / scale)));
    const dither = seed === null ? null : ditherOf(seed, layout.size);
    const quantized = new Int8Array(layout.size);
    for (let at = 0; at < layout.size; at++) {
      const factor = factors[Math.floor(at / inner) % count];
      let scaled = factor ? Math.fround(flat[at] * factor) : 0;
      if (dither !== null) scaled = Math.fround(scaled + (dither[at] | 1) * 2 ** -16);
      quantized[at] = roundedToEven(scaled);
    }
    return { parts: [Tensor.of("int8", [layout.size], quantized), Tensor.of("bfloat16", [count], words)], meta: {}, memory: null };
  }

  unpack(parts: readonly Tensor[], meta: Meta, layout: Layout): Float32Array {
    expectMeta(meta);
    const [first, second] = expectParts(parts, 2);
    const { count, inner } = channelsOf(layout);
    const quantized = viewed(expectFlat(first, layout.size, "int8"), 1, Int8Array);
    const words = viewed(expectFlat(second, count, "bfloat16"), 2, Uint16Array);
    const scales = new Float32Array(Uint32Array.from(words, (word) => word << 16).buffer);
    if (scales.some((scale) => !Number.isNaN(scale) && !(scale >= MIN_SCALE && scale < Infinity))) {
      throw new WireError("a scale is neither a positive number nor NaN");
    }
    const flat = new Float32Array(layout.size);
    for (let at = 0; at < layout.size; at++) flat[at] = quantized[at] * scales[Math.floor(at / inner) % count];
    return flat;
  }
}

/** The number of channels, and how many neighbours in memory belong to one before the next begins. */
function channelsOf({ shape, strides, size }: Layout): { count: number; inner: number } {
  const dim = shape.length > 3 ? 1 : shape.length - 1;
  const count = shape.length < 2 ? 1 : shape[dim];
  return count > 1 ? { count, inner: strides[dim] } : { count: 1, inner: size };
}

/** A scale for each channel, rounded up to bfloat16, and its 16 bits; NaN where an element is not finite. */
function scalesOf(flat: Float32Array, count: number, inner: number): { scales: Float32Array; words: Uint16Array } {
  const largest = new Float32Array(count);
  for (let at = 0; at < flat.length; at++) {
    const channel = Math.floor(at / inner) % count;
    const size = Math.abs(flat[at]);
    if (!(size <= largest[channel])) largest[channel] = Number.isFinite(size) && !Number.isNaN(largest[channel]) ? size : NaN;
  }
  const scales = largest.map((size) => (Number.isNaN(size) ? NaN : Math.max(Math.fround(size / LEVELS), MIN_SCALE)));
  const bits = new Uint32Array(scales.buffer);
  const words = new Uint16Array(count);
  for (let channel = 0; channel < count; channel++) {
    words[channel] = Number.isNaN(scales[channel]) ? 0x7fc0 : (bits[channel] + 0xffff) >>> 16;
    bits[channel] = words[channel] << 16;
  }
  return { scales, words };
}

function ditherOf(seed: bigint, size: number): Int16Array {
  const generator = new Sfc64(seed);
  const words = BigUint64Array.from({ length: Math.ceil(size / 4) }, () => generator.next());
  return new Int16Array(words.buffer);
}

/** To the nearest whole number, and to the even one where two are as near. */
function roundedToEven(value: number): number {
  const rounded = Math.round(value);
  return Math.abs(value % 1) === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

export const INT8: Codec = new Int8();
