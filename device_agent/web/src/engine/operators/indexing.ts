/** Numbers by their places: embeddings, gathers, indices. */

import { DataError, NotSupported } from "../../errors.ts";
import { NdArray, sizeOf } from "../nd_array.ts";
import type { Context } from "../tape.ts";
import { blank, broadcastShape, dimension, permuted, stretched, stridesOf } from "./broadcast.ts";
import { define } from "./rules.ts";

/** Places below `size`, negative ones counted from the end. Throws DataError for one that is outside. */
function checked(places: ArrayLike<number>, size: number, op: string): Float64Array {
  return Float64Array.from(places, (place) => {
    const at = place < 0 ? place + size : place;
    if (!(at >= 0 && at < size)) throw new DataError(`${op}: number ${place} is none of ${size}`);
    return at;
  });
}

/** Rows of x by their numbers, with the gradient added back to them. `skipped`: a row that gets none. */
function rowsAt(c: Context, x: NdArray, places: Float64Array, shape: readonly number[], skipped = -1): NdArray {
  const width = x.shape[0] ? x.size / x.shape[0] : 0;
  const out = blank(c.m, x.kind, shape);
  const [from, to] = [c.m.numbers(x), c.m.numbers(out)];
  places.forEach((place, row) => to.set(from.subarray(place * width, (place + 1) * width), row * width));
  if (c.wants(x)) {
    c.record(out, [], (g) => {
      const dx = c.m.filled(x.shape, 0);
      const [gradients, sums] = [c.m.floats(g!), c.m.floats(dx)];
      places.forEach((place, row) => {
        if (place === skipped) return;
        for (let i = 0; i < width; i++) sums[place * width + i] += gradients[row * width + i];
      });
      c.give(x, dx);
    });
  }
  return out;
}

define("embedding", "weight indices padding_idx scale_grad_by_freq sparse", (c, args) => {
  args.only("scale_grad_by_freq", false);
  args.only("sparse", false);
  const [weight, indices] = [args.tensor("weight"), args.tensor("indices")];
  const places = checked(indices.whole!, weight.shape[0], args.op);
  return rowsAt(c, weight, places, [...indices.shape, ...weight.shape.slice(1)], args.number("padding_idx", -1));
});

define("index_select", "self dim index", (c, args) => {
  const [x, index] = [args.tensor("self"), args.tensor("index")];
  const dim = dimension(args.number("dim"), x.shape.length);
  const others = x.shape.map((_, place) => place).filter((place) => place !== dim);
  return alongFirst(c, x, [dim, ...others], (first) => {
    return rowsAt(c, first, checked(index.whole!, x.shape[dim], args.op), [index.size, ...others.map((place) => x.shape[place])]);
  });
});

/** Work on x with its dimensions in another order, and turn the result, of as many dimensions, back. */
function alongFirst(c: Context, x: NdArray, order: readonly number[], work: (x: NdArray) => NdArray): NdArray {
  const back = order.map((_, place) => order.indexOf(place));
  const turnedX = turned(c, x, order);
  const found = work(turnedX);
  const out = turned(c, found, back);
  c.m.drop(turnedX);
  c.m.drop(found);
  return out;
}

function turned(c: Context, x: NdArray, order: readonly number[]): NdArray {
  const out = permuted(c.m, x, order);
  if (c.wants(x)) {
    const back = order.map((_, place) => order.indexOf(place));
    c.record(out, [], (g) => c.give(x, permuted(c.m, g!, back)));
  }
  return out;
}

/** Indices of tensors in some of the dimensions, `null` for the others. */
define("index.Tensor _unsafe_index.Tensor", "self indices", (c, args) => {
  const x = args.tensor("self");
  const given = args.get("indices") as readonly (NdArray | null)[];
  const indexed = given.map((each, place) => (each instanceof NdArray ? place : -1)).filter((place) => place >= 0);
  const tensors = indexed.map((place) => given[place] as NdArray);
  if (tensors.some((each) => each.kind !== "int64")) throw new NotSupported(`${args.op} by a mask, whose result has a size that depends on the data`, [args.op]);
  const shape = broadcastShape(...tensors.map((each) => each.shape));
  const wide = tensors.map((each, at) => checked(stretched(c.m, each, shape).whole!, x.shape[indexed[at]], args.op));
  const others = x.shape.map((_, place) => place).filter((place) => !indexed.includes(place));
  const sides = indexed.map((place) => x.shape[place]);
  const strides = stridesOf(sides);
  const places = new Float64Array(sizeOf(shape)).map((_, at) => wide.reduce((sum, each, dim) => sum + each[at] * strides[dim], 0));
  const first = turned(c, x, [...indexed, ...others]);
  const flat = seen(c, first, [sizeOf(sides), ...others.map((place) => x.shape[place])]);
  const found = rowsAt(c, flat, places, [...shape, ...others.map((place) => x.shape[place])]);
  for (const each of [first, flat]) c.m.drop(each);
  const together = indexed.every((place, at) => at === 0 || place === indexed[at - 1] + 1);
  if (!together || indexed[0] === 0) return found;
  const before = others.filter((place) => place < indexed[0]).length;
  const count = shape.length;
  const order = found.shape.map((_, place) => (place < before ? count + place : place < before + count ? place - before : place));
  const out = turned(c, found, order);
  c.m.drop(found);
  return out;
});

function seen(c: Context, x: NdArray, shape: readonly number[]): NdArray {
  const out = c.m.hold(x.shaped(shape));
  if (c.wants(x)) c.record(out, [], (g) => c.give(x, c.m.hold(g!.shaped(x.shape))));
  return out;
}

/** The places in x, as one row of numbers, that `gather` reads. */
function gathered(x: NdArray, dim: number, index: NdArray, op: string): Float64Array {
  const strides = stridesOf(x.shape);
  const own = stridesOf(index.shape);
  const at = checked(index.whole!, x.shape[dim], op);
  return at.map((place, number) =>
    strides.reduce((sum, stride, d) => sum + stride * (d === dim ? place : Math.floor(number / own[d]) % index.shape[d]), 0),
  );
}

define("gather", "self dim index sparse_grad", (c, args) => {
  const [x, index] = [args.tensor("self"), args.tensor("index")];
  const places = gathered(x, dimension(args.number("dim"), x.shape.length), index, args.op);
  const flat = seen(c, x, [x.size]);
  const out = rowsAt(c, flat, places, index.shape);
  c.m.drop(flat);
  return out;
});

define("one_hot", "self num_classes", (c, args) => {
  const x = args.tensor("self");
  const classes = args.number("num_classes", -1);
  if (classes < 0) throw new NotSupported(`${args.op} without a number of classes`, [args.op]);
  const out = c.m.integers([...x.shape, classes]);
  checked(x.whole!, classes, args.op).forEach((place, row) => (out.whole![row * classes + place] = 1));
  return out;
});
