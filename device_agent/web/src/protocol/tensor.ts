/** A tensor as it travels and is kept: its bytes as they lie in memory. */

import { WireError } from "../errors.ts";

const SIZES = {
  float64: 8, float32: 4, float16: 2, bfloat16: 2,
  int64: 8, int32: 4, int16: 2, int8: 1, uint8: 1, bool: 1,
  complex64: 8, complex128: 16,
} as const;

export type Dtype = keyof typeof SIZES;

const FLOATING: ReadonlySet<Dtype> = new Set(["float64", "float32", "float16", "bfloat16"]);

export function itemBytes(dtype: Dtype): number {
  return SIZES[dtype];
}

export function isDtype(name: unknown): name is Dtype {
  return typeof name === "string" && Object.hasOwn(SIZES, name);
}

export function product(sizes: readonly number[]): number {
  return sizes.reduce((all, size) => all * size, 1);
}

/** The strides of a contiguous tensor of that shape. */
export function rowMajor(shape: readonly number[]): number[] {
  const strides = shape.map(() => 1);
  for (let dim = shape.length - 2; dim >= 0; dim--) strides[dim] = strides[dim + 1] * Math.max(shape[dim + 1], 1);
  return strides;
}

/** True where each element has its own place and there are no gaps. */
export function isDense(shape: readonly number[], strides: readonly number[]): boolean {
  let expected = 1;
  const dims = shape.map((size, dim) => [strides[dim], size] as const).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  for (const [stride, size] of dims) {
    if (size === 1) continue;
    if (stride !== expected) return false;
    expected *= size;
  }
  return true;
}

export function sameNumbers(one: readonly number[], other: readonly number[]): boolean {
  return one.length === other.length && one.every((number, at) => number === other[at]);
}

/** `strides` are null where the elements lie in row-major order. The bytes may be shared: nobody writes to them. */
export class Tensor {
  readonly strides: readonly number[] | null;

  constructor(
    readonly dtype: Dtype,
    readonly shape: readonly number[],
    readonly bytes: Uint8Array,
    strides: readonly number[] | null = null,
  ) {
    if (bytes.length !== product(shape) * SIZES[dtype]) {
      throw new WireError(`${bytes.length} bytes are no ${dtype} tensor of shape ${shape.join('×')}`);
    }
    this.strides = strides && !sameNumbers(strides, rowMajor(shape)) ? strides : null;
  }

  static of(dtype: Dtype, shape: readonly number[], array: ArrayBufferView): Tensor {
    return new Tensor(dtype, shape, new Uint8Array(array.buffer, array.byteOffset, array.byteLength));
  }

  static float32(shape: readonly number[], array: Float32Array): Tensor {
    return Tensor.of("float32", shape, array);
  }

  get size(): number {
    return product(this.shape);
  }

  get isFloating(): boolean {
    return FLOATING.has(this.dtype);
  }

  /** The elements in memory order, as float32. Raises WireError for another dtype. */
  floats(): Float32Array {
    if (this.dtype !== "float32") throw new WireError(`a tensor of ${this.dtype} where float32 is expected`);
    return viewed(this.bytes, 4, Float32Array);
  }

  /** The same elements in row-major order, copied where they lie otherwise. */
  contiguous(): Tensor {
    const strides = this.strides;
    if (strides === null) return this;
    const size = SIZES[this.dtype];
    const bytes = new Uint8Array(this.bytes.length);
    const index = this.shape.map(() => 0);
    for (let to = 0; to < bytes.length; to += size) {
      const from = index.reduce((sum, place, dim) => sum + place * strides[dim], 0) * size;
      for (let byte = 0; byte < size; byte++) bytes[to + byte] = this.bytes[from + byte];
      for (let dim = index.length - 1; dim >= 0 && ++index[dim] === this.shape[dim]; dim--) index[dim] = 0;
    }
    return new Tensor(this.dtype, this.shape, bytes);
  }
}

interface ArrayKind<T> {
  new (buffer: ArrayBufferLike, offset: number, length: number): T;
}

/** The bytes as numbers of `size` bytes each: a view where they lie at a multiple of it, else a copy. */
export function viewed<T>(bytes: Uint8Array, size: number, kind: ArrayKind<T>): T {
  const at = bytes.byteOffset % size ? bytes.slice() : bytes;
  return new kind(at.buffer, at.byteOffset, at.byteLength / size);
}
