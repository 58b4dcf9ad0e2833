/** A tensor with a part of it replaced, and pictures made larger. */

import type { Arguments } from "../arguments.ts";
import { NotSupported } from "../../errors.ts";
import type { NdArray } from "../nd_array.ts";
import type { Context } from "../tape.ts";
import { ADD, READ, WRITE, dimension, giveSummed, stretched, stridesOf, walk } from "./broadcast.ts";
import { cast } from "./kinds.ts";
import { define } from "./rules.ts";

/** x with the part at `offset` and `strides` replaced by `source`, which is of that shape and of x's kind. */
function replaced(c: Context, x: NdArray, source: NdArray, shape: readonly number[], strides: readonly number[], offset: number): NdArray {
  const { m } = c;
  const out = m.copy(x);
  const own = source.kind === x.kind ? m.hold(source) : cast(m, source, x.kind);
  const wide = stretched(m, own, shape);
  walk(m, WRITE, shape, strides, out, offset, wide);
  if (c.wants(x, source)) {
    c.record(out, [], (g) => {
      if (source.needsGrad) {
        const part = m.make(shape);
        walk(m, READ, shape, strides, g!, offset, part);
        giveSummed(c, source, part);
      }
      if (!x.needsGrad) return;
      const dx = m.copy(g!);
      const zeros = m.filled(shape, 0);
      walk(m, WRITE, shape, strides, dx, offset, zeros);
      m.drop(zeros);
      c.give(x, dx);
    });
  }
  m.drop(own);
  m.drop(wide);
  return out;
}

define("copy", "self src non_blocking", (c, args) => {
  const x = args.tensor("self");
  return replaced(c, x, args.tensor("src"), x.shape, stridesOf(x.shape), 0);
});

const within = (place: number, size: number): number => Math.min(Math.max(place < 0 ? place + size : place, 0), size);

define("slice_scatter", "self src dim start end step", (c, args) => {
  const x = args.tensor("self");
  const dim = dimension(args.number("dim", 0), x.shape.length);
  const size = x.shape[dim];
  const step = args.number("step", 1);
  const start = within(args.number("start", 0), size);
  const count = Math.max(0, Math.ceil((within(args.number("end", size), size) - start) / step));
  const strides = stridesOf(x.shape);
  const shape = x.shape.map((side, place) => (place === dim ? count : side));
  const offset = count ? start * strides[dim] : 0;
  return replaced(c, x, args.tensor("src"), shape, strides.map((stride, place) => (place === dim ? stride * step : stride)), offset);
});

define("select_scatter", "self src dim index", (c, args) => {
  const x = args.tensor("self");
  const dim = dimension(args.number("dim"), x.shape.length);
  const index = args.number("index");
  const strides = stridesOf(x.shape);
  const others = x.shape.map((_, place) => place).filter((place) => place !== dim);
  const offset = (index < 0 ? index + x.shape[dim] : index) * strides[dim];
  return replaced(c, x, args.tensor("src"), others.map((place) => x.shape[place]), others.map((place) => strides[place]), offset);
});

/** The rows of two dimensions of a picture [..., h, w], each repeated as often as a whole factor says. */
function enlarged(c: Context, args: Arguments): NdArray {
  const { m } = c;
  const x = args.tensor("input");
  const [h, w] = x.shape.slice(-2);
  const size = args.has("output_size") ? args.each("output_size", 2) : factors(args).map((factor, d) => Math.floor([h, w][d] * factor));
  const [down, right] = [size[0] / h, size[1] / w];
  if (!Number.isInteger(down) || !Number.isInteger(right)) throw new NotSupported(`${args.op} by a factor that is no whole number`, [args.op]);
  const planes = x.size / (h * w);
  const seen = [planes, h, down, w, right];
  const out = m.make([...x.shape.slice(0, -2), ...size]);
  const strides = [h * w, w, 0, 1, 0];
  walk(m, READ, seen, strides, x, 0, out);
  if (c.wants(x)) {
    c.record(out, [], (g) => {
      const dx = m.filled(x.shape, 0);
      walk(m, ADD, seen, strides, dx, 0, g!);
      c.give(x, dx);
    });
  }
  return out;
}

function factors(args: Arguments): number[] {
  const given = args.get("scale_factors");
  const items = Array.isArray(given) ? given : [];
  if (items.length !== 2) throw new NotSupported(`${args.op} without sizes`, [args.op]);
  return items.map((each) => (typeof each === "number" ? each : (each as { value: number }).value));
}

define("upsample_nearest2d.vec", "input output_size scale_factors", enlarged);
define("upsample_nearest2d", "input output_size scales_h scales_w", enlarged);
