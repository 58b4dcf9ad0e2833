/** The base of all codecs: `spliteasy/codecs/codec.py`. A codec packs the float32 tensors of a cut, in memory order. */

import { WireError } from "../../errors.ts";
import type { Meta } from "../../protocol/packed.ts";
import { isDense, product, rowMajor, sameNumbers, Tensor, type Dtype } from "../../protocol/tensor.ts";

export interface Encoded {
  readonly parts: readonly Tensor[];
  readonly meta: Meta;
  /** What error feedback holds back for the next step; null under codecs without it. */
  readonly memory: Float32Array | null;
}

/** Where the elements of a dense tensor lie: each has its own place, without gaps. */
export interface Layout {
  readonly shape: readonly number[];
  readonly strides: readonly number[];
  readonly size: number;
}

export interface Codec {
  readonly name: string;
  readonly feedback: boolean;
  /** Pack the elements in memory order. `seed`: null rounds to nearest; a number makes rounding unbiased. */
  pack(flat: Float32Array, layout: Layout, seed: bigint | null, memory: Float32Array | null): Promise<Encoded> | Encoded;
  /** The elements again. Throws WireError for what `pack` does not give. */
  unpack(parts: readonly Tensor[], meta: Meta, layout: Layout): Promise<Float32Array> | Float32Array;
}

export async function encode(codec: Codec, tensor: Tensor, seed: bigint | null, memory: Float32Array | null): Promise<Encoded> {
  if (!packs(tensor.dtype, tensor.shape)) return { parts: [tensor], meta: {}, memory: null };
  const layout = layoutOf(tensor.shape, tensor.strides);
  const packed = await codec.pack(tensor.floats(), layout, seed, memory);
  return tensor.strides === null ? packed : { ...packed, meta: { ...packed.meta, strides: [...tensor.strides] } };
}

/** The tensor, of exactly this shape and dtype. Throws WireError. */
export async function decode(codec: Codec, parts: readonly Tensor[], meta: Meta, shape: readonly number[], dtype: Dtype): Promise<Tensor> {
  if (!packs(dtype, shape)) {
    expectMeta(meta);
    const [part] = expectParts(parts, 1);
    if (part.dtype !== dtype || !sameNumbers(part.shape, shape)) throw new WireError("a part of a packed tensor has another shape");
    return part;
  }
  const { strides, ...rest } = meta;
  if (strides !== undefined && !fill(strides, shape)) throw new WireError("the strides of a packed tensor do not fill its shape");
  const layout = layoutOf(shape, strides === undefined ? null : (strides as readonly number[]));
  const flat = await codec.unpack(parts, rest, layout);
  return new Tensor(dtype, shape, new Uint8Array(flat.buffer, flat.byteOffset, flat.byteLength), layout.strides);
}

function packs(dtype: Dtype, shape: readonly number[]): boolean {
  return dtype === "float32" && !shape.includes(0);
}

function layoutOf(shape: readonly number[], strides: readonly number[] | null): Layout {
  return { shape, strides: strides ?? rowMajor(shape), size: product(shape) };
}

function fill(strides: unknown, shape: readonly number[]): boolean {
  const whole = Array.isArray(strides) && strides.length === shape.length;
  if (!whole || !strides.every((stride) => Number.isSafeInteger(stride) && stride >= 0)) return false;
  return isDense(shape, strides) && !sameNumbers(strides, rowMajor(shape));
}

export function expectMeta(meta: Meta, ...keys: string[]): void {
  const found = Object.keys(meta);
  if (found.length !== keys.length || !keys.every((key) => found.includes(key))) throw new WireError("a packed tensor with another meta");
}

export function expectParts(parts: readonly Tensor[], count: number): readonly Tensor[] {
  if (parts.length !== count) throw new WireError(`a packed tensor has ${parts.length} parts, not ${count}`);
  return parts;
}

/** The bytes of a flat part of `count` elements; else WireError. */
export function expectFlat(part: Tensor, count: number, dtype: Dtype): Uint8Array {
  if (part.dtype !== dtype || !sameNumbers(part.shape, [count])) {
    throw new WireError(`a part of a packed tensor is no row of ${count} ${dtype}`);
  }
  return part.contiguous().bytes;
}
