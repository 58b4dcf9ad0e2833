/** The initial weights of head and tail, drawn from the device's secret by the job's law: `device_agent/training/ends.py`. */

import { JobError } from "../errors.ts";
import type { Ends } from "./job.ts";
import { isDtype, product, Tensor } from "../protocol/tensor.ts";
import { fill, Key } from "../random/index.ts";
import type { Tensors } from "../storage/tensors.ts";

const SOURCES: Readonly<Record<string, number>> = {
  uniform: 2, normal: 2, trunc_normal: 4, bernoulli: 1, exponential: 1, integers: 2, permutation: 0,
};
const MAX_ELEMENTS = 1 << 28;
/** Elements that a law's memory may have for each element that it gives, and those that any law may have. */
const ROOM = 8;
const SPARE = 1 << 20;

type Law = NonNullable<Ends["law"]>;
type Step = NonNullable<Law["steps"]>[number];
type View = NonNullable<Law["views"]>[number];
type Numbers = Float32Array | Float64Array;

/** The key of a device for the job of that digest: everything secret of a training begins here. */
export function jobKey(secret: Uint8Array, device: string, job: string): Key {
  return new Key(secret).at("device", device, "job", job);
}

/** The drawn tensors by `role/name`. Throws JobError for a law that is faulty, or that this build can't run. */
export function drawEnds(ends: Ends, key: Key): Tensors {
  return runLaw(ends, (place, step, out) => fill(out, step.op, step.args as number[], key.at("source", place)));
}

/** x · (1 + σ·ξ) for each number x, with ξ standard normal. */
export function perturbed(tensor: Tensor, sigma: number, key: Key): Tensor {
  const values = tensor.floats();
  const noise = new Float64Array(values.length);
  fill(noise, "normal", [0, 1], key);
  return Tensor.float32(tensor.shape, values.map((value, at) => value * (1 + sigma * noise[at])));
}

/** Run a law; `draw` fills what a source gives, in the order of the view's elements. */
export function runLaw(ends: Ends, draw: (place: number, step: Step, out: Numbers) => void): Tensors {
  const { memory = [], views = [], steps = [] } = ends.law ?? {};
  const drawn = Object.entries(ends.drawn ?? {}).flatMap(([role, table]) =>
    Object.entries(table ?? {}).map(([name, place]) => [`${role}/${name}`, place] as const),
  );
  checkLaw(ends, drawn.map(([, place]) => place));
  const blocks = memory.map(({ dtype, size }) => {
    if (dtype !== "float32" && dtype !== "float64") throw new JobError(`the training draws numbers of ${dtype}, which a browser can't do yet`);
    return dtype === "float32" ? new Float32Array(size) : new Float64Array(size);
  });
  for (const [place, step] of steps.entries()) take(place, step, views, blocks, draw);
  return Object.fromEntries(
    drawn.map(([path, place]) => {
      const view = views[place];
      const { dtype } = memory[view.memory];
      if (!isDtype(dtype)) throw new JobError("a law with an unknown dtype");
      return [path, Tensor.of(dtype, view.shape, read(view, blocks[view.memory]))];
    }),
  );
}

function checkLaw(ends: Ends, results: readonly number[]): void {
  const { memory = [], views = [], steps = [] } = ends.law ?? {};
  const fits = (view: View): boolean => {
    const block = memory[view.memory];
    if (block === undefined || view.shape.length !== view.strides.length || product(view.shape) > MAX_ELEMENTS) return false;
    const last = view.shape.reduce((sum, size, dim) => sum + (size - 1) * view.strides[dim], view.offset ?? 0);
    return view.shape.includes(0) || last < block.size;
  };
  if (!views.every(fits)) throw new JobError("a law's view reaches outside its memory");
  const places = [...results, ...steps.flatMap(({ out = [] }) => out)];
  if (places.some((place) => views[place] === undefined)) throw new JobError("a law's tensor is no view of its memory");
  const given = results.reduce((sum, place) => sum + product(views[place].shape), 0);
  const taken = memory.reduce((sum, { size }) => sum + size, 0);
  if (taken > ROOM * given + SPARE) throw new JobError("a law needs far more memory than its tensors have");
}

function take(place: number, step: Step, views: readonly View[], blocks: readonly Numbers[], draw: (place: number, step: Step, out: Numbers) => void): void {
  const { op, args = [], kwargs = {}, out = [] } = step;
  if (Object.hasOwn(SOURCES, op)) {
    const fine = out.length === 1 && !Object.keys(kwargs).length && args.length === SOURCES[op] && args.every(Number.isFinite);
    if (!fine) throw new JobError(`source ${op} of a law has wrong arguments`);
    const view = views[out[0]];
    const block = blocks[view.memory];
    const numbers = block instanceof Float32Array ? new Float32Array(product(view.shape)) : new Float64Array(product(view.shape));
    draw(place, step, numbers);
    write(view, block, numbers);
    return;
  }
  const change = IN_PLACE[op];
  const view = views[refOf(args[0])];
  const [, number = 0, ...more] = args;
  if (change === undefined || view === undefined || typeof number !== "number" || more.length || out.length || Object.keys(kwargs).length) {
    throw new JobError(`the training draws its first weights by ${op}, which a browser can't do yet`, "train it with the Python agent");
  }
  const block = blocks[view.memory];
  write(view, block, read(view, block).map((value: number) => change(value, number)) as Numbers);
}

/** What initializers do to what they drew: the operators with a number beside the tensor. */
const IN_PLACE: Readonly<Record<string, (value: number, number: number) => number>> = {
  "aten.zero_.default": () => 0,
  "aten.fill_.Scalar": (_, number) => number,
  "aten.mul_.Scalar": (value, number) => value * number,
  "aten.mul_.Tensor": (value, number) => value * number,
  "aten.add_.Scalar": (value, number) => value + number,
  "aten.add_.Tensor": (value, number) => value + number,
};

function refOf(argument: unknown): number {
  return typeof argument === "object" && argument !== null && "ref" in argument ? Number(argument.ref) : -1;
}

/** The places in memory of a view's elements, in the order of its elements. */
function* placesOf({ shape, strides, offset = 0 }: View): Generator<number> {
  const index = shape.map(() => 0);
  for (let count = product(shape); count > 0; count--) {
    yield index.reduce((sum, at, dim) => sum + at * strides[dim], offset);
    for (let dim = index.length - 1; dim >= 0 && ++index[dim] === shape[dim]; dim--) index[dim] = 0;
  }
}

function read(view: View, block: Numbers): Numbers {
  const numbers = block instanceof Float32Array ? new Float32Array(product(view.shape)) : new Float64Array(product(view.shape));
  let at = 0;
  for (const place of placesOf(view)) numbers[at++] = block[place];
  return numbers;
}

function write(view: View, block: Numbers, numbers: Numbers): void {
  let at = 0;
  for (const place of placesOf(view)) block[place] = numbers[at++];
}
