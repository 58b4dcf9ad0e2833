/** Tensors as safetensors bytes: `spliteasy/graph/tensors.py`. Tensors with other strides come back row-major. */

import { PortableError } from "../errors.ts";
import { sizeOf } from "./nd_array.ts";
import type { Arrays, DtypeName, State, Tensor } from "./types.ts";

const NAMES: Readonly<Record<string, DtypeName>> = {
  F32: "float32", F64: "float64", F16: "float16", BF16: "bfloat16", I64: "int64", I32: "int32", I16: "int16", I8: "int8",
  U8: "uint8", BOOL: "bool",
};
const CODES = Object.fromEntries(Object.entries(NAMES).map(([code, name]) => [name, code]));

const ARRAYS: { readonly [K in DtypeName]: { new (buffer: ArrayBuffer): Arrays[K]; readonly BYTES_PER_ELEMENT: number } } = {
  float32: Float32Array, float64: Float64Array, float16: Uint16Array, bfloat16: Uint16Array, int64: BigInt64Array,
  int32: Int32Array, int16: Int16Array, int8: Int8Array, uint8: Uint8Array, bool: Uint8Array,
};
/** The order in which the library of that format writes tensors: the widest first, so that all are aligned. */
const ORDER: readonly (string | undefined)[] = ["I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL"];
const LARGEST_HEADER = 100_000_000;

interface Entry {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data_offsets: readonly [number, number];
}

/** Throws PortableError for bytes that are no safetensors. */
export function tensorsFromBytes(bytes: Uint8Array): Record<string, Tensor> {
  const { header, start } = headerOf(bytes);
  const { __metadata__: metadata, ...entries } = header as Record<string, Entry> & { __metadata__?: Record<string, string> };
  const strides = stridesIn(metadata);
  const found: Record<string, Tensor> = {};
  for (const [name, entry] of Object.entries(entries)) found[name] = tensorOf(name, entry, bytes, start, strides[name]);
  return found;
}

function headerOf(bytes: Uint8Array): { header: object; start: number } {
  const length = bytes.length < 8 ? Infinity : Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  if (length > LARGEST_HEADER || 8 + length > bytes.length) throw new PortableError("the tensors are malformed: they have no header");
  try {
    const header: unknown = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(8, 8 + length)));
    if (header === null || typeof header !== "object") throw new Error("it is no object");
    return { header, start: 8 + length };
  } catch (error) {
    throw new PortableError(`the tensors' header is malformed: ${(error as Error).message}`);
  }
}

function stridesIn(metadata: Record<string, string> | undefined): Record<string, number[]> {
  if (!metadata?.strides) return {};
  try {
    return JSON.parse(metadata.strides) as Record<string, number[]>;
  } catch {
    throw new PortableError("the tensors' strides are malformed");
  }
}

function tensorOf(name: string, entry: Entry, bytes: Uint8Array, start: number, strides: number[] | undefined): Tensor {
  const dtype = NAMES[entry?.dtype];
  const { shape, data_offsets: offsets } = entry;
  const fine = dtype && Array.isArray(shape) && shape.every((side) => Number.isSafeInteger(side) && side >= 0) && Array.isArray(offsets);
  if (!fine) throw new PortableError(`tensor ${name.slice(0, 60)} is malformed`);
  const kind = ARRAYS[dtype];
  const [from, to] = offsets;
  if (to - from !== sizeOf(shape) * kind.BYTES_PER_ELEMENT || from < 0 || start + to > bytes.length) {
    throw new PortableError(`tensor ${name.slice(0, 60)} has other bytes than its shape needs`);
  }
  const data = new kind(bytes.slice(start + from, start + to).buffer as ArrayBuffer);
  return { dtype, shape, data: strides ? rowMajor(name, data, shape, strides) : data };
}

/** Numbers that lie in another order of dimensions, in row-major order. */
function rowMajor<T extends Arrays[DtypeName]>(name: string, data: T, shape: readonly number[], strides: readonly number[]): T {
  const end = 1 + shape.reduce((sum, side, place) => sum + (side - 1) * strides[place], 0);
  if (strides.length !== shape.length || !strides.every((step) => Number.isSafeInteger(step) && step >= 0) || end > data.length) {
    throw new PortableError(`tensor ${name.slice(0, 60)} has impossible strides`);
  }
  const out = data.slice() as T;
  const counter = shape.map(() => 0);
  let at = 0;
  for (let place = 0; place < out.length; place++) {
    out[place] = data[at];
    for (let d = shape.length - 1; d >= 0; d--) {
      at += strides[d];
      if (++counter[d] < shape[d]) break;
      at -= strides[d] * shape[d];
      counter[d] = 0;
    }
  }
  return out;
}

/** The same bytes for the same tensors, whatever their order. */
export function tensorsToBytes(tensors: State): Uint8Array {
  const rank = (name: string): number => ORDER.indexOf(CODES[tensors[name].dtype]);
  const names = Object.keys(tensors).sort((one, other) => rank(one) - rank(other) || (one < other ? -1 : 1));
  const header: Record<string, Entry> = {};
  let end = 0;
  for (const name of names) {
    const { dtype, shape, data } = tensors[name];
    header[name] = { dtype: CODES[dtype], shape, data_offsets: [end, (end += data.byteLength)] };
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  const length = Math.ceil(text.length / 8) * 8;
  const bytes = new Uint8Array(8 + length + end);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(length), true);
  bytes.fill(0x20, 8, 8 + length).set(text, 8);
  for (const name of names) {
    const { data } = tensors[name];
    bytes.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), 8 + length + header[name].data_offsets[0]);
  }
  return bytes;
}
