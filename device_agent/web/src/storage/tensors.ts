/** Named tensors as one file: a header in JSON, then their bytes, each at a multiple of 8. */

import { StateError } from "../errors.ts";
import { isDtype, Tensor } from "../protocol/tensor.ts";

export type Tensors = Readonly<Record<string, Tensor>>;

interface Entry {
  readonly name: string;
  readonly dtype: string;
  readonly shape: number[];
  readonly strides: number[] | null;
  readonly bytes: number;
}

export function packTensors(tensors: Tensors): Uint8Array {
  const entries = Object.entries(tensors).map(([name, { dtype, shape, strides, bytes }]) => ({
    name, dtype, shape, strides, bytes: bytes.length,
  }));
  const header = new TextEncoder().encode(JSON.stringify(entries));
  const parts = Object.values(tensors).map(({ bytes }) => bytes);
  const start = aligned(4 + header.length);
  const packed = new Uint8Array(parts.reduce((at, part) => at + aligned(part.length), start));
  new DataView(packed.buffer).setUint32(0, header.length, true);
  packed.set(header, 4);
  let at = start;
  for (const part of parts) {
    packed.set(part, at);
    at += aligned(part.length);
  }
  return packed;
}

/** The tensors that `packTensors` was given, as views of `data`. Throws StateError. */
export function unpackTensors(data: Uint8Array): Tensors {
  const length = new DataView(data.buffer, data.byteOffset).getUint32(0, true);
  const entries = JSON.parse(new TextDecoder().decode(data.subarray(4, 4 + length))) as Entry[];
  let at = aligned(4 + length);
  const tensors: Record<string, Tensor> = {};
  for (const { name, dtype, shape, strides, bytes } of entries) {
    if (!isDtype(dtype)) throw new StateError(`a stored tensor of an unknown kind: ${dtype}`);
    tensors[name] = new Tensor(dtype, shape, data.subarray(at, at + bytes), strides);
    at += aligned(bytes);
  }
  return tensors;
}

/** Bytes as a tensor, to be kept among others. */
export function bytesTensor(bytes: Uint8Array): Tensor {
  return new Tensor("uint8", [bytes.length], bytes);
}

function aligned(offset: number): number {
  return Math.ceil(offset / 8) * 8;
}
