/** Other shapes, orders and parts of the same numbers. Parts and other orders are copies here. */

import type { Arguments } from "../arguments.ts";
import { NotSupported, PortableError } from "../../errors.ts";
import { sizeOf, type NdArray } from "../nd_array.ts";
import type { Context } from "../tape.ts";
import { ADD, READ, WRITE, blank, broadcastShape, dimension, giveSummed, permuted, stretched, stridesOf, walk } from "./broadcast.ts";
import { converted, passedOn } from "./kinds.ts";
import { define, type Result } from "./rules.ts";

/** The sizes with -1 replaced by what is left. */
function filledIn(shape: readonly number[], size: number): number[] {
  const known = shape.filter((side) => side !== -1).reduce((a, b) => a * b, 1);
  const found = shape.map((side) => (side === -1 ? size / known : side));
  if (sizeOf(found) !== size || found.some((side) => !Number.isInteger(side))) {
    throw new PortableError(`${size} numbers don't fit the shape [${shape.join(", ")}]`);
  }
  return found;
}

function reshaped(shapeOf: (x: NdArray, args: Arguments) => readonly number[]) {
  return (c: Context, args: Arguments): NdArray => {
    const x = args.tensor("self");
    return passedOn(c, x, filledIn(shapeOf(x, args), x.size));
  };
}

define("view _unsafe_view", "self size", reshaped((_, args) => args.numbers("size")), "whole");
define("reshape", "self shape", reshaped((_, args) => args.numbers("shape")), "whole");
define("view_as reshape_as", "self other", reshaped((_, args) => args.tensor("other").shape), "whole");
define("flatten.using_ints", "self start_dim end_dim", reshaped((x, args) => {
  if (!x.shape.length) return [1];
  const start = dimension(args.number("start_dim", 0), x.shape.length);
  const stop = dimension(args.number("end_dim", -1), x.shape.length);
  return [...x.shape.slice(0, start), sizeOf(x.shape.slice(start, stop + 1)), ...x.shape.slice(stop + 1)];
}), "whole");
define("unflatten.int", "self dim sizes", reshaped((x, args) => {
  const dim = dimension(args.number("dim"), x.shape.length);
  return [...x.shape.slice(0, dim), ...filledIn(args.numbers("sizes"), x.shape[dim]), ...x.shape.slice(dim + 1)];
}), "whole");
define("squeeze squeeze.dim squeeze.dims", "self dim", reshaped((x, args) => {
  const dims = args.has("dim") ? args.numbers("dim").map((dim) => dimension(dim, x.shape.length)) : x.shape.map((_, place) => place);
  return x.shape.filter((side, place) => side !== 1 || !dims.includes(place));
}), "whole");
define("unsqueeze", "self dim", reshaped((x, args) => {
  const dim = dimension(args.number("dim"), x.shape.length + 1);
  return [...x.shape.slice(0, dim), 1, ...x.shape.slice(dim)];
}), "whole");
define("ravel", "self", reshaped((x) => [x.size]), "whole");
define("alias contiguous", "self memory_format", reshaped((x) => x.shape), "whole");
define("detach", "self", (c, args) => c.m.hold(args.tensor("self").shaped(args.tensor("self").shape)), "whole");
define("clone", "self memory_format", reshaped((x) => x.shape));

define("_to_copy to.dtype", "self dtype non_blocking copy memory_format layout device pin_memory", (c, args) => {
  const x = args.tensor("self");
  return converted(c, x, args.kind() ?? x.kind);
}, "whole");
define("type_as to.other", "self other", (c, args) => converted(c, args.tensor("self"), args.tensor("other").kind), "whole");

function ordered(c: Context, x: NdArray, order: readonly number[]): NdArray {
  const out = permuted(c.m, x, order);
  if (c.wants(x)) {
    const back = order.map((_, place) => order.indexOf(place));
    c.record(out, [], (g) => c.give(x, permuted(c.m, g!, back)));
  }
  return out;
}

