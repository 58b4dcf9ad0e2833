/** Pooling in one and two dimensions. */

import { Arguments } from "../arguments.ts";
import { NotSupported } from "../../errors.ts";
import type { NdArray } from "../nd_array.ts";
import type { Context } from "../tape.ts";
import { define } from "./rules.ts";

interface Window {
  readonly planes: number;
  readonly h: number;
  readonly w: number;
  readonly oh: number;
  readonly ow: number;
  readonly kernel: readonly number[];
  readonly stride: readonly number[];
  readonly padding: readonly number[];
  readonly dilation: readonly number[];
}

function windowOf(x: NdArray, args: Arguments): Window {
  const [h, w] = x.shape.slice(-2);
  const kernel = args.each("kernel_size", 2);
  const given = args.numbers("stride", []);
  const stride = given.length ? args.each("stride", 2) : kernel;
  const padding = args.each("padding", 2, 0);
  const dilation = args.each("dilation", 2, 1);
  const ceil = args.flag("ceil_mode");
  const side = (size: number, d: number): number => {
    const room = size + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1;
    const count = (ceil ? Math.ceil : Math.floor)(room / stride[d]) + 1;
    return ceil && (count - 1) * stride[d] >= size + padding[d] ? count - 1 : count;
  };
  return { planes: x.size / (h * w), h, w, oh: side(h, 0), ow: side(w, 1), kernel, stride, padding, dilation };
}

function maxPool(c: Context, args: Arguments, x: NdArray): NdArray {
  const { m, kernels } = c;
  const s = windowOf(x, args);
  const out = m.make([...x.shape.slice(0, -2), s.oh, s.ow]);
  const index = m.make(out.shape); // 32-bit places, not numbers
  const [kh, kw] = s.kernel;
  const [sh, sw] = s.stride;
  const [ph, pw] = s.padding;
  const [dh, dw] = s.dilation;
  kernels.maxPool(s.planes, s.h, s.w, kh, kw, sh, sw, ph, pw, dh, dw, s.oh, s.ow, x.at, out.at, index.at);
  const self = args.tensor("self");
  if (c.wants(self)) {
    c.record(out, [index], (g) => {
      const dx = m.make(x.shape);
      kernels.maxPoolBack(s.planes, s.h * s.w, s.oh * s.ow, g!.at, index.at, dx.at);
      c.give(self, dx);
    });
  }
  m.drop(index);
  return out;
}

/** For each output: the first input of its window and the one behind its last. */
type Limits = readonly (readonly [number, number])[];

function average(c: Context, self: NdArray, x: NdArray, rows: Limits, columns: Limits, count: (i: number, j: number) => number): NdArray {
  const { m, kernels } = c;
  const [h, w] = x.shape.slice(-2);
  const planes = x.size / (h * w);
  const out = m.make([...x.shape.slice(0, -2), rows.length, columns.length]);
  const factors = m.make([rows.length, columns.length]);
  const numbers = m.floats(factors);
  rows.forEach((_, i) => columns.forEach((__, j) => (numbers[i * columns.length + j] = 1 / count(i, j))));
  const limits = [...rows, ...columns].flat();
  m.withInts(limits, (at) => kernels.averagePool(planes, h, w, rows.length, columns.length, at, factors.at, x.at, out.at));
  if (c.wants(self)) {
    c.record(out, [factors], (g) => {
      const dx = m.make(x.shape);
      m.withInts(limits, (at) => {
        kernels.averagePoolBack(planes, h, w, rows.length, columns.length, at, factors.at, g!.at, dx.at);
      });
      c.give(self, dx);
    });
  }
  m.drop(factors);
  return out;
}

