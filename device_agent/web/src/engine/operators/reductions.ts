/** Sums, means and extremes over dimensions. */

import type { Arguments } from "../arguments.ts";
import { NotSupported } from "../../errors.ts";
import { BINARY, UNARY } from "../kernels.ts";
import type { NdArray } from "../nd_array.ts";
import type { Context } from "../tape.ts";
import { blank, dimension, permuted, stretched, sumOver } from "./broadcast.ts";
import { cast } from "./kinds.ts";
import { apply } from "./functions.ts";
import { define } from "./rules.ts";

/** The dimensions that are meant; none means all. */
function dimsOf(x: NdArray, args: Arguments): number[] {
  const given = args.has("dim") ? args.numbers("dim") : [];
  if (!given.length) return x.shape.map((_, place) => place);
  return x.shape.length ? given.map((dim) => dimension(dim, x.shape.length)).sort((a, b) => a - b) : [];
}

function keptShape(x: NdArray, dims: readonly number[]): number[] {
  return x.shape.map((side, place) => (dims.includes(place) ? 1 : side));
}

function resultShape(x: NdArray, dims: readonly number[], args: Arguments): number[] {
  return args.flag("keepdim") ? keptShape(x, dims) : x.shape.filter((_, place) => !dims.includes(place));
}

function count(x: NdArray, dims: readonly number[]): number {
  return dims.reduce((product, dim) => product * x.shape[dim], 1);
}

/** The sum over dimensions, times a factor. */
function summed(c: Context, args: Arguments, factor: (x: NdArray, dims: readonly number[]) => number): NdArray {
  const self = args.tensor("self");
  const dims = dimsOf(self, args);
  const kind = args.kind() ?? (self.isFloat ? "float32" : "int64");
  const shape = resultShape(self, dims, args);
  if (!self.isFloat && kind === "int64") return wholeSum(c, self, dims, shape);
  const x = self.isFloat ? c.m.hold(self) : cast(c.m, self, "float32");
  const times = factor(x, dims);
  const sum = sumOver(c.m, x, dims);
  c.m.drop(x);
  const out = sum.shaped(shape);
  if (times !== 1) c.kernels.affine(out.at, times, 0, out.at, out.size);
  if (c.wants(self)) {
    c.record(out, [], (g) => {
      const wide = stretched(c.m, g!.shaped(keptShape(self, dims)), self.shape);
      const dx = c.m.make(self.shape);
      c.kernels.affine(wide.at, times, 0, dx.at, dx.size);
      c.m.drop(wide);
      c.give(self, dx);
    });
  }
  return out;
}

/** Rows of the numbers that are reduced together. */
function rowsOf(c: Context, x: NdArray, dims: readonly number[]): NdArray {
  const kept = x.shape.map((_, place) => place).filter((place) => !dims.includes(place));
  return permuted(c.m, x, [...kept, ...dims]);
}

function wholeSum(c: Context, x: NdArray, dims: readonly number[], shape: readonly number[]): NdArray {
  const rows = rowsOf(c, x, dims);
  const out = c.m.integers(shape);
  const width = count(x, dims);
  for (let row = 0; row < out.size; row++) {
    let sum = 0;
    for (let place = 0; place < width; place++) sum += rows.whole![row * width + place];
    out.whole![row] = sum;
  }
  return out;
}

define("sum sum.dim_IntList", "self dim keepdim dtype", (c, args) => summed(c, args, () => 1));
define("mean mean.dim", "self dim keepdim dtype", (c, args) => summed(c, args, (x, dims) => 1 / count(x, dims)));

/** The variance, from the mean over the same dimensions. */
function variance(c: Context, args: Arguments, correction: number): NdArray {
  const { m, kernels } = c;
  const x = args.tensor("self");
  const dims = dimsOf(x, args);
  const number = count(x, dims);
  const mean = sumOver(m, x, dims);
  kernels.affine(mean.at, 1 / number, 0, mean.at, mean.size);
  const wide = stretched(m, mean.shaped(keptShape(x, dims)), x.shape);
  m.drop(mean);
  const away = m.make(x.shape);
  kernels.binary(BINARY.sub, x.at, wide.at, away.at, away.size);
  m.drop(wide);
  const square = m.make(x.shape);
  kernels.binary(BINARY.mul, away.at, away.at, square.at, square.size);
  const out = sumOver(m, square, dims).shaped(resultShape(x, dims, args));
  m.drop(square);
  const factor = 1 / (number - correction);
  kernels.affine(out.at, factor, 0, out.at, out.size);
  if (c.wants(x)) {
    c.record(out, [away], (g) => {
      const gradient = stretched(m, g!.shaped(keptShape(x, dims)), x.shape);
      const dx = m.make(x.shape);
      kernels.binary(BINARY.mul, gradient.at, away.at, dx.at, dx.size);
      kernels.affine(dx.at, 2 * factor, 0, dx.at, dx.size);
      m.drop(gradient);
      c.give(x, dx);
    });
  }
  m.drop(away);
  return out;
}