function swapped(x: NdArray, one: number, other: number): number[] {
  const [a, b] = [dimension(one, x.shape.length), dimension(other, x.shape.length)];
  return x.shape.map((_, place) => (place === a ? b : place === b ? a : place));
}

define("permute", "self dims", (c, args) => {
  const x = args.tensor("self");
  return ordered(c, x, args.numbers("dims").map((dim) => dimension(dim, x.shape.length)));
}, "part");
define("transpose.int swapaxes swapdims", "self dim0 dim1", (c, args) => {
  const x = args.tensor("self");
  return ordered(c, x, swapped(x, args.number("dim0"), args.number("dim1")));
}, "part");
define("t numpy_T", "self", (c, args) => {
  const x = args.tensor("self");
  return ordered(c, x, x.shape.map((_, place) => x.shape.length - 1 - place));
}, "part");
define("mT adjoint", "self", (c, args) => ordered(c, args.tensor("self"), swapped(args.tensor("self"), -1, -2)), "part");
define("movedim.int moveaxis.int movedim.intlist moveaxis.intlist", "self source destination", (c, args) => {
  const x = args.tensor("self");
  const count = x.shape.length;
  const [from, to] = ["source", "destination"].map((name) => args.numbers(name).map((dim) => dimension(dim, count)));
  const rest = x.shape.map((_, place) => place).filter((place) => !from.includes(place));
  const order = x.shape.map((_, place) => (to.includes(place) ? from[to.indexOf(place)] : rest.shift()!));
  return ordered(c, x, order);
}, "part");

function wide(c: Context, x: NdArray, shape: readonly number[]): NdArray {
  const out = stretched(c.m, x, shape);
  if (c.wants(x)) c.record(out, [], (g) => giveSummed(c, x, c.m.hold(g!.shaped(shape))));
  return out;
}

define("expand broadcast_to", "self size implicit", (c, args) => {
  const x = args.tensor("self");
  const size = args.numbers("size");
  return wide(c, x, size.map((side, place) => (side === -1 ? x.shape[place - size.length + x.shape.length] : side)));
}, "part");
define("expand_as", "self other", (c, args) => wide(c, args.tensor("self"), args.tensor("other").shape), "part");
define("broadcast_tensors", "tensors", (c, args) => {
  const tensors = args.tensors("tensors");
  const shape = broadcastShape(...tensors.map((x) => x.shape));
  return tensors.map((x) => wide(c, x, shape));
}, "part");

/** The part of x that begins at `offset` and goes on by `strides`; no number is in it twice. */
function part(c: Context, x: NdArray, shape: readonly number[], strides: readonly number[], offset: number): NdArray {
  const out = blank(c.m, x.kind, shape);
  walk(c.m, READ, shape, strides, x, offset, out);
  if (c.wants(x)) {
    c.record(out, [], (g) => {
      const dx = c.m.filled(x.shape, 0);
      walk(c.m, ADD, shape, strides, dx, offset, g!);
      c.give(x, dx);
    });
  }
  return out;
}

/** From `start` to `stop` (excluded) by `step`, of one dimension. */
function sliced(c: Context, x: NdArray, dim: number, start: number, stop: number, step: number): NdArray {
  const strides = stridesOf(x.shape);
  const count = Math.max(0, Math.ceil((stop - start) / step));
  const shape = x.shape.map((side, place) => (place === dim ? count : side));
  const offset = start * strides[dim];
  return part(c, x, shape, strides.map((stride, place) => (place === dim ? stride * step : stride)), count ? offset : 0);
}

const within = (place: number, size: number): number => Math.min(Math.max(place < 0 ? place + size : place, 0), size);

