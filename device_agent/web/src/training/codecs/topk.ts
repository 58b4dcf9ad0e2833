/** `topk:RATIO`: only the largest elements travel, the rest is held back: `spliteasy/codecs/topk.py`. */

import { WireError } from "../../errors.ts";
import { Tensor, viewed } from "../../protocol/tensor.ts";
import type { Meta } from "../../protocol/packed.ts";
import { bitmapBytes, fromBitmap, toBitmap } from "./bitmap.ts";
import { expectFlat, expectMeta, expectParts, type Codec, type Encoded, type Layout } from "./codec.ts";

const INDEX_BYTES = 4;

export class TopK implements Codec {
  readonly feedback = true;

  constructor(
    readonly name: string,
    private readonly ratio: number,
  ) {}

  pack(flat: Float32Array, layout: Layout, _: bigint | null, memory: Float32Array | null): Encoded {
    const total = memory === null ? flat.slice() : flat.map((value, at) => value + memory[at]);
    const places = largest(total, this.kept(layout));
    const values = Float32Array.from(places, (place) => total[place]);
    for (const place of places) total[place] = 0;
    const where = this.asBitmap(layout) ? toBitmap(places, layout.size) : Tensor.of("int32", [places.length], Int32Array.from(places));
    return { parts: [Tensor.float32([values.length], values), where], meta: {}, memory: total };
  }

  unpack(parts: readonly Tensor[], meta: Meta, layout: Layout): Float32Array {
    expectMeta(meta);
    const [first, where] = expectParts(parts, 2);
    const kept = this.kept(layout);
    const values = viewed(expectFlat(first, kept, "float32"), 4, Float32Array);
    const places = this.asBitmap(layout) ? fromBitmap(where, layout.size) : this.indices(where, kept, layout.size);
    if (places.length !== kept) throw new WireError(`a bitmap of ${places.length} places for ${kept} values`);
    const flat = new Float32Array(layout.size);
    places.forEach((place, at) => (flat[place] = values[at]));
    return flat;
  }

  private indices(where: Tensor, kept: number, size: number): number[] {
    const places = [...viewed(expectFlat(where, kept, "int32"), 4, Int32Array)];
    if (places.some((place, at) => place >= size || place <= (at ? places[at - 1] : -1))) {
      throw new WireError("the places of values are not increasing or not in the tensor");
    }
    return places;
  }

  private kept(layout: Layout): number {
    return Math.min(layout.size, Math.ceil(this.ratio * layout.size));
  }

  private asBitmap(layout: Layout): boolean {
    return bitmapBytes(layout.size) < this.kept(layout) * INDEX_BYTES;
  }
}

/** Increasing indices of the elements of largest magnitude; NaN counts as largest, and of equal ones the first. */
function largest(flat: Float32Array, count: number): number[] {
  const magnitudes = new Uint32Array(flat.buffer, flat.byteOffset, flat.length).map((bits) => bits & 0x7fffffff);
  const threshold = magnitudes.slice().sort()[flat.length - count];
  let ties = count;
  for (const magnitude of magnitudes) if (magnitude > threshold) ties -= 1;
  const places: number[] = [];
  magnitudes.forEach((magnitude, at) => {
    if (magnitude > threshold || (magnitude === threshold && ties-- > 0)) places.push(at);
  });
  return places;
}
