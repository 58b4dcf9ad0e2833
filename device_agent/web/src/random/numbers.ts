/** Random numbers of a key's stream by the laws of torch's initializers: `spliteasy/privacy/numbers.py`. */

import { NotSupported } from "../errors.ts";
import { ndtr, ndtri } from "./distribution.ts";
import type { Key } from "./key.ts";

/** Numbers that are made at a time, from a stream of their own. */
export const CHUNK = 2 ** 18;

type Law = (count: number, bits: number, key: Key, args: readonly number[]) => Float64Array;

/** Write independent numbers of the law named into `out`, in its order of elements. */
export function fill(out: Float32Array | Float64Array, law: string, args: readonly number[], key: Key): void {
  if (law === "permutation") {
    out.set(permutation(out.length, key));
    return;
  }
  if (!(law in LAWS)) throw new NotSupported(`this build knows no random numbers by the law ${law}`);
  const bits = out instanceof Float64Array ? 53 : 24;
  for (let at = 0; at < out.length; at += CHUNK) {
    const count = Math.min(CHUNK, out.length - at);
    out.set(LAWS[law](count, bits, key.at(at / CHUNK), args), at);
  }
}

/** The numbers from 0 in random order: the order of 64-bit words of the stream. */
export function permutation(count: number, key: Key): Uint32Array {
  const words = new BigUint64Array(key.stream(8 * count).slice().buffer);
  return Uint32Array.from({ length: count }, (_, place) => place).sort((one, other) => {
    const a = words[one];
    const b = words[other];
    return a < b ? -1 : a > b ? 1 : one - other;
  });
}

/** Multiples of 2^-bits from 0, below 1. */
export function unit(count: number, bits: 24 | 53 | number, key: Key): Float64Array {
  const out = new Float64Array(count);
  if (bits <= 32) {
    const words = new DataView(key.stream(4 * count).slice().buffer);
    for (let place = 0; place < count; place++) {
      out[place] = (words.getUint32(4 * place, true) >>> (32 - bits)) * 2 ** -bits;
    }
    return out;
  }
  const words = new DataView(key.stream(8 * count).slice().buffer);
  for (let place = 0; place < count; place++) {
    const low = words.getUint32(8 * place, true);
    const high = words.getUint32(8 * place + 4, true);
    out[place] = (high * 2 ** 21 + (low >>> 11)) * 2 ** -53;
  }
  return out;
}

/** Standard normal numbers, in pairs by Box and Muller's method. */
export function normal(count: number, key: Key): Float64Array {
  const half = Math.ceil(count / 2);
  const pairs = unit(2 * half, 53, key);
  const out = new Float64Array(2 * half);
  for (let place = 0; place < half; place++) {
    const radius = Math.sqrt(-2 * Math.log1p(-pairs[place]));
    const angle = 2 * Math.PI * pairs[half + place];
    out[place] = radius * Math.cos(angle);
    out[half + place] = radius * Math.sin(angle);
  }
  return out.subarray(0, count);
}

function truncated(count: number, key: Key, mean: number, std: number, low: number, high: number): Float64Array {
  if (std === 0) return new Float64Array(count).fill(Math.min(Math.max(mean, low), high));
  let a = (low - mean) / std;
  let b = (high - mean) / std;
  let sign = 1;
  if (a > 0) [a, b, sign] = [-b, -a, -1]; // by the lower tail, where the distribution function keeps its digits
  const below = ndtr(a);
  const under = ndtr(b);
  return unit(count, 53, key).map((u) => {
    const number = Math.min(Math.max(ndtri(below + u * (under - below)), a), b);
    return Math.min(Math.max(mean + std * sign * number, low), high);
  });
}

const LAWS: Readonly<Record<string, Law>> = {
  uniform: (count, bits, key, [low, high]) => unit(count, bits, key).map((u) => low + u * (high - low)),
  normal: (count, _bits, key, [mean, std]) => normal(count, key).map((x) => mean + std * x),
  trunc_normal: (count, _bits, key, [mean, std, low, high]) => truncated(count, key, mean, std, low, high),
  bernoulli: (count, _bits, key, [probability]) => unit(count, 53, key).map((u) => (u < probability ? 1 : 0)),
  exponential: (count, _bits, key, [rate]) => unit(count, 53, key).map((u) => -Math.log1p(-u) / rate),
  integers: (count, _bits, key, [low, high]) => unit(count, 53, key).map((u) => Math.floor(low + u * (high - low))),
};