define("slice.Tensor", "self dim start end step", (c, args) => {
  const x = args.tensor("self");
  const dim = dimension(args.number("dim", 0), x.shape.length);
  const size = x.shape[dim];
  return sliced(c, x, dim, within(args.number("start", 0), size), within(args.number("end", size), size), args.number("step", 1));
}, "part");
define("narrow", "self dim start length", (c, args) => {
  const x = args.tensor("self");
  const dim = dimension(args.number("dim"), x.shape.length);
  const start = within(args.number("start"), x.shape[dim]);
  return sliced(c, x, dim, start, start + args.number("length"), 1);
}, "part");

function selected(c: Context, x: NdArray, dim: number, index: number): NdArray {
  const strides = stridesOf(x.shape);
  const at = index < 0 ? index + x.shape[dim] : index;
  if (at < 0 || at >= x.shape[dim]) throw new PortableError(`no number ${index} in a dimension of ${x.shape[dim]}`);
  const others = x.shape.map((_, place) => place).filter((place) => place !== dim);
  return part(c, x, others.map((place) => x.shape[place]), others.map((place) => strides[place]), at * strides[dim]);
}

define("select.int", "self dim index", (c, args) => {
  const x = args.tensor("self");
  return selected(c, x, dimension(args.number("dim"), x.shape.length), args.number("index"));
}, "part");
define("unbind.int", "self dim", (c, args) => {
  const x = args.tensor("self");
  const dim = dimension(args.number("dim", 0), x.shape.length);
  return Array.from({ length: x.shape[dim] }, (_, index) => selected(c, x, dim, index));
}, "part");

function inPieces(c: Context, x: NdArray, dim: number, sizes: readonly number[]): NdArray[] {
  let start = 0;
  return sizes.map((size) => sliced(c, x, dim, start, (start += size), 1));
}

function equalSizes(size: number, each: number): number[] {
  return Array.from({ length: Math.max(1, Math.ceil(size / each)) }, (_, place) => Math.min(each, size - place * each));
}

define("split.Tensor unsafe_split.Tensor", "self split_size dim", (c, args) => {
  const x = args.tensor("self");
  const dim = dimension(args.number("dim", 0), x.shape.length);
  return inPieces(c, x, dim, equalSizes(x.shape[dim], args.number("split_size")));
}, "part");
define("split_with_sizes split.sizes unsafe_split_with_sizes", "self split_sizes dim", (c, args) => {
  const x = args.tensor("self");
  return inPieces(c, x, dimension(args.number("dim", 0), x.shape.length), args.numbers("split_sizes"));
}, "part");
define("chunk unsafe_chunk", "self chunks dim", (c, args) => {
  const x = args.tensor("self");
  const dim = dimension(args.number("dim", 0), x.shape.length);
  return inPieces(c, x, dim, equalSizes(x.shape[dim], Math.ceil(x.shape[dim] / args.number("chunks"))));
}, "part");

/** Tensors one after the other in a dimension. */
function joined(c: Context, all: readonly NdArray[], dim: number): NdArray {
  const tensors = all.filter((x) => x.shape.length > 1 || x.size > 0 || all.length === 1);
  const [first] = tensors;
  if (tensors.some((x) => x.kind !== first.kind)) throw new NotSupported("cat over tensors of several dtypes", ["aten.cat.default"]);
  const at = dimension(dim, first.shape.length);
  const total = tensors.reduce((sum, x) => sum + x.shape[at], 0);
  const out = blank(c.m, first.kind, first.shape.map((side, place) => (place === at ? total : side)));
  const strides = stridesOf(out.shape);
  const offsets: number[] = [];
  let offset = 0;
  for (const x of tensors) {
    walk(c.m, WRITE, x.shape, strides, out, offset, x);
    offsets.push(offset);
    offset += x.shape[at] * strides[at];
  }
  if (c.wants(...tensors)) {
    c.record(out, [], (g) => {
      tensors.forEach((x, place) => {
        if (!x.needsGrad) return;
        const dx = c.m.make(x.shape);
        walk(c.m, READ, x.shape, strides, g!, offsets[place], dx);
        c.give(x, dx);
      });
    });
  }
  return out;
}

