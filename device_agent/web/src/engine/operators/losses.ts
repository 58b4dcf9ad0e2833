/** Losses as operators: what is compared, reduced to one number or none. */

import type { Arguments } from "../arguments.ts";
import { DataError, NotSupported } from "../../errors.ts";
import type { NdArray } from "../nd_array.ts";
import type { Context } from "../tape.ts";
import { permuted } from "./broadcast.ts";
import { softmax } from "./attention.ts";
import { define } from "./rules.ts";

const NONE = 0;
const MEAN = 1;

/** The loss of each number, and its slope, as functions of the output and the target. */
type PairLoss = readonly [value: (x: number, t: number) => number, slope: (x: number, t: number) => number];

/** A loss that is a sum or mean over pairs of one output and one target. */
function pairwise(c: Context, args: Arguments, [value, slope]: PairLoss, weight: NdArray | null = null): NdArray {
  const { m } = c;
  const [x, target] = [args.tensor("self"), args.tensor("target")];
  if (x.size !== target.size) throw new NotSupported(`${args.op} over outputs and targets of other shapes`, [args.op]);
  if (weight && weight.size !== x.size) throw new NotSupported(`${args.op} with a weight of another shape`, [args.op]);
  if (target.needsGrad) throw new NotSupported(`${args.op} with a gradient of the target`, [args.op]);
  const reduction = args.number("reduction", MEAN);
  const out = m.make(reduction === NONE ? x.shape : []);
  const [xs, ts, os] = [m.numbers(x), m.numbers(target), m.floats(out)];
  const ws = weight ? m.floats(weight) : null;
  let total = 0;
  for (let i = 0; i < xs.length; i++) {
    const each = value(xs[i], ts[i]) * (ws ? ws[i] : 1);
    if (reduction === NONE) os[i] = each;
    else total += each;
  }
  const factor = reduction === MEAN ? 1 / x.size : 1;
  if (reduction !== NONE) os[0] = total * factor;
  if (c.wants(x)) {
    c.record(out, [x, target, ...(weight ? [weight] : [])], (g) => {
      const dx = m.make(x.shape);
      const [numbers, targets, gradients, into] = [m.floats(x), m.numbers(target), m.floats(g!), m.floats(dx)];
      const weights = weight ? m.floats(weight) : null;
      for (let i = 0; i < into.length; i++) {
        const outer = reduction === NONE ? gradients[i] : gradients[0] * factor;
        into[i] = outer * slope(numbers[i], targets[i]) * (weights ? weights[i] : 1);
      }
      c.give(x, dx);
    });
  }
  return out;
}

const sigmoid = (c: Context, x: number): number => 1 / (1 + exponential(c, -x));

/** e to the x by the kernels, so that every browser computes the same. */
function exponential(c: Context, x: number): number {
  return unaryNumber(c, 7, x);
}

function unaryNumber(c: Context, op: number, x: number): number {
  return c.m.scratch(32, (at) => {
    const numbers = new Float32Array(c.m.arena.buffer, at, 2);
    numbers[0] = x;
    c.kernels.unary(op, at, at + 16, 1, 0, 0);
    return new Float32Array(c.m.arena.buffer, at + 16, 1)[0];
  });
}

define("mse_loss", "self target reduction", (c, args) => pairwise(c, args, [(x, t) => (x - t) ** 2, (x, t) => 2 * (x - t)]));
define("l1_loss", "self target reduction", (c, args) => pairwise(c, args, [(x, t) => Math.abs(x - t), (x, t) => Math.sign(x - t)]));

function huber(beta: number, scale: number): PairLoss {
  return [
    (x, t) => {
      const away = Math.abs(x - t);
      return scale * (away < beta ? (0.5 * away * away) / beta : away - 0.5 * beta);
    },
    (x, t) => scale * (Math.abs(x - t) < beta ? (x - t) / beta : Math.sign(x - t)),
  ];
}

define("smooth_l1_loss", "self target reduction beta", (c, args) => pairwise(c, args, huber(args.number("beta", 1), 1)));
define("huber_loss", "self target reduction delta", (c, args) => {
  const delta = args.number("delta", 1);
  return pairwise(c, args, huber(delta, delta));
});
define("binary_cross_entropy_with_logits", "self target weight pos_weight reduction", (c, args) => {
  if (args.has("pos_weight")) throw new NotSupported(`${args.op} with pos_weight`, [args.op]);
  const value = (x: number, t: number): number => Math.max(x, 0) - x * t + unaryNumber(c, 27, exponential(c, -Math.abs(x)));
  return pairwise(c, args, [value, (x, t) => sigmoid(c, x) - t], args.optional("weight"));
});
define("binary_cross_entropy", "self target weight reduction", (c, args) => {
  const log = (x: number): number => Math.max(unaryNumber(c, 8, x), -100);
  const value = (x: number, t: number): number => -(t * log(x) + (1 - t) * log(1 - x));
  return pairwise(c, args, [value, (x, t) => (x - t) / Math.max((1 - x) * x, 1e-12)], args.optional("weight"));
});

/** Rows of classes: [samples and places, classes], from [samples, classes, ...] or [classes]. */
function classRows(c: Context, x: NdArray): NdArray {
  if (x.shape.length < 3) return c.m.hold(x.shaped(x.shape.length === 1 ? [1, x.size] : x.shape));
  const order = [0, ...x.shape.map((_, place) => place).slice(2), 1];
  const rows = permuted(c.m, x, order);
  return rows.shaped([x.size / x.shape[1], x.shape[1]]);
}

