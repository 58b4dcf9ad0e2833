/** The counts beside a loss: elements that its mean is over, and predictions that are right. See `measures.py`. */

import type { Tensor } from "./types.ts";

/** What the job's loss compares; null where that can't be told. */
export interface Measure {
  elements(targets: readonly Tensor[]): number;
  right(outputs: readonly Tensor[], targets: readonly Tensor[]): readonly [number, number] | null;
}

const IGNORED = -100;
const CLASSIFYING: readonly string[] = ["cross_entropy", "nll"];

const samples = (targets: readonly Tensor[]): number => targets[0]?.shape[0] ?? 0;

export function measureOf(name: string | null): Measure {
  if (name !== null && CLASSIFYING.includes(name)) return { elements: labelled, right: classes };
  if (name === "bce_with_logits") return { elements: samples, right: answers };
  return { elements: samples, right: () => null };
}

function labelled(targets: readonly Tensor[]): number {
  const [labels] = targets;
  if (!(labels.data instanceof BigInt64Array)) return samples(targets);
  return labels.data.reduce((sum, label) => sum + (Number(label) === IGNORED ? 0 : 1), 0);
}

/** The greatest of scores [B, C, ...], or of [C], against class numbers or probabilities. */
function classes([scores]: readonly Tensor[], [labels]: readonly Tensor[]): readonly [number, number] {
  const guesses = greatest(scores);
  if (!(labels.data instanceof BigInt64Array)) {
    const wanted = greatest(labels);
    return [guesses.filter((guess, place) => guess === wanted[place]).length, guesses.length];
  }
  const wanted = Array.from(labels.data, Number);
  const counted = wanted.map((label, place) => [label, guesses[place]]).filter(([label]) => label !== IGNORED);
  return [counted.filter(([label, guess]) => label === guess).length, counted.length];
}

function greatest({ shape, data }: Tensor): number[] {
  const count = shape.length === 1 ? shape[0] : shape[1];
  const inner = shape.slice(2).reduce((a, b) => a * b, 1);
  const numbers = data as Float32Array;
  return Array.from({ length: data.length / count }, (_, at) => {
    const first = Math.floor(at / inner) * count * inner + (at % inner);
    let best = 0;
    for (let k = 1; k < count; k++) if (numbers[first + k * inner] > numbers[first + best * inner]) best = k;
    return best;
  });
}

/** Scores above 0 say yes, against 0 or 1; null where a target is neither. */
function answers([scores]: readonly Tensor[], [labels]: readonly Tensor[]): readonly [number, number] | null {
  const wanted = Array.from(labels.data as ArrayLike<number>, Number);
  if (!wanted.every((label) => label === 0 || label === 1)) return null;
  const said = Array.from(scores.data as Float32Array, (score) => Number(score > 0));
  return [said.filter((yes, place) => yes === wanted[place]).length, wanted.length];
}
