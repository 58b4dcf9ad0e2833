/** Shapes that are stretched to one another, and sums back over what was stretched. */

import { PortableError } from "../../errors.ts";
import { sizeOf, type Machine, type NdArray, type Shape } from "../nd_array.ts";
import type { Context } from "../tape.ts";

export function sameShape(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((side, place) => side === b[place]);
}

/** The shape that several are stretched to. */
export function broadcastShape(...shapes: Shape[]): number[] {
  const dimensions = Math.max(...shapes.map((shape) => shape.length));
  return Array.from({ length: dimensions }, (_, place) => {
    const sides = shapes.map((shape) => shape[place - dimensions + shape.length] ?? 1).filter((side) => side !== 1);
    const side = sides[0] ?? 1;
    if (sides.some((other) => other !== side)) throw new PortableError("shapes can't be stretched to one another");
    return side;
  });
}

export function stridesOf(shape: Shape): number[] {
  const strides = new Array<number>(shape.length);
  let step = 1;
  for (let place = shape.length - 1; place >= 0; place--) {
    strides[place] = step;
    step *= shape[place];
  }
  return strides;
}

/** Strides of a tensor of `shape` that is stretched to `target`: 0 where it is. */
export function stretchedStrides(shape: Shape, target: Shape): number[] {
  const own = stridesOf(shape);
  return target.map((_, place) => {
    const at = place - target.length + shape.length;
    return at < 0 || shape[at] === 1 ? 0 : own[at];
  });
}

export const READ = 0;
export const WRITE = 1;
export const ADD = 2;

/** Go through `from` by the strides, beginning at `offset`: see `strided` of the kernels. `shape` is that of `to`. */
export function walk(
  m: Machine, mode: number, shape: Shape, strides: readonly number[], from: NdArray, offset: number, to: NdArray,
): void {
  if (!sizeOf(shape)) return;
  const sides = shape.length ? shape : [1];
  const steps = shape.length ? strides : [1];
  if (from.isFloat) {
    m.withInts([...sides, ...steps], (at) => m.kernels.strided(mode, sides.length, at, from.at + 4 * offset, to.at));
    return;
  }
  const source = from.whole!;
  const target = to.whole!;
  const counter = sides.map(() => 0);
  let at = offset;
  for (let place = 0; place < target.length; place++) {
    if (mode === READ) target[place] = source[at];
    else source[at] = target[place];
    for (let d = sides.length - 1; d >= 0; d--) {
      at += steps[d];
      if (++counter[d] < sides[d]) break;
      at -= steps[d] * sides[d];
      counter[d] = 0;
    }
  }
}

/** Uninitialized memory for a tensor like another, of another shape. */
export function blank(m: Machine, kind: NdArray["kind"], shape: Shape): NdArray {
  return kind === "float32" ? m.make(shape) : kind === "int64" ? m.integers(shape) : m.booleans(shape);
}

/** The tensor stretched to a shape, with a holder of its own. */
export function stretched(m: Machine, x: NdArray, shape: Shape): NdArray {
  if (sameShape(x.shape, shape)) return m.hold(x.shaped(shape));
  const out = blank(m, x.kind, shape);
  walk(m, READ, shape, stretchedStrides(x.shape, shape), x, 0, out);
  return out;
}

/** Sums over what was stretched: a gradient of the stretched tensor becomes one of `shape`. */
export function summedTo(m: Machine, gradient: NdArray, shape: Shape): NdArray {
  if (sameShape(gradient.shape, shape)) return m.hold(gradient.shaped(shape));
  const extra = gradient.shape.length - shape.length;
  const dims = gradient.shape.map((_, place) => place).filter((place) => place < extra || (shape[place - extra] === 1 && gradient.shape[place] !== 1));
  return sumOver(m, gradient, dims).shaped(shape);
}

/** The sum over dimensions, which are left out. */
export function sumOver(m: Machine, x: NdArray, dims: readonly number[]): NdArray {
  const kept = x.shape.map((_, place) => place).filter((place) => !dims.includes(place));
  const shape = kept.map((place) => x.shape[place]);
  const width = dims.reduce((product, place) => product * x.shape[place], 1);
  const sorted = permuted(m, x, [...kept, ...dims]);
  const out = m.make(shape);
  m.kernels.rowSums(out.size, width, sorted.at, out.at);
  m.drop(sorted);
  return out;
}

/** The dimensions in another order, with a holder of its own. */
export function permuted(m: Machine, x: NdArray, order: readonly number[]): NdArray {
  const shape = order.map((place) => x.shape[place]);
  if (keepsOrder(x.shape, order)) return m.hold(x.shaped(shape));
  const strides = stridesOf(x.shape);
  const out = blank(m, x.kind, shape);
  walk(m, READ, shape, order.map((place) => strides[place]), x, 0, out);
  return out;
}

/** Whether the numbers lie in the same order afterwards: only dimensions of one were moved. */
function keepsOrder(shape: Shape, order: readonly number[]): boolean {
  const long = order.filter((place) => shape[place] !== 1);
  return long.every((place, at) => at === 0 || place > long[at - 1]);
}

export function dimension(place: number, count: number): number {
  const found = place < 0 ? place + Math.max(count, 1) : place;
  if (found < 0 || found >= Math.max(count, 1)) throw new PortableError(`a tensor of ${count} dimensions has no dimension ${place}`);
  return found;
}

/** Give a gradient to a tensor that was stretched. */
export function giveSummed(c: Context, to: NdArray, gradient: NdArray): void {
  if (!to.needsGrad) return c.m.drop(gradient);
  const sum = summedTo(c.m, gradient, to.shape);
  c.m.drop(gradient);
  c.give(to, sum);
}
