/**
 * Transforms of what crosses the cuts: shuffled, clipped and noisy activations, noisy gradients. See
 * `spliteasy/privacy/defences/transforms.py`.
 *
 * Noise is a function of the device's key, the purpose, the step and the clean numbers, so that a value that is sent
 * again has the same noise: nobody can subtract it out by making a device take a step twice.
 */

import { blake2b } from "@noble/hashes/blake2.js";

import type { Tensor as EngineTensor, Value } from "../../engine/types.ts";
import { toHex } from "../../protocol/hex.ts";
import { fill, type Key } from "../../random/index.ts";
import type { Spec } from "../job.ts";
import { noisyClasses } from "./marvell.ts";
import { penaltyGradient } from "./nopeek.ts";

export type Purpose = "activations" | "gradients" | "evaluation" | "prediction";

/** The order of each sample's tokens: [samples, tokens]. */
export type Order = readonly Uint32Array[];

type Privacy = NonNullable<Spec["privacy"]>;

const TINY = 1e-12;

export class CutTransforms {
  private readonly key: Key;

  /** `key` is the device's for the job. */
  constructor(
    private readonly settings: Privacy,
    key: Key,
  ) {
    this.key = key.at("noise");
  }

  /** The order in which the tokens of each sample cross; null: their own. */
  order(values: readonly Value[], purpose: Purpose, step: number): Order | null {
    const [clean] = this.settings.shuffle_tokens ? values.filter(isTensor) : [];
    if (clean === undefined) return null;
    const [samples, tokens] = clean.shape;
    const places = new Float64Array(samples * tokens);
    fill(places, "uniform", [0, 1], this.key.at("order", purpose, step, strongDigest(clean)));
    return Array.from({ length: samples }, (_, sample) => sorted(places.subarray(sample * tokens, (sample + 1) * tokens)));
  }

  /** The head's values as they cross the cut. */
  activations(values: readonly Value[], purpose: Purpose, step: number, order: Order | null): Value[] {
    return values.map((value) => {
      if (!isFloat(value)) return value;
      return this.activation(order === null ? value : shuffled(value, order), purpose, step);
    });
  }

  /** The body's outputs with tokens where they were before `order`. */
  inOrder(values: readonly Value[], order: Order | null): Value[] {
    return values.map((value) => (order !== null && isTensor(value) ? shuffled(value, order.map(inverse)) : value));
  }

  /** The gradients of the tail's inputs, for samples of these targets, as they cross the cut. */
  gradients(gradients: readonly (EngineTensor | null)[], targets: EngineTensor, step: number, order: Order | null): (EngineTensor | null)[] {
    const { marvell, gradient_noise: noise } = this.settings;
    const own = gradients.map((each) => (each !== null && order !== null ? shuffled(each, order) : each));
    if (typeof marvell === "number") return this.twoClasses(own, targets, marvell, step);
    if (noise === null || noise === undefined) return own;
    return own.map((each) => (each === null ? null : noise === "max_norm" ? this.maxNorm(each, step) : this.noisy(each, noise, step)));
  }

  /**
   * The gradients of the head's clean values, from those that came for the values that were sent. NoPeek's term is
   * added on the way. `share` is what these samples count for in the batch.
   */
  returned(
    inputs: readonly EngineTensor[], clean: readonly Value[], sent: readonly Value[], gradients: readonly (EngineTensor | null)[],
    share: number, order: Order | null,
  ): (EngineTensor | null)[] {
    const { nopeek, clip_activations: clip } = this.settings;
    return gradients.map((gradient, at) => {
      const [before, after] = [clean[at], sent[at]];
      if (gradient === null || !isFloat(before) || !isFloat(after)) return gradient;
      let found = gradient;
      if (typeof nopeek === "number" && share) found = added(found, penaltyGradient(nopeek * share, inputs.filter(isFloat), after));
      if (typeof clip === "number") found = throughClipping(order === null ? before : shuffled(before, order), found, clip);
      return order === null ? found : shuffled(found, order.map(inverse));
    });
  }