const unbiased = (args: Arguments): number => (args.has("correction") ? args.number("correction") : args.flag("unbiased", true) ? 1 : 0);

define("var var.dim", "self dim unbiased keepdim", (c, args) => variance(c, args, unbiased(args)));
define("var.correction", "self dim correction keepdim", (c, args) => variance(c, args, unbiased(args)));
define("std std.dim", "self dim unbiased keepdim", (c, args) => root(c, variance(c, args, unbiased(args))));
define("std.correction", "self dim correction keepdim", (c, args) => root(c, variance(c, args, unbiased(args))));

function root(c: Context, x: NdArray): NdArray {
  const out = apply(c, "sqrt", x);
  c.m.drop(x);
  return out;
}

/** The extreme of each row and its place; NaN is extreme. */
function extremes(c: Context, x: NdArray, dims: readonly number[], greatest: boolean): [Float64Array, Float64Array] {
  const rows = rowsOf(c, x, dims);
  const width = count(x, dims);
  if (!width) throw new NotSupported("the extreme of no numbers");
  const numbers = c.m.numbers(rows);
  const [values, places] = [new Float64Array(x.size / width), new Float64Array(x.size / width)];
  for (let row = 0; row < values.length; row++) {
    let at = row * width;
    for (let place = at + 1; place < (row + 1) * width; place++) {
      const better = greatest ? numbers[place] > numbers[at] : numbers[place] < numbers[at];
      if (better || (Number.isNaN(numbers[place]) && !Number.isNaN(numbers[at]))) at = place;
    }
    values[row] = numbers[at];
    places[row] = at - row * width;
  }
  c.m.drop(rows);
  return [values, places];
}

function filledWith(c: Context, kind: NdArray["kind"], shape: readonly number[], values: Float64Array): NdArray {
  const out = blank(c.m, kind, shape);
  c.m.numbers(out).set(values);
  return out;
}

/** The extreme over one dimension, with the gradient at its place. */
function extreme(c: Context, args: Arguments, greatest: boolean): [NdArray, NdArray] {
  const x = args.tensor("self");
  const dims = dimsOf(x, args);
  const [values, places] = extremes(c, x, dims, greatest);
  const shape = resultShape(x, dims, args);
  const out = filledWith(c, x.kind, shape, values);
  if (c.wants(x)) {
    c.record(out, [], (g) => {
      const gradients = c.m.floats(g!).slice();
      const width = count(x, dims);
      const rows = c.m.filled([values.length, width], 0);
      const numbers = c.m.floats(rows);
      places.forEach((place, row) => (numbers[row * width + place] = gradients[row]));
      c.give(x, unsorted(c, rows, x, dims));
    });
  }
  return [out, c.m.integers(shape, places)];
}

/** Rows as `rowsOf` made them, back in x's order; they are dropped. */
function unsorted(c: Context, rows: NdArray, x: NdArray, dims: readonly number[]): NdArray {
  const order = [...x.shape.map((_, place) => place).filter((place) => !dims.includes(place)), ...dims];
  const out = permuted(c.m, rows.shaped(order.map((place) => x.shape[place])), x.shape.map((_, place) => order.indexOf(place)));
  c.m.drop(rows);
  return out;
}

/** The extreme over several dimensions: where it is there more than once, its gradient is divided. */
function shared(c: Context, args: Arguments, greatest: boolean): NdArray {
  const x = args.tensor("self");
  const dims = dimsOf(x, args);
  const [values] = extremes(c, x, dims, greatest);
  const out = filledWith(c, x.kind, resultShape(x, dims, args), values);
  if (c.wants(x)) {
    c.record(out, [x], (g) => {
      const gradients = c.m.floats(g!).slice();
      const width = count(x, dims);
      const rows = rowsOf(c, x, dims);
      const divided = c.m.make([values.length, width]);
      const [numbers, result] = [c.m.floats(rows), c.m.floats(divided)];
      values.forEach((value, row) => {
        const own = numbers.subarray(row * width, (row + 1) * width);
        const times = own.reduce((sum, each) => sum + (each === value ? 1 : 0), 0);
        own.forEach((each, place) => (result[row * width + place] = each === value ? gradients[row] / times : 0));
      });
      c.m.drop(rows);
      c.give(x, unsorted(c, divided, x, dims));
    });
  }
  return out;
}

