/** Values between the wire and the engine, which wants elements in row-major order. */

import { DataError } from "../errors.ts";
import type { Arrays, Dim, DtypeName, Tensor as EngineTensor, Value as EngineValue, ValueSpec } from "../engine/types.ts";
import type { Value } from "../protocol/messages.ts";
import { itemBytes, product, sameNumbers, Tensor, viewed } from "../protocol/tensor.ts";
import type { Expected } from "./codecs/packer.ts";

const MAX_ELEMENTS = 2 ** 31;

const ARRAYS: { readonly [K in DtypeName]: new (buffer: ArrayBufferLike, offset: number, length: number) => Arrays[K] } = {
  float32: Float32Array, float64: Float64Array, float16: Uint16Array, bfloat16: Uint16Array, int64: BigInt64Array,
  int32: Int32Array, int16: Int16Array, int8: Int8Array, uint8: Uint8Array, bool: Uint8Array,
};

export function toEngine(tensor: Tensor): EngineTensor {
  const { dtype, shape, bytes } = tensor.contiguous();
  if (!(dtype in ARRAYS)) throw new DataError(`a tensor of ${dtype} arrived, which this page can't compute with`);
  const name = dtype as DtypeName;
  return { dtype: name, shape, data: viewed<Arrays[DtypeName]>(bytes, itemBytes(dtype), ARRAYS[name]) };
}

export function fromEngine(tensor: EngineTensor): Tensor {
  return Tensor.of(tensor.dtype, tensor.shape, tensor.data);
}

export function valueFromEngine(value: EngineValue): Tensor | number {
  return typeof value === "number" ? value : fromEngine(value);
}

/** Whether any of the numbers is NaN. */
export function hasNan(value: EngineValue): boolean {
  if (typeof value === "number" || (value.dtype !== "float32" && value.dtype !== "float64")) return false;
  return (value.data as Float32Array).some(Number.isNaN);
}

export function isFinite(tensor: EngineTensor | null): boolean {
  if (tensor === null || (tensor.dtype !== "float32" && tensor.dtype !== "float64")) return true;
  return (tensor.data as Float32Array).every(Number.isFinite);
}

/** The same shape with NaN in place of every number: it tells the worker that the step is to pass without effect. */
export function spoilt<T extends EngineValue | null>(value: T): T {
  if (value === null || typeof value === "number" || value.dtype !== "float32") return value;
  return { ...(value as EngineTensor), data: new Float32Array(value.data.length).fill(NaN) } as T;
}

function sizeOf(dim: Dim, samples: number): number {
  return typeof dim === "number" ? dim : dim.batch * samples + (dim.plus ?? 0);
}

/** Shapes and dtypes that a cut carries for a batch of so many samples. */
export function expectedOf(specs: readonly ValueSpec[], samples: number): Expected[] {
  return specs.map(({ dtype, shape = [] }) => {
    if (dtype === null) return null;
    const sizes = shape.map((dim) => sizeOf(dim, samples));
    if (sizes.some((size) => size < 0) || product(sizes) > MAX_ELEMENTS) throw new DataError("a batch of that size does not fit the cut");
    return { dtype, shape: sizes };
  });
}

/** What arrived at a cut, if it is what is expected there; else DataError. */
export function checkedValues(values: readonly Value[], specs: readonly ValueSpec[], samples: number): EngineValue[] {
  const expected = expectedOf(specs, samples);
  if (values.length !== specs.length) throw new DataError(`${values.length} values arrived at a cut of ${specs.length}`);
  return values.map((value, at) => {
    const form = expected[at];
    if (form === null && typeof value === "number") {
      const [dim = 0] = specs[at].shape ?? [];
      if (value === sizeOf(dim, samples)) return value;
    } else if (form !== null && value instanceof Tensor && value.dtype === form.dtype && sameNumbers(value.shape, form.shape)) {
      return toEngine(value);
    }
    throw new DataError(`the server sent another value than ${specs[at].name.slice(0, 60)} is`);
  });
}

/** Gradients as they arrived, one for each output: absent, or of the output's shape and dtype; else DataError. */
export function checkedGradients(gradients: readonly Value[], outputs: readonly EngineValue[]): (EngineTensor | null)[] {
  if (gradients.length !== outputs.length) throw new DataError(`${gradients.length} gradients arrived for ${outputs.length} values`);
  return gradients.map((gradient, at) => {
    const output = outputs[at];
    if (gradient === null || typeof output === "number") return null;
    const fits = gradient instanceof Tensor && gradient.dtype === output.dtype && sameNumbers(gradient.shape, output.shape);
    if (!fits) throw new DataError("the server sent a gradient of another shape than its value has");
    return toEngine(gradient);
  });
}