  private activation(value: EngineTensor, purpose: Purpose, step: number): EngineTensor {
    const { clip_activations: clip, noise_activations: noise = 0 } = this.settings;
    if (typeof clip !== "number") return value;
    const sent = clipped(value, clip);
    if (!noise) return sent;
    const scale = Math.fround(noise * clip);
    const drawn = this.normal(value, purpose, step) as Float32Array;
    return { ...sent, data: floats(sent).map((each, at) => each + Math.fround(drawn[at] * scale)) };
  }

  private noisy(gradient: EngineTensor, noise: number, step: number): EngineTensor {
    const rows = rowsOf(gradient);
    const largest = Math.max(0, ...rows.map(squares));
    const share = Math.fround(noise * Math.sqrt(largest / Math.max(1, rows[0]?.length ?? 1)));
    const drawn = this.normal(gradient, "gradients", step) as Float32Array;
    return { ...gradient, data: floats(gradient).map((each, at) => each + Math.fround(drawn[at] * share)) };
  }

  private maxNorm(gradient: EngineTensor, step: number): EngineTensor {
    const rows = rowsOf(gradient);
    const drawn = this.normal(gradient, "gradients", step, rows.length);
    const factors = maxNormFactors(rows.map(squares), drawn);
    const width = rows[0]?.length ?? 1;
    return { ...gradient, data: floats(gradient).map((each, at) => each * factors[Math.floor(at / width)]) };
  }

  /** All gradients of a sample are one row; where one class is alone, rows have the same lengths. */
  private twoClasses(gradients: readonly (EngineTensor | null)[], targets: EngineTensor, power: number, step: number): (EngineTensor | null)[] {
    const present = gradients.filter((each) => each !== null);
    if (!present.length) return [...gradients];
    const samples = present[0].shape[0];
    const parts = present.map(rowsOf);
    const dims = parts.reduce((sum, rows) => sum + (rows[0]?.length ?? 0), 0);
    const whole = new Float64Array(samples * dims);
    for (let row = 0; row < samples; row++) whole.set(parts.flatMap((rows) => [...rows[row]]), row * dims);
    const clean = { dtype: "float64", shape: [samples, dims], data: whole } as const;
    const drawn = this.normal(clean, "gradients", step);
    const positives = Array.from(targets.data as ArrayLike<number | bigint>, (label) => Number(label) > 0.5);
    let changed = noisyClasses(whole, dims, positives, power, drawn);
    if (changed === null) {
      const factors = maxNormFactors(rowsOf(clean).map(squares), this.normal(clean, "gradients", step, samples));
      changed = whole.map((each, at) => each * factors[Math.floor(at / dims)]);
    }
    return split(changed, dims, gradients);
  }

  /** Standard normal numbers that nobody else knows, for these clean numbers at this step. */
  private normal(clean: EngineTensor, purpose: Purpose, step: number, count = clean.data.length): Float32Array | Float64Array {
    const noise = clean.dtype === "float64" ? new Float64Array(count) : new Float32Array(count);
    fill(noise, "normal", [0, 1], this.key.at(purpose, step, strongDigest(clean)));
    return noise;
  }
}

/** A hash over dtype, shape and bits: `strong_digest` in `spliteasy/training/digest.py`. */
export function strongDigest({ dtype, shape, data }: EngineTensor): string {
  const form = `torch.${dtype}(${shape.join(", ")}${shape.length === 1 ? "," : ""})`;
  const hasher = blake2b.create({ dkLen: 32 }).update(new TextEncoder().encode(form));
  return toHex(hasher.update(new Uint8Array(data.buffer, data.byteOffset, data.byteLength)).digest());
}