define("cat concat concatenate", "tensors dim", (c, args) => joined(c, args.tensors("tensors"), args.number("dim", 0)));
define("stack", "tensors dim", (c, args) => {
  const tensors = args.tensors("tensors");
  const dim = dimension(args.number("dim", 0), tensors[0].shape.length + 1);
  const seen = tensors.map((x) => passedOn(c, x, [...x.shape.slice(0, dim), 1, ...x.shape.slice(dim)]));
  const out = joined(c, seen, dim);
  for (const x of seen) c.m.drop(x);
  return out;
});

define("repeat tile", "self repeats", (c, args) => {
  const x = args.tensor("self");
  const given = args.numbers("repeats");
  const count = Math.max(given.length, x.shape.length);
  const times = [...new Array<number>(count - given.length).fill(1), ...given];
  const sides = [...new Array<number>(count - x.shape.length).fill(1), ...x.shape];
  const seen = passedOn(c, x, sides.flatMap((side) => [1, side]));
  const out = wide(c, seen, sides.flatMap((side, place) => [times[place], side]));
  const result = passedOn(c, out, sides.map((side, place) => side * times[place]));
  c.m.drop(seen);
  c.m.drop(out);
  return result;
});

define("flip", "self dims", (c, args) => {
  const x = args.tensor("self");
  const dims = args.numbers("dims").map((dim) => dimension(dim, x.shape.length));
  const strides = stridesOf(x.shape);
  const offset = dims.reduce((sum, dim) => sum + (x.shape[dim] - 1) * strides[dim], 0);
  return part(c, x, x.shape, strides.map((stride, place) => (dims.includes(place) ? -stride : stride)), offset);
});

define("roll", "self shifts dims", (c, args): Result => {
  const x = args.tensor("self");
  const shifts = args.numbers("shifts");
  const dims = args.numbers("dims", []).map((dim) => dimension(dim, x.shape.length));
  if (dims.length !== shifts.length) throw new NotSupported(`${args.op} without dims`, [args.op]);
  let out = passedOn(c, x);
  dims.forEach((dim, place) => {
    const size = x.shape[dim];
    const shift = ((shifts[place] % size) + size) % size;
    if (!shift) return;
    const pieces = [sliced(c, out, dim, size - shift, size, 1), sliced(c, out, dim, 0, size - shift, 1)];
    const moved = joined(c, pieces, dim);
    for (const each of [out, ...pieces]) c.m.drop(each);
    out = moved;
  });
  return out;
});

function padded(c: Context, x: NdArray, pad: readonly number[], value: number): NdArray {
  const count = x.shape.length;
  const edges = x.shape.map((_, place) => {
    const at = 2 * (count - 1 - place);
    return at < pad.length ? [pad[at], pad[at + 1]] : [0, 0];
  });
  if (edges.flat().some((edge) => edge < 0)) throw new NotSupported("padding by less than nothing", ["aten.constant_pad_nd.default"]);
  const shape = x.shape.map((side, place) => side + edges[place][0] + edges[place][1]);
  const out = x.isFloat ? c.m.filled(shape, value) : blank(c.m, x.kind, shape);
  if (!x.isFloat) out.whole!.fill(value);
  const strides = stridesOf(shape);
  const offset = edges.reduce((sum, [before], place) => sum + before * strides[place], 0);
  walk(c.m, WRITE, x.shape, strides, out, offset, x);
  if (c.wants(x)) {
    c.record(out, [], (g) => {
      const dx = c.m.make(x.shape);
      walk(c.m, READ, x.shape, strides, g!, offset, dx);
      c.give(x, dx);
    });
  }
  return out;
}

define("constant_pad_nd", "self pad value", (c, args) => padded(c, args.tensor("self"), args.numbers("pad"), args.number("value", 0)));
define("pad", "self pad mode value", (c, args) => {
  args.only("mode", "constant");
  return padded(c, args.tensor("self"), args.numbers("pad"), args.number("value", 0));
});
