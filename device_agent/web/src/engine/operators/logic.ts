/** Comparisons, choices by a condition, and masks. */

import type { Arguments } from "../arguments.ts";
import { NotSupported } from "../../errors.ts";
import type { NdArray } from "../nd_array.ts";
import type { Context } from "../tape.ts";
import { blank, broadcastShape, giveSummed, stretched } from "./broadcast.ts";
import { converted, operand, promotedOf } from "./kinds.ts";
import { define } from "./rules.ts";

function compared(test: (a: number, b: number) => boolean) {
  return (c: Context, args: Arguments): NdArray => {
    const kind = promotedOf(args, "self", "other");
    const [a, b] = [operand(c, args, "self", kind), operand(c, args, "other", kind)];
    const shape = broadcastShape(a.shape, b.shape);
    const [x, y] = [stretched(c.m, a, shape), stretched(c.m, b, shape)];
    const [xs, ys] = [c.m.numbers(x), c.m.numbers(y)];
    const out = c.m.booleans(shape);
    for (let i = 0; i < out.size; i++) out.whole![i] = test(xs[i], ys[i]) ? 1 : 0;
    for (const each of [x, y, a, b]) c.m.drop(each);
    return out;
  };
}

const PAIRS: readonly (readonly [string, (a: number, b: number) => boolean])[] = [
  ["eq.Tensor eq.Scalar", (a, b) => a === b],
  ["ne.Tensor ne.Scalar not_equal.Tensor not_equal.Scalar", (a, b) => a !== b],
  ["lt.Tensor lt.Scalar less.Tensor less.Scalar", (a, b) => a < b],
  ["le.Tensor le.Scalar less_equal.Tensor less_equal.Scalar", (a, b) => a <= b],
  ["gt.Tensor gt.Scalar greater.Tensor greater.Scalar", (a, b) => a > b],
  ["ge.Tensor ge.Scalar greater_equal.Tensor greater_equal.Scalar", (a, b) => a >= b],
  ["logical_and", (a, b) => Boolean(a) && Boolean(b)],
  ["logical_or", (a, b) => Boolean(a) || Boolean(b)],
  ["logical_xor", (a, b) => Boolean(a) !== Boolean(b)],
];

for (const [names, test] of PAIRS) define(names, "self other", compared(test));

/** Bits of booleans; of integers this build has none. */
function onBooleans(test: (a: number, b: number) => boolean) {
  return (c: Context, args: Arguments): NdArray => {
    if (promotedOf(args, "self", "other") !== "bool") throw new NotSupported(`${args.op} over integers`, [args.op]);
    return compared(test)(c, args);
  };
}

define("bitwise_and.Tensor bitwise_and.Scalar __and__.Tensor __and__.Scalar", "self other", onBooleans((a, b) => Boolean(a && b)));
define("bitwise_or.Tensor bitwise_or.Scalar __or__.Tensor __or__.Scalar", "self other", onBooleans((a, b) => Boolean(a || b)));
define("bitwise_xor.Tensor bitwise_xor.Scalar __xor__.Tensor __xor__.Scalar", "self other", onBooleans((a, b) => a !== b));

function tested(test: (value: number) => boolean) {
  return (c: Context, args: Arguments): NdArray => {
    const x = args.tensor("self");
    return c.m.booleans(x.shape, Uint8Array.from(c.m.numbers(x), (value) => (test(value) ? 1 : 0)));
  };
}

define("logical_not", "self", tested((value) => !value));
define("bitwise_not", "self", (c, args) => {
  if (args.tensor("self").kind !== "bool") throw new NotSupported(`${args.op} over integers`, [args.op]);
  return tested((value) => !value)(c, args);
});
define("isnan", "self", tested(Number.isNaN));
define("isfinite", "self", tested(Number.isFinite));
define("isinf", "self", tested((value) => Math.abs(value) === Infinity));

/** `a` where the condition holds, else `b`; both are dropped. */
function where(c: Context, condition: NdArray, a: NdArray, b: NdArray): NdArray {
  const shape = broadcastShape(condition.shape, a.shape, b.shape);
  const [test, x, y] = [condition, a, b].map((each) => stretched(c.m, each, shape));
  const out = blank(c.m, x.kind, shape);
  const [ts, xs, ys, os] = [test, x, y, out].map((each) => c.m.numbers(each));
  for (let i = 0; i < os.length; i++) os[i] = ts[i] ? xs[i] : ys[i];
  if (c.wants(a, b)) {
    const chosen = ts.slice();
    c.record(out, [], (g) => {
      for (const [to, side] of [[a, 1], [b, 0]] as const) {
        if (!to.needsGrad) continue;
        const part = c.m.make(shape);
        const [from, into] = [c.m.floats(g!), c.m.floats(part)];
        for (let i = 0; i < into.length; i++) into[i] = (chosen[i] ? 1 : 0) === side ? from[i] : 0;
        giveSummed(c, to, part);
      }
    });
  }
  for (const each of [test, x, y, a, b]) c.m.drop(each);
  return out;
}

define("where.self where.ScalarOther where.ScalarSelf where.Scalar", "condition self other", (c, args) => {
  const kind = promotedOf(args, "self", "other");
  return where(c, args.tensor("condition"), operand(c, args, "self", kind), operand(c, args, "other", kind));
});
define("masked_fill.Scalar masked_fill.Tensor", "self mask value", (c, args) => {
  const self = args.tensor("self");
  return where(c, args.tensor("mask"), operand(c, args, "value", self.kind), converted(c, self, self.kind));
});

/** Keep one triangle of matrices. */
function triangle(kept: (row: number, column: number) => boolean, c: Context, x: NdArray): NdArray {
  const [rows, columns] = x.shape.slice(-2);
  const masked = (from: NdArray): NdArray => {
    const out = blank(c.m, from.kind, x.shape);
    const [xs, os] = [c.m.numbers(from), c.m.numbers(out)];
    for (let i = 0; i < os.length; i++) os[i] = kept(Math.floor(i / columns) % rows, i % columns) ? xs[i] : 0;
    return out;
  };
  const out = masked(x);
  if (c.wants(x)) c.record(out, [], (g) => c.give(x, masked(g!)));
  return out;
}

define("tril", "self diagonal", (c, args) => {
  const diagonal = args.number("diagonal", 0);
  return triangle((row, column) => column - row <= diagonal, c, args.tensor("self"));
});
define("triu", "self diagonal", (c, args) => {
  const diagonal = args.number("diagonal", 0);
  return triangle((row, column) => column - row >= diagonal, c, args.tensor("self"));
});