/** Each sample scaled down to a 2-norm of `most`, where it has more. */
export function clipped(value: EngineTensor, most: number): EngineTensor {
  const rows = rowsOf(value);
  const factors = rows.map((row) => clipFactor(row, most));
  const width = rows[0]?.length ?? 1;
  return { ...value, data: floats(value).map((each, at) => each * factors[Math.floor(at / width)]) };
}

function clipFactor(row: Row, most: number): number {
  const norm = Math.max(Math.fround(Math.sqrt(squares(row))), TINY);
  return Math.min(1, Math.fround(most / norm));
}

/** The gradient of the values before `clipped`, from that of the values after it. */
function throughClipping(value: EngineTensor, gradient: EngineTensor, most: number): EngineTensor {
  const [values, grads] = [rowsOf(value), rowsOf(gradient)];
  const width = values[0]?.length ?? 1;
  const out = new Float32Array(value.data.length);
  values.forEach((row, at) => {
    const norm = Math.sqrt(squares(row));
    const factor = clipFactor(row, most);
    const along = factor < 1 ? product(row, grads[at]) * (most / norm ** 3) : 0;
    for (let k = 0; k < width; k++) out[at * width + k] = grads[at][k] * factor - row[k] * along;
  });
  return { ...gradient, data: out };
}

function maxNormFactors(lengths: readonly number[], drawn: Float32Array | Float64Array): number[] {
  const largest = Math.max(0, ...lengths);
  return lengths.map((each, at) => 1 + Math.sqrt(Math.max(0, each > 0 ? largest / each - 1 : 0)) * drawn[at]);
}

/** The tokens of a value [samples, tokens, features] in that order; other values stay as they are. */
function shuffled<T extends EngineTensor>(value: T, order: Order): T {
  const [samples, tokens, features] = value.shape;
  if (value.shape.length !== 3 || tokens !== order[0]?.length) return value;
  const out = value.data.slice();
  for (let sample = 0; sample < samples; sample++) {
    for (let token = 0; token < tokens; token++) {
      const from = (sample * tokens + order[sample][token]) * features;
      out.set(value.data.subarray(from, from + features) as never, (sample * tokens + token) * features);
    }
  }
  return { ...value, data: out };
}

function inverse(order: Uint32Array): Uint32Array {
  const back = new Uint32Array(order.length);
  order.forEach((from, at) => (back[from] = at));
  return back;
}

function sorted(places: Float64Array): Uint32Array {
  return Uint32Array.from(places.keys()).sort((a, b) => places[a] - places[b] || a - b);
}

type Row = Float32Array | Float64Array;

function rowsOf(value: EngineTensor): Row[] {
  const samples = value.shape[0];
  const width = samples ? value.data.length / samples : 0;
  return Array.from({ length: samples }, (_, at) => (value.data as Float32Array).subarray(at * width, (at + 1) * width));
}

function squares(row: Row): number {
  return product(row, row);
}

function product(one: Row, other: Row): number {
  let sum = 0;
  for (let k = 0; k < one.length; k++) sum += one[k] * other[k];
  return sum;
}

function split(rows: Float64Array, dims: number, like: readonly (EngineTensor | null)[]): (EngineTensor | null)[] {
  let start = 0;
  return like.map((each) => {
    if (each === null) return null;
    const width = each.data.length / each.shape[0];
    const data = Float32Array.from(each.data as Float32Array, (_, at) => rows[Math.floor(at / width) * dims + start + (at % width)]);
    start += width;
    return { ...each, data };
  });
}

function added(one: EngineTensor, other: Float32Array): EngineTensor {
  return { ...one, data: floats(one).map((each, at) => each + other[at]) };
}

function floats({ data }: EngineTensor): Float32Array {
  return data as Float32Array;
}

function isTensor(value: Value): value is EngineTensor {
  return typeof value !== "number";
}

function isFloat(value: Value): value is EngineTensor {
  return isTensor(value) && value.dtype === "float32";
}