/** Rows of classes in the shape of the outputs, with a holder of its own. */
function likeOutputs(c: Context, rows: NdArray, x: NdArray): NdArray {
  if (x.shape.length < 3) return c.m.hold(rows.shaped(x.shape));
  const [samples, classes, ...places] = x.shape;
  const order = [0, x.shape.length - 1, ...places.map((_, place) => place + 1)];
  return permuted(c.m, rows.shaped([samples, ...places, classes]), order);
}

/** The negative log of the labelled class. */
function nll(c: Context, args: Arguments, x: NdArray, target: NdArray, smoothing = 0): NdArray {
  const { m } = c;
  if (target.kind !== "int64") throw new NotSupported(`${args.op} with probabilities as targets`, [args.op]);
  const weight = args.optional("weight");
  const reduction = args.number("reduction", MEAN);
  const ignored = args.number("ignore_index", -100);
  const classes = x.shape.length === 1 ? x.size : x.shape[1];
  const labels = target.whole!;
  const rows = classRows(c, x);
  const out = m.make(reduction === NONE ? target.shape : []);
  const [logs, os] = [m.floats(rows), m.floats(out)];
  const weights = weight ? m.floats(weight).slice() : new Float32Array(classes).fill(1);
  const spread = smoothing / classes;
  let total = 0;
  let counted = 0;
  labels.forEach((label, row) => {
    if (label !== ignored && !(label >= 0 && label < classes)) throw new DataError(`label ${label} is none of the ${classes} classes`);
    let each = 0;
    if (label !== ignored) {
      each = -(1 - smoothing) * weights[label] * logs[row * classes + label];
      if (smoothing) for (let k = 0; k < classes; k++) each -= spread * weights[k] * logs[row * classes + k];
      counted += weights[label];
    }
    total += each;
    if (reduction === NONE) os[row] = each;
  });
  const factor = reduction === MEAN ? 1 / counted : 1;
  if (reduction !== NONE) os[0] = total * factor;
  m.drop(rows);
  if (c.wants(x)) {
    c.record(out, [], (g) => {
      const slopes = m.filled([x.size / classes, classes], 0);
      const [gradients, into] = [m.floats(g!), m.floats(slopes)];
      labels.forEach((label, row) => {
        if (label === ignored) return;
        const outer = reduction === NONE ? gradients[row] : gradients[0] * factor;
        if (smoothing) for (let k = 0; k < classes; k++) into[row * classes + k] = -outer * spread * weights[k];
        into[row * classes + label] -= outer * (1 - smoothing) * weights[label];
      });
      c.give(x, likeOutputs(c, slopes, x));
      m.drop(slopes);
    });
  }
  return out;
}

/** Cross entropy against a probability of each class. */
function against(c: Context, args: Arguments, x: NdArray, target: NdArray, smoothing: number): NdArray {
  const { m } = c;
  if (args.has("weight")) throw new NotSupported(`${args.op} with weights and probabilities`, [args.op]);
  const reduction = args.number("reduction", MEAN);
  const classes = x.shape.length === 1 ? x.size : x.shape[1];
  const [rows, wanted] = [classRows(c, x), classRows(c, target)];
  const count = x.size / classes;
  const out = m.make(reduction === NONE ? [...x.shape.slice(0, 1), ...x.shape.slice(2)] : []);
  const [logs, targets, os] = [m.floats(rows), m.floats(wanted).map((t) => t * (1 - smoothing) + smoothing / classes), m.floats(out)];
  let total = 0;
  for (let row = 0; row < count; row++) {
    let each = 0;
    for (let k = 0; k < classes; k++) each -= targets[row * classes + k] * logs[row * classes + k];
    total += each;
    if (reduction === NONE) os[row] = each;
  }
  const factor = reduction === MEAN ? 1 / count : 1;
  if (reduction !== NONE) os[0] = total * factor;
  m.drop(rows);
  m.drop(wanted);
  if (c.wants(x)) {
    c.record(out, [], (g) => {
      const slopes = m.make([count, classes]);
      const [gradients, into] = [m.floats(g!), m.floats(slopes)];
      for (let i = 0; i < into.length; i++) {
        into[i] = -targets[i] * (reduction === NONE ? gradients[Math.floor(i / classes)] : gradients[0] * factor);
      }
      c.give(x, likeOutputs(c, slopes, x));
      m.drop(slopes);
    });
  }
  return out;
}

define("nll_loss nll_loss_nd nll_loss2d", "self target weight reduction ignore_index", (c, args) => {
  return nll(c, args, args.tensor("self"), args.tensor("target"));
});
define("cross_entropy_loss", "self target weight reduction ignore_index label_smoothing", (c, args) => {
  const [x, target] = [args.tensor("self"), args.tensor("target")];
  const logs = softmax(c, x, x.shape.length === 1 ? 0 : 1, true);
  const smoothing = args.number("label_smoothing", 0);
  const out = target.isFloat ? against(c, args, logs, target, smoothing) : nll(c, args, logs, target, smoothing);
  c.m.drop(logs);
  return out;
});
define("kl_div", "self target reduction log_target", (c, args) => {
  args.only("log_target", false);
  const log = (t: number): number => (t > 0 ? unaryNumber(c, 8, t) : 0);
  return pairwise(c, args, [(x, t) => (t > 0 ? t * (log(t) - x) : 0), (_x, t) => -t]);
});

