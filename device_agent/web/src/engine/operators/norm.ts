/** Normalization: by the batch, by layers and groups. */

import type { Arguments } from "../arguments.ts";
import { NotSupported } from "../../errors.ts";
import { BINARY } from "../kernels.ts";
import type { NdArray } from "../nd_array.ts";
import type { Context } from "../tape.ts";
import { stretched, sumOver } from "./broadcast.ts";
import { define, defineOwn } from "./rules.ts";

/** Move the running statistics towards the batch's. */
function keepStatistics(c: Context, args: Arguments, mean: NdArray, variance: NdArray, count: number): void {
  const momentum = args.number("momentum", 0.1);
  const moved = [
    [args.optional("running_mean"), mean, 1],
    [args.optional("running_var"), variance, count / (count - 1)],
  ] as const;
  for (const [running, seen, factor] of moved) {
    if (!running) continue;
    const [kept, own] = [c.m.floats(running), c.m.floats(seen)];
    for (let place = 0; place < kept.length; place++) {
      kept[place] = kept[place] * Math.fround(1 - momentum) + own[place] * factor * Math.fround(momentum);
    }
  }
}

const BATCH_NORM = "input weight bias running_mean running_var training momentum eps cudnn_enabled";

define("batch_norm", BATCH_NORM, (c, args) => batchNorm(c, args, false));
defineOwn("batch norm and relu", BATCH_NORM, (c, args) => batchNorm(c, args, true));

/** Batch norm, and what relu makes of it, in one pass. */
function batchNorm(c: Context, args: Arguments, relu: boolean): NdArray {
  const { m, kernels } = c;
  const x = args.tensor("input");
  const [weight, bias] = [args.optional("weight"), args.optional("bias")];
  const [samples, channels] = x.shape;
  const inner = x.size / (samples * channels);
  const training = args.flag("training") || !args.has("running_mean");
  const mean = m.make([channels]);
  const variance = m.make([channels]);
  if (training) {
    if (samples * inner < 2) throw new NotSupported("batch norm over a batch of one value a channel");
    kernels.channelStatistics(samples, channels, inner, x.at, mean.at, variance.at);
    keepStatistics(c, args, mean, variance, samples * inner);
  } else {
    m.assign(mean, args.tensor("running_mean"));
    m.assign(variance, args.tensor("running_var"));
  }
  const eps = args.number("eps", 1e-5);
  const [scale, shift, out] = [m.make([channels]), m.make([channels]), m.make(x.shape)];
  const [rstds, scales, shifts] = [variance, scale, shift].map((each) => m.floats(each));
  const [weights, biases] = [weight, bias].map((each) => (each ? m.floats(each) : null));
  for (let channel = 0; channel < channels; channel++) {
    rstds[channel] = 1 / Math.sqrt(rstds[channel] + eps); // in place of the variance
    scales[channel] = rstds[channel] * (weights ? weights[channel] : 1);
    shifts[channel] = biases ? biases[channel] : 0;
  }
  kernels.channelAffine(samples, channels, inner, x.at, mean.at, scale.at, shift.at, out.at, relu ? 1 : 0);
  m.drop(shift);
  if (c.wants(x, weight, bias)) {
    c.record(out, [x, mean, variance, scale, ...(relu ? [out] : [])], (g) => {
      const [dgamma, dbeta] = [m.make([channels]), m.make([channels])];
      const dx = x.needsGrad ? m.make(x.shape) : null;
      kernels.channelBack(
        samples, channels, inner, x.at, mean.at, variance.at, scale.at, relu ? out.at : 0, relu ? 1 : 0, g!.at, training ? 0 : 1, dgamma.at,
        dbeta.at, dx ? dx.at : 0,
      );
      if (weight?.needsGrad) c.give(weight, dgamma);
      else m.drop(dgamma);
      if (bias?.needsGrad) c.give(bias, dbeta);
      else m.drop(dbeta);
      if (dx) c.give(x, dx);
    });
  }
  for (const each of [mean, variance, scale]) m.drop(each);
  return out;
}