function averagePool(c: Context, args: Arguments, x: NdArray): NdArray {
  const s = windowOf(x, args);
  const padded = args.flag("count_include_pad", true);
  const divisor = args.has("divisor_override") ? args.number("divisor_override") : null;
  const starts = (count: number, d: number): number[] => Array.from({ length: count }, (_, place) => place * s.stride[d] - s.padding[d]);
  const sides = [s.h, s.w];
  const [rows, columns] = [s.oh, s.ow].map((count, d) =>
    starts(count, d).map((start) => [Math.max(start, 0), Math.min(start + s.kernel[d], sides[d])] as const),
  );
  const [tall, wide] = [s.oh, s.ow].map((count, d) =>
    starts(count, d).map((start) => Math.min(start + s.kernel[d], sides[d] + s.padding[d]) - start),
  );
  return average(c, args.tensor("self"), x, rows, columns, (i, j) => {
    if (divisor !== null) return divisor;
    return padded ? tall[i] * wide[j] : (rows[i][1] - rows[i][0]) * (columns[j][1] - columns[j][0]);
  });
}

function adaptiveLimits(size: number, count: number): Limits {
  return Array.from({ length: count }, (_, place) => [Math.floor((place * size) / count), Math.ceil(((place + 1) * size) / count)]);
}

function adaptive(c: Context, self: NdArray, x: NdArray, wanted: readonly (number | null)[]): NdArray {
  const [rows, columns] = wanted.map((count, d) => adaptiveLimits(x.shape.at(d - 2)!, count ?? x.shape.at(d - 2)!));
  return average(c, self, x, rows, columns, (i, j) => (rows[i][1] - rows[i][0]) * (columns[j][1] - columns[j][0]));
}

const AVERAGE = "self kernel_size stride padding ceil_mode count_include_pad divisor_override";
const MAX = "self kernel_size stride padding dilation ceil_mode";

define("max_pool2d", MAX, (c, args) => maxPool(c, args, args.tensor("self")));
define("avg_pool2d", AVERAGE, (c, args) => averagePool(c, args, args.tensor("self")));
define("adaptive_avg_pool2d", "self output_size", (c, args) => {
  const x = args.tensor("self");
  const sizes = args.get("output_size");
  const items = Array.isArray(sizes) ? sizes : [sizes, sizes];
  if (!items.every((each) => each === null || typeof each === "number")) throw new NotSupported(`${args.op} of other sizes`, [args.op]);
  return adaptive(c, x, x, items as (number | null)[]);
});

/** In one dimension: one row, whose result has none. */
function inOne(pool: (c: Context, args: Arguments, x: NdArray) => NdArray, parameters: string) {
  return (c: Context, args: Arguments): NdArray => {
    const self = args.tensor("self");
    const one = (name: string, other: number): [string, number[]][] => (args.has(name) && args.numbers(name).length ? [[name, [other, ...args.numbers(name)]]] : []);
    const flags = ["ceil_mode", "count_include_pad"].filter((name) => args.has(name)).map((name) => [name, args.flag(name)] as const);
    const sizes = [...one("kernel_size", 1), ...one("stride", 1), ...one("padding", 0), ...one("dilation", 1)];
    const flat = new Arguments(args.op, parameters.split(" "), [self], [...sizes, ...flags]);
    const x = self.shaped([...self.shape.slice(0, -1), 1, self.shape.at(-1)!]);
    const out = pool(c, flat, x);
    return restored(c, out, [...out.shape.slice(0, -2), out.shape.at(-1)!]);
  };
}

/** The same value in another shape: gradients arrive in the shape of the result that was recorded. */
function restored(c: Context, x: NdArray, shape: readonly number[]): NdArray {
  const out = c.m.hold(x.shaped(shape));
  if (c.wants(x)) c.record(out, [], (g) => c.give(x, c.m.hold(g!.shaped(x.shape))));
  c.m.drop(x);
  return out;
}

define("max_pool1d", MAX, inOne(maxPool, MAX));
define("avg_pool1d", AVERAGE, inOne(averagePool, AVERAGE));
define("adaptive_avg_pool1d", "self output_size", (c, args) => {
  const self = args.tensor("self");
  const x = self.shaped([...self.shape.slice(0, -1), 1, self.shape.at(-1)!]);
  const out = adaptive(c, self, x, [1, args.numbers("output_size")[0]]);
  return restored(c, out, [...out.shape.slice(0, -2), out.shape.at(-1)!]);
});
