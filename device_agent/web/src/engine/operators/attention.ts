/** Softmax, attention, and the layers that draw random numbers. */

import { NotSupported } from "../../errors.ts";
import type { NdArray } from "../nd_array.ts";
import type { Context } from "../tape.ts";
import { BINARY } from "../kernels.ts";
import { Arguments, type Given } from "../arguments.ts";
import { dimension, permuted } from "./broadcast.ts";
import { converted } from "./kinds.ts";
import { define, operatorOf } from "./rules.ts";

/** Softmax of a dimension, or its logarithm; `safe`: a row without any finite number becomes zeros. */
export function softmax(c: Context, self: NdArray, dim: number, logarithm: boolean, safe = false): NdArray {
  const { m, kernels } = c;
  const x = converted(c, self, "float32");
  const at = dimension(dim, x.shape.length);
  const last = x.shape.length - 1;
  const order = x.shape.map((_, place) => place).filter((place) => place !== at).concat(x.shape.length ? [at] : []);
  const back = order.map((_, place) => order.indexOf(place));
  const width = x.shape.length ? x.shape[at] : 1;
  const rows = at === last ? m.hold(x.shaped(x.shape)) : permuted(m, x, order);
  const y = m.make(rows.shape);
  const flag = logarithm ? 1 : 0;
  kernels.softmax(x.size / width, width, flag, safe ? 1 : 0, rows.at, y.at);
  const out = permuted(m, y, back);
  if (c.wants(x)) {
    c.record(out, [y], (g) => {
      const dy = permuted(m, g!, order);
      const dx = m.make(y.shape);
      kernels.softmaxBack(x.size / width, width, flag, y.at, dy.at, dx.at);
      c.give(x, permuted(m, dx, back));
      m.drop(dy);
      m.drop(dx);
    });
  }
  for (const each of [x, rows, y]) m.drop(each);
  return out;
}

define("softmax.int special_softmax", "self dim dtype", (c, args) => softmax(c, args.tensor("self"), args.number("dim"), false));
define("log_softmax.int special_log_softmax", "self dim dtype", (c, args) => softmax(c, args.tensor("self"), args.number("dim"), true));
define("_softmax", "self dim half_to_float", (c, args) => softmax(c, args.tensor("self"), args.number("dim"), false));
define("_log_softmax", "self dim half_to_float", (c, args) => softmax(c, args.tensor("self"), args.number("dim"), true));
define("_safe_softmax", "self dim dtype", (c, args) => softmax(c, args.tensor("self"), args.number("dim"), false, true));

/** Call an operator of the table; the arguments stay their owners'. */
function call(c: Context, op: string, ...given: Given[]): NdArray {
  const operator = operatorOf(op);
  if (!operator) throw new NotSupported(`this build has no ${op}`, [op]);
  return operator.rule(c, new Arguments(op, operator.parameters, given, [])) as NdArray;
}

/** A chain of values: each step's is dropped once the next one was computed. */
function step(c: Context, x: NdArray, op: string, ...rest: Given[]): NdArray {
  const out = call(c, op, x, ...rest);
  c.m.drop(x);
  return out;
}

const ATTENTION = "query key value attn_mask dropout_p is_causal scale enable_gqa";

define("scaled_dot_product_attention", ATTENTION, (c, args) => {
  const { m } = c;
  args.only("enable_gqa", false);
  const [query, key, value] = ["query", "key", "value"].map((name) => args.tensor(name));
  const [length, width] = query.shape.slice(-2);
  const seen = key.shape.at(-2)!;
  const turned = call(c, "aten.transpose.int", key, -1, -2);
  let scores = call(c, "aten.matmul.default", query, turned);
  m.drop(turned);
  scores = scaled(c, scores, args.number("scale", 1 / Math.sqrt(width)));
  const causal = args.flag("is_causal") ? m.booleans([length, seen], Array.from({ length: length * seen }, (_, at) => (at % seen <= Math.floor(at / seen) ? 1 : 0))) : null;
  const mask = causal ?? args.optional("attn_mask");
  if (mask?.kind === "bool") {
    const hidden = call(c, "aten.logical_not.default", mask);
    scores = masked(c, scores, hidden);
  } else if (mask) {
    scores = step(c, scores, "aten.add.Tensor", mask);
  }
  const weights = softmax(c, scores, -1, false, mask !== null);
  m.drop(scores);
  const kept = dropped(c, weights, args.number("dropout_p", 0));
  m.drop(weights);
  const out = call(c, "aten.matmul.default", kept, value);
  m.drop(kept);
  return out;
});

function scaled(c: Context, x: NdArray, factor: number): NdArray {
  const out = c.m.make(x.shape);
  c.kernels.affine(x.at, factor, 0, out.at, out.size);
  if (c.wants(x)) {
    c.record(out, [], (g) => {
      const dx = c.m.make(x.shape);
      c.kernels.affine(g!.at, factor, 0, dx.at, dx.size);
      c.give(x, dx);
    });
  }
  c.m.drop(x);
  return out;
}

function masked(c: Context, scores: NdArray, hidden: NdArray): NdArray {
  const least = c.m.filled([], -Infinity);
  const out = call(c, "aten.masked_fill.Tensor", scores, hidden, least);
  c.m.drop(least);
  c.m.drop(scores);
  return out;
}

/** x with each number kept with probability 1 - p, and then divided by that. */
function dropped(c: Context, x: NdArray, p: number): NdArray {
  const { m, kernels } = c;
  if (p === 0) return m.hold(passing(c, x));
  const mask = m.make(x.shape);
  if (p === 1) kernels.fill(mask.at, 0, mask.size);
  else {
    c.twister.bernoulli(m.floats(mask), 1 - p);
    const numbers = m.floats(mask);
    const kept = Math.fround(1 / Math.fround(1 - p));
    for (let i = 0; i < numbers.length; i++) if (numbers[i]) numbers[i] = kept;
  }
  const out = m.make(x.shape);
  kernels.binary(BINARY.mul, x.at, mask.at, out.at, out.size);
  if (c.wants(x)) {
    c.record(out, [mask], (g) => {
      const dx = m.make(x.shape);
      kernels.binary(BINARY.mul, g!.at, mask.at, dx.at, dx.size);
      c.give(x, dx);
    });
  }
  m.drop(mask);
  return out;
}

/** The same numbers as another value, which has no holder of its own yet. */
function passing(c: Context, x: NdArray): NdArray {
  const out = x.shaped(x.shape);
  if (c.wants(x)) c.record(out, [], (g) => c.give(x, c.m.hold(g!.shaped(x.shape))));
  return out;
}

define("dropout", "input p train", (c, args) => {
  const x = args.tensor("input");
  return args.flag("train") ? dropped(c, x, args.number("p")) : c.m.hold(passing(c, x));
});
define("native_dropout", "input p train", (c, args) => {
  const x = args.tensor("input");
  if (args.flag("train", true) && args.number("p") > 0) throw new NotSupported(`${args.op} in training`, [args.op]);
  return [c.m.hold(passing(c, x)), c.m.booleans(x.shape, new Uint8Array(x.size).fill(1))];
});
