/** `lossless`: the same bits in fewer bytes, by two steps that are each used only where they win. */

import { WireError } from "../../errors.ts";
import { Tensor, viewed } from "../../protocol/tensor.ts";
import type { Meta } from "../../protocol/packed.ts";
import { bitmapBytes, fromBitmap, toBitmap } from "./bitmap.ts";
import { expectFlat, expectMeta, expectParts, type Codec, type Encoded, type Layout } from "./codec.ts";

const PARTS: Readonly<Record<string, number>> = { plain: 1, zeros: 2, planes: 2, "zeros+planes": 3 };
const WIDTH = 4;

class Lossless implements Codec {
  readonly name = "lossless";
  readonly feedback = false;

  async pack(flat: Float32Array, layout: Layout): Promise<Encoded> {
    const words = new Uint32Array(flat.buffer, flat.byteOffset, flat.length);
    const places: number[] = [];
    words.forEach((word, at) => word && places.push(at));
    const sparse = places.length * WIDTH + bitmapBytes(flat.length) < flat.byteLength;
    const values = sparse ? Uint32Array.from(places, (place) => words[place]) : words;
    const coded = await codedPlanes(values);
    const rest = coded ?? [Tensor.of("float32", [values.length], values)];
    const form = [...(sparse ? ["zeros"] : []), ...(coded ? ["planes"] : [])].join("+") || "plain";
    return { parts: sparse ? [toBitmap(places, layout.size), ...rest] : rest, meta: { form }, memory: null };
  }

  async unpack(parts: readonly Tensor[], meta: Meta, layout: Layout): Promise<Float32Array> {
    expectMeta(meta, "form");
    const { form } = meta;
    if (typeof form !== "string" || !Object.hasOwn(PARTS, form)) throw new WireError("an unknown form of a lossless tensor");
    const rest = [...expectParts(parts, PARTS[form])];
    const places = form.startsWith("zeros") ? fromBitmap(rest.shift() as Tensor, layout.size) : null;
    const count = places === null ? layout.size : places.length;
    const bytes = form.endsWith("planes") ? await joined(rest[0], rest[1], count) : expectFlat(rest[0], count, "float32");
    const values = viewed(bytes, WIDTH, Float32Array);
    if (places === null) return values;
    const flat = new Float32Array(layout.size);
    const from = new Uint32Array(values.buffer, values.byteOffset, values.length);
    const to = new Uint32Array(flat.buffer);
    places.forEach((place, at) => (to[place] = from[at])); // as whole words: a NaN keeps its bits
    return flat;
  }
}

/** The highest bytes coded, and all others plane after plane; null where coding saves nothing. */
async function codedPlanes(values: Uint32Array): Promise<Tensor[] | null> {
  const count = values.length;
  if (!count) return null;
  const high = Uint8Array.from(values, (word) => word >>> 24);
  const coded = await through(new CompressionStream("deflate-raw"), high, Infinity);
  if (coded.length >= count) return null;
  const low = new Uint8Array((WIDTH - 1) * count);
  values.forEach((word, at) => {
    for (let plane = 0; plane < WIDTH - 1; plane++) low[plane * count + at] = (word >>> (8 * plane)) & 255;
  });
  return [Tensor.of("uint8", [coded.length], coded), Tensor.of("uint8", [low.length], low)];
}

async function joined(coded: Tensor, lower: Tensor, count: number): Promise<Uint8Array> {
  const low = expectFlat(lower, count * (WIDTH - 1), "uint8");
  if (!(coded.size > 0 && coded.size < count)) throw new WireError("coded exponents are not fewer bytes than plain ones");
  const high = await inflated(expectFlat(coded, coded.size, "uint8"), count);
  const bytes = new Uint8Array(count * WIDTH);
  for (let at = 0; at < count; at++) {
    for (let plane = 0; plane < WIDTH - 1; plane++) bytes[at * WIDTH + plane] = low[plane * count + at];
    bytes[at * WIDTH + WIDTH - 1] = high[at];
  }
  return bytes;
}

/** Exactly `count` bytes, and hardly more than that in memory. */
async function inflated(coded: Uint8Array, count: number): Promise<Uint8Array> {
  try {
    const high = await through(new DecompressionStream("deflate-raw"), coded, count);
    if (high.length === count) return high;
  } catch (error) {
    if (error instanceof WireError) throw error; // others say that it is no such stream
  }
  throw new WireError(`coded exponents are not ${count} bytes`);
}

async function through(stream: GenericTransformStream, data: Uint8Array, most: number): Promise<Uint8Array> {
  const writer = stream.writable.getWriter();
  const written = writer.write(data).then(() => writer.close());
  written.catch(() => undefined); // it shows at the other end
  const chunks: Uint8Array[] = [];
  let size = 0;
  const reader = stream.readable.getReader() as ReadableStreamDefaultReader<Uint8Array>;
  for (let next = await reader.read(); !next.done; next = await reader.read()) {
    chunks.push(next.value);
    size += next.value.length;
    if (size > most) {
      await reader.cancel();
      throw new WireError(`a stream of more than ${most} bytes`);
    }
  }
  const whole = new Uint8Array(size);
  let at = 0;
  for (const chunk of chunks) {
    whole.set(chunk, at);
    at += chunk.length;
  }
  return whole;
}

export const LOSSLESS: Codec = new Lossless();
