/** Tensors within the engine: row-major, float32 in the kernels' memory, integers and booleans beside it. */

import { DataError, NotSupported } from "../errors.ts";
import type { Arena, Block } from "./arena.ts";
import type { Kernels } from "./kernels.ts";
import type { DtypeName, Tensor } from "./types.ts";

export type Kind = "float32" | "int64" | "bool";
export type Shape = readonly number[];

export const KINDS: readonly string[] = ["float32", "int64", "bool"];

export function sizeOf(shape: Shape): number {
  return shape.reduce((product, side) => product * side, 1);
}

/** A tensor. Its numbers are changed by nobody but its maker; views share its block. */
export class NdArray {
  /** Whether a gradient flows back to it. */
  needsGrad = false;
  /** What has flowed back so far. */
  grad: NdArray | null = null;
  readonly size: number;

  constructor(
    readonly kind: Kind,
    readonly shape: Shape,
    /** The memory of floating numbers. */
    readonly block: Block | null,
    /** The numbers of integers (whole, below 2^53) or booleans (0 or 1). */
    readonly whole: Float64Array | Uint8Array | null,
  ) {
    this.size = sizeOf(shape);
  }

  get at(): number {
    if (!this.block) throw new NotSupported(`an operator over ${this.kind} numbers is called where float32 is needed`);
    return this.block.at;
  }

  get isFloat(): boolean {
    return this.block !== null;
  }

  /** The same numbers in another shape, without a holder of its own. */
  shaped(shape: Shape): NdArray {
    return new NdArray(this.kind, shape, this.block, this.whole);
  }
}

/** The kernels with their memory: makes and frees tensors. */
export class Machine {
  constructor(
    readonly kernels: Kernels,
    readonly arena: Arena,
  ) {}

  /** Floating numbers that are not set yet. */
  make(shape: Shape): NdArray {
    return new NdArray("float32", [...shape], this.arena.take(4 * sizeOf(shape)), null);
  }

  filled(shape: Shape, value: number): NdArray {
    const out = this.make(shape);
    this.kernels.fill(out.at, value, out.size);
    return out;
  }

  integers(shape: Shape, values?: ArrayLike<number>): NdArray {
    return new NdArray("int64", [...shape], null, values ? Float64Array.from(values) : new Float64Array(sizeOf(shape)));
  }

  booleans(shape: Shape, values?: ArrayLike<number>): NdArray {
    return new NdArray("bool", [...shape], null, values ? Uint8Array.from(values) : new Uint8Array(sizeOf(shape)));
  }

  /** The numbers of a floating tensor. The array is valid until memory is taken the next time. */
  floats(x: NdArray): Float32Array {
    return new Float32Array(this.arena.buffer, x.at, x.size);
  }

  /** The numbers of a tensor of any kind, for reading; as `floats`, valid until memory is taken. */
  numbers(x: NdArray): Float32Array | Float64Array | Uint8Array {
    return x.whole ?? this.floats(x);
  }

  copy(x: NdArray): NdArray {
    if (x.whole) return new NdArray(x.kind, x.shape, null, x.whole.slice());
    const out = this.make(x.shape);
    this.floats(out).set(this.floats(x));
    return out;
  }

  /** Write the numbers of another tensor of the same kind and size. */
  assign(to: NdArray, from: NdArray): void {
    if (to.whole) to.whole.set(from.whole as Float64Array);
    else this.floats(to).set(this.floats(from));
  }

  hold<T extends NdArray>(x: T): T {
    if (x.block) this.arena.hold(x.block);
    return x;
  }

  drop(x: NdArray): void {
    if (x.block) this.arena.drop(x.block);
  }

  /** The bytes of scratch memory, while `work` runs. */
  scratch<T>(bytes: number, work: (at: number) => T): T {
    const block = this.arena.take(bytes);
    try {
      return work(block.at);
    } finally {
      this.arena.drop(block);
    }
  }

  /** 32-bit integers in the kernels' memory, while `work` runs. */
  withInts<T>(values: ArrayLike<number>, work: (at: number) => T): T {
    return this.scratch(4 * values.length, (at) => {
      new Int32Array(this.arena.buffer, at, values.length).set(values);
      return work(at);
    });
  }

  /** Take in a tensor from outside. Throws DataError where its array is not of its shape. */
  imported(tensor: Tensor): NdArray {
    const { dtype, shape, data } = tensor;
    if (data.length !== sizeOf(shape)) throw new DataError(`a tensor of shape [${shape.join(", ")}] has ${data.length} numbers`);
    if (dtype === "float32") {
      const out = this.make(shape);
      this.floats(out).set(data as Float32Array);
      return out;
    }
    if (dtype === "bool") return this.booleans(shape, Array.from(data as Uint8Array, (value) => (value ? 1 : 0)));
    if (dtype === "int64") {
      const values = Float64Array.from(data as BigInt64Array, Number);
      if (!values.every(Number.isSafeInteger)) throw new DataError("an integer is beyond ±2^53, which this device can't compute with");
      return this.integers(shape, values);
    }
    throw new NotSupported(`this device does not compute with ${dtype} numbers`);
  }

  exported(x: NdArray): Tensor {
    const shape = [...x.shape];
    if (x.kind === "float32") return { dtype: "float32", shape, data: this.floats(x).slice() };
    if (x.kind === "bool") return { dtype: "bool", shape, data: (x.whole as Uint8Array).slice() };
    return { dtype: "int64" satisfies DtypeName, shape, data: BigInt64Array.from(x.whole as Float64Array, BigInt) };
  }
}