define("max.dim", "self dim keepdim", (c, args) => extreme(c, args, true));
define("min.dim", "self dim keepdim", (c, args) => extreme(c, args, false));
define("amax", "self dim keepdim", (c, args) => shared(c, args, true));
define("amin", "self dim keepdim", (c, args) => shared(c, args, false));
define("max", "self", (c, args) => shared(c, args, true));
define("min", "self", (c, args) => shared(c, args, false));

function placeOf(greatest: boolean) {
  return (c: Context, args: Arguments): NdArray => {
    const x = args.tensor("self");
    const dims = dimsOf(x, args);
    return c.m.integers(resultShape(x, dims, args), extremes(c, x, dims, greatest)[1]);
  };
}

define("argmax", "self dim keepdim", placeOf(true));
define("argmin", "self dim keepdim", placeOf(false));

function logic(all: boolean) {
  return (c: Context, args: Arguments): NdArray => {
    const x = args.tensor("self");
    const dims = dimsOf(x, args);
    const rows = rowsOf(c, x, dims);
    const width = count(x, dims);
    const numbers = c.m.numbers(rows);
    const out = c.m.booleans(resultShape(x, dims, args));
    for (let row = 0; row < out.size; row++) {
      const own = numbers.subarray(row * width, (row + 1) * width);
      out.whole![row] = (all ? own.every(Boolean) : own.some(Boolean)) ? 1 : 0;
    }
    c.m.drop(rows);
    return out;
  };
}

define("all all.dim all.dims", "self dim keepdim", logic(true));
define("any any.dim any.dims", "self dim keepdim", logic(false));

define("cumsum", "self dim dtype", (c, args) => {
  const self = args.tensor("self");
  const kind = args.kind() ?? (self.isFloat ? "float32" : "int64");
  const dims = [dimension(args.number("dim"), self.shape.length)];
  const running = (x: NdArray, backwards: boolean): NdArray => {
    const rows = rowsOf(c, x, dims);
    const width = count(x, dims);
    const sums = blank(c.m, x.kind, rows.shape);
    const [from, to] = [c.m.numbers(rows), c.m.numbers(sums)];
    for (let row = 0; row * width < x.size; row++) {
      let sum = 0;
      for (let step = 0; step < width; step++) {
        const place = row * width + (backwards ? width - 1 - step : step);
        to[place] = sum += from[place];
      }
    }
    c.m.drop(rows);
    return unsorted(c, sums, x, dims);
  };
  const x = self.kind === kind ? c.m.hold(self) : cast(c.m, self, kind);
  const out = running(x, false);
  c.m.drop(x);
  if (c.wants(self)) c.record(out, [], (g) => c.give(self, running(g!, true)));
  return out;
});

define("linalg_vector_norm", "self ord dim keepdim dtype", (c, args) => norm(c, args, args.number("ord", 2)));
define("norm.ScalarOpt_dim", "self p dim keepdim", (c, args) => norm(c, args, args.number("p", 2)));
define("norm.Scalar", "self p", (c, args) => norm(c, args, args.number("p", 2)));

/** The length of vectors: its gradient is the direction, and 0 where there is none. */
function norm(c: Context, args: Arguments, order: number): NdArray {
  if (order !== 2) throw new NotSupported(`${args.op} of order ${order}`, [args.op]);
  const { m, kernels } = c;
  const x = args.tensor("self");
  const dims = dimsOf(x, args);
  const square = m.make(x.shape);
  kernels.binary(BINARY.mul, x.at, x.at, square.at, square.size);
  const out = sumOver(m, square, dims).shaped(resultShape(x, dims, args));
  m.drop(square);
  kernels.unary(UNARY.sqrt, out.at, out.at, out.size, 0, 0);
  if (c.wants(x)) {
    c.record(out, [x, out], (g) => {
      const ratio = m.make(out.shape);
      const [gradients, lengths, ratios] = [g!, out, ratio].map((each) => m.floats(each));
      for (let i = 0; i < ratios.length; i++) ratios[i] = lengths[i] ? gradients[i] / lengths[i] : 0;
      const wide = stretched(m, ratio.shaped(keptShape(x, dims)), x.shape);
      const dx = m.make(x.shape);
      kernels.binary(BINARY.mul, wide.at, x.at, dx.at, dx.size);
      m.drop(ratio);
      m.drop(wide);
      c.give(x, dx);
    });
  }
  return out;
}