/**
 * Normalize rows of `width` numbers, then multiply by `weight` and add `bias`, both of shape `own`, which stretches
 * over x seen as `seen`.
 */
function byRows(
  c: Context, x: NdArray, width: number, eps: number, plain: boolean, weight: NdArray | null, bias: NdArray | null,
  seen: readonly number[], own: readonly number[],
): NdArray {
  const { m, kernels } = c;
  const rows = x.size / width;
  const normal = m.make(seen);
  const [means, rstds] = [m.make([rows]), m.make([rows])];
  kernels.rowNormalize(rows, width, eps, plain ? 1 : 0, x.at, normal.at, means.at, rstds.at);
  m.drop(means);
  const scale = weight ? stretched(m, weight.shaped(own), seen) : null;
  let out = m.hold(normal);
  if (scale) {
    m.drop(out);
    out = m.make(seen);
    kernels.binary(BINARY.mul, normal.at, scale.at, out.at, out.size);
  }
  if (bias) {
    const wide = stretched(m, bias.shaped(own), seen);
    const sum = m.make(seen);
    kernels.binary(BINARY.add, out.at, wide.at, sum.at, sum.size);
    m.drop(wide);
    m.drop(out);
    out = sum;
  }
  const result = out.shaped(x.shape);
  if (c.wants(x, weight, bias)) {
    c.record(result, [normal, rstds, ...(scale ? [scale] : [])], (given) => {
      const g = given!.shaped(seen);
      if (bias?.needsGrad) giveShaped(c, bias, m.hold(g), own);
      if (weight?.needsGrad) {
        const product = m.make(seen);
        kernels.binary(BINARY.mul, g.at, normal.at, product.at, product.size);
        giveShaped(c, weight, product, own);
      }
      if (!x.needsGrad) return;
      const dy = scale ? m.make(seen) : m.hold(g);
      if (scale) kernels.binary(BINARY.mul, g.at, scale.at, dy.at, dy.size);
      const dx = m.make(x.shape);
      kernels.rowNormalizeBack(rows, width, plain ? 1 : 0, normal.at, rstds.at, dy.at, dx.at);
      m.drop(dy);
      c.give(x, dx);
    });
  }
  for (const each of [normal, rstds, ...(scale ? [scale] : [])]) m.drop(each);
  return result;
}

/** Sum a gradient over what was stretched, and give it to a tensor that was seen in the shape `own`. */
function giveShaped(c: Context, to: NdArray, gradient: NdArray, own: readonly number[]): void {
  const extra = gradient.shape.length - own.length;
  const dims = gradient.shape.map((_, place) => place).filter((place) => place < extra || own[place - extra] === 1);
  const sum = sumOver(c.m, gradient, dims.filter((place) => gradient.shape[place] !== 1));
  c.m.drop(gradient);
  c.give(to, sum.shaped(to.shape));
}

define("layer_norm", "input normalized_shape weight bias eps cudnn_enable", (c, args) => {
  const x = args.tensor("input");
  const own = args.numbers("normalized_shape");
  const width = own.reduce((a, b) => a * b, 1);
  return byRows(c, x, width, args.number("eps", 1e-5), false, args.optional("weight"), args.optional("bias"), [x.size / width, width], [width]);
});

define("rms_norm", "input normalized_shape weight eps", (c, args) => {
  const x = args.tensor("input");
  const width = args.numbers("normalized_shape").reduce((a, b) => a * b, 1);
  const eps = args.number("eps", 2 ** -23);
  return byRows(c, x, width, eps, true, args.optional("weight"), null, [x.size / width, width], [width]);
});

define("group_norm", "input num_groups weight bias eps cudnn_enabled", (c, args) => {
  const x = args.tensor("input");
  const [samples, channels] = x.shape;
  const inner = x.size / (samples * channels);
  const width = (channels / args.number("num_groups")) * inner;
  const [weight, bias] = [args.optional("weight"), args.optional("bias")];
  return byRows(c, x, width, args.number("eps", 1e-5), false, weight, bias, [samples, channels, inner], [channels, 1]);
});

