/** A bitmap says in one bit each which elements are there: `spliteasy/codecs/bitmap.py`. */

import { WireError } from "../../errors.ts";
import { Tensor } from "../../protocol/tensor.ts";
import { expectFlat } from "./codec.ts";

export function bitmapBytes(count: number): number {
  return Math.ceil(count / 8);
}

export function toBitmap(places: ArrayLike<number>, count: number): Tensor {
  const bytes = new Uint8Array(bitmapBytes(count));
  for (let at = 0; at < places.length; at++) bytes[places[at] >> 3] |= 1 << (places[at] & 7);
  return Tensor.of("uint8", [bytes.length], bytes);
}

/** The places whose bit is set, ascending. Throws WireError. */
export function fromBitmap(part: Tensor, count: number): number[] {
  const bytes = expectFlat(part, bitmapBytes(count), "uint8");
  if (count % 8 && bytes[bytes.length - 1] >> count % 8) throw new WireError("a bitmap has bits beyond its end");
  const places: number[] = [];
  for (let at = 0; at < count; at++) if (bytes[at >> 3] & (1 << (at & 7))) places.push(at);
  return places;
}
