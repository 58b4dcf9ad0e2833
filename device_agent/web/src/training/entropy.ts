/**
 * A device tests whether a law leaves anything to guess before it trusts it: `spliteasy/privacy/entropy.py`.
 *
 * A worker that is an adversary could hand out a law that gives every device the same weights.
 */

import { JobError } from "../errors.ts";
import { fill, Key } from "../random/index.ts";
import type { Tensors } from "../storage/tensors.ts";
import { runLaw } from "./ends.ts";
import type { Ends } from "./job.ts";

const MIN_SPREAD = 1e-3;
const MIN_SIZE = 1e-3;
const MIN_CHANGED = 1 / 16;
const TRIALS = 8;
const SMALL = 128;
const TINY = 16;

/** A trainable tensor of two dimensions or more. */
export interface Weight {
  readonly path: string;
  readonly size: number;
  readonly rows: number;
}

/** Throws JobError where a weight that passes for secret could be guessed. `isPublic`: the job says that it is not secret. */
export function checkEntropy(ends: Ends, weights: readonly Weight[], isPublic: (path: string) => boolean): void {
  const isDrawn = (path: string): boolean => tableOf(ends, path)[path.slice(path.indexOf("/") + 1)] !== undefined;
  const secret = weights.filter(({ path }) => !isPublic(path));
  const weak = secret.find(({ path }) => !isDrawn(path)) ?? weakWeight(ends, secret);
  if (weak) {
    throw new JobError(
      `the training gives ${weak.path.slice(0, 90)} nearly the same first values on every phone, so that the server can guess them`,
      "don't train it; tell the person who sent you the link",
    );
  }
}

function tableOf(ends: Ends, path: string): Readonly<Record<string, number>> {
  return (ends.drawn ?? {})[path.slice(0, path.indexOf("/"))] ?? {};
}

function weakWeight(ends: Ends, weights: readonly Weight[]): Weight | null {
  if (!weights.length) return null;
  const key = new Key(crypto.getRandomValues(new Uint8Array(32)));
  const once = drawn(ends, key, 0, 0);
  const again = drawn(ends, key, 1, 0);
  const alike = weights.find((weight) => areAlike(numbers(once, weight), numbers(again, weight), weight.rows));
  if (alike) return alike;
  for (const [part, least, ofSize] of [[1 / 16, 4, (size: number) => size >= SMALL], [1 / 2, 7, (size: number) => size >= TINY && size < SMALL]] as const) {
    const tried = weights.filter(({ size }) => ofSize(size));
    const changes = tried.map(() => 0);
    for (let trial = 0; trial < (tried.length ? TRIALS : 0); trial++) {
      const other = drawn(ends, key, part, trial);
      tried.forEach((weight, at) => {
        const [a, b] = [numbers(once, weight), numbers(other, weight)];
        if (a.some((value, place) => value !== b[place])) changes[at] += 1;
      });
    }
    const weak = tried.find((_, at) => changes[at] < least);
    if (weak) return weak;
  }
  return null;
}

/** The drawn tensors; the part `changed` of all numbers is another than that of the key alone. */
function drawn(ends: Ends, key: Key, changed: number, trial: number): Tensors {
  return runLaw(ends, (place, step, out) => {
    const args = step.args as number[];
    fill(out, step.op, args, key.at("once", place));
    if (!changed) return;
    const other = out.slice();
    fill(other, step.op, args, key.at("again", trial, place));
    const chosen = new Float64Array(out.length);
    fill(chosen, "uniform", [0, 1], key.at("chosen", trial, place));
    other.forEach((value, at) => {
      if (chosen[at] < changed) out[at] = value;
    });
  });
}

function numbers(tensors: Tensors, { path }: Weight): Float32Array | Float64Array {
  const { dtype, bytes } = tensors[path];
  const { buffer } = bytes.slice();
  return dtype === "float64" ? new Float64Array(buffer) : new Float32Array(buffer);
}

function areAlike(a: Float32Array | Float64Array, b: Float32Array | Float64Array, rows: number): boolean {
  if (!a.length || !a.every(Number.isFinite)) return true;
  let square = 0;
  let apart = 0;
  let differing = 0;
  for (let at = 0; at < a.length; at++) {
    square += (a[at] ** 2 + b[at] ** 2) / 2 / a.length;
    apart += (a[at] - b[at]) ** 2 / 2 / a.length;
    if (a[at] !== b[at]) differing += 1;
  }
  const tooSmall = square * (a.length / rows) < MIN_SIZE ** 2;
  return tooSmall || apart < MIN_SPREAD * square || differing / a.length < MIN_CHANGED;
}
