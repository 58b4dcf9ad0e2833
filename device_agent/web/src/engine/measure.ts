/** The counts beside a loss: elements that its mean is over, and predictions that are right. See `measures.py`. */

import { DataError } from "../errors.ts";
import type { Judged, Tensor } from "./types.ts";

type Tensors = readonly Tensor[];

/** Scores [B, C, …] against class numbers [B, …], or against a probability of each class. */
export interface Classes {
  readonly kind: "classes";
  readonly scores: (outputs: Tensors, targets: Tensors) => Tensor;
  readonly labels: (targets: Tensors) => Tensor;
  readonly ignored: number;
  /** One a class; null where all count alike. */
  readonly weights: readonly number[] | null;
  /** The loss is the mean over the labelled elements; without it, their sum. */
  readonly mean: boolean;
}

/** One score for each question against 0 or 1; a score above the threshold says yes. */
export interface Answers {
  readonly kind: "answers";
  readonly scores: (outputs: Tensors, targets: Tensors) => Tensor;
  readonly labels: (targets: Tensors) => Tensor;
  readonly threshold: number;
}

const LARGEST_SHARE_ERROR = 1e-6;
const IGNORED = -100;
const CLASSIFYING: readonly string[] = ["cross_entropy", "nll"];

/** What is counted for one job's loss. */
export class Measure {
  constructor(
    /** What the accuracy is read from; null: it is not measured. */
    readonly predictions: Classes | Answers | null,
    /** The classifying terms of the loss that are means over labelled elements. */
    readonly means: readonly Classes[] = [],
    /** The loss is one of `means` times a constant, so that its elements weigh micro-batches. */
    readonly proportional = true,
  ) {}

  /** The weight of the loss's mean over these targets: its labelled elements, or else its samples. */
  elements(targets: Tensors): number {
    const found = this.means.length && this.proportional ? labelled(this.means[0], targets) : null;
    return found ?? samples(targets);
  }

  /** The share of each micro-batch in the loss of the batch. Throws DataError where no one share is right. */
  shares(parts: readonly Tensors[]): number[] {
    const counts = parts.map((part) => this.elements(part));
    const shares = partsOfOne(counts.some(Boolean) ? counts : parts.map(samples));
    for (const mean of this.proportional ? [] : this.means) {
      const own = parts.map((part) => labelled(mean, part));
      if (own.some((count) => count === null)) continue;
      const wanted = partsOfOne(own.map((count) => count ?? 0));
      if (wanted.some((share, at) => Math.abs(share - shares[at]) > LARGEST_SHARE_ERROR)) {
        throw new DataError("the loss has several terms, and the micro-batches of this batch have unequally many labelled elements of one");
      }
    }
    return shares;
  }

  /** [right, counted] of the predictions; null where that can't be told. */
  right(outputs: Tensors, targets: Tensors): readonly [number, number] | null {
    const { predictions } = this;
    if (predictions === null) return null;
    const judged = judge(predictions, outputs, targets);
    if (predictions.kind === "answers" && !Array.from(predictions.labels(targets).data, Number).every((label) => label === 0 || label === 1)) {
      return null;
    }
    return [guesses(judged).filter((guess, at) => guess === judged.labels[at]).length, judged.labels.length];
  }

  /** Scores and labels of all elements that have one; null where the loss shows none. */
  judged(outputs: Tensors, targets: Tensors): Judged | null {
    return this.predictions === null ? null : judge(this.predictions, outputs, targets);
  }
}

/** What is counted for a loss by name. */
export function namedMeasure(name: string): Measure {
  const of = { scores: ([first]: Tensors): Tensor => first, labels: ([first]: Tensors): Tensor => first };
  if (CLASSIFYING.includes(name)) {
    const classes: Classes = { kind: "classes", ...of, ignored: IGNORED, weights: null, mean: true };
    return new Measure(classes, [classes]);
  }
  return new Measure(name === "bce_with_logits" ? { kind: "answers", ...of, threshold: 0 } : null);
}

/** The prediction of each judged element: its best class, or 1 for yes. */
export function guesses({ scores, classes, threshold }: Judged): number[] {
  if (classes === null) return Array.from(scores, (score) => Number(score > threshold));
  return Array.from({ length: scores.length / classes }, (_, row) => {
    let best = 0;
    for (let k = 1; k < classes; k++) if (scores[row * classes + k] > scores[row * classes + best]) best = k;
    return best;
  });
}

function samples(targets: Tensors): number {
  return targets[0]?.shape[0] ?? 0;
}

/** The divisor of the mean; null where that is the number of samples. */
function labelled({ labels, mean, ignored, weights }: Classes, targets: Tensors): number | null {
  const found = labels(targets);
  if (!mean || !(found.data instanceof BigInt64Array)) return null;
  const kept = Array.from(found.data, Number).filter((label) => label !== ignored);
  return weights === null ? kept.length : kept.reduce((sum, label) => sum + weights[label], 0);
}

function judge(predictions: Classes | Answers, outputs: Tensors, targets: Tensors): Judged {
  const scores = predictions.scores(outputs, targets);
  const labels = predictions.labels(targets);
  if (predictions.kind === "answers") {
    const yes = Array.from(labels.data as ArrayLike<number | bigint>, (label) => Number(Number(label) > 0.5));
    return { scores: scores.data as Float32Array, labels: yes, classes: null, threshold: predictions.threshold };
  }
  const dimension = scores.shape.length === 1 ? 0 : 1;
  const classes = scores.shape[dimension];
  const rows = rowsOf(scores, dimension);
  const isNumber = labels.data instanceof BigInt64Array;
  const wanted = isNumber
    ? Array.from(labels.data as BigInt64Array, Number)
    : guesses({ scores: rowsOf(labels, dimension), labels: [], classes, threshold: 0 });
  const kept = wanted.map((_, at) => at).filter((at) => !isNumber || wanted[at] !== predictions.ignored);
  if (kept.length === wanted.length) return { scores: rows, labels: wanted, classes, threshold: 0 };
  const some = new Float32Array(kept.length * classes);
  kept.forEach((at, row) => some.set(rows.subarray(at * classes, (at + 1) * classes), row * classes));
  return { scores: some, labels: kept.map((at) => wanted[at]), classes, threshold: 0 };
}

/** The numbers of [B, C, …] as [B · …, C]. */
function rowsOf({ shape, data }: Tensor, dimension: number): Float32Array {
  const classes = shape[dimension];
  const inner = shape.slice(dimension + 1).reduce((a, b) => a * b, 1);
  const numbers = data as Float32Array;
  if (inner === 1) return numbers;
  return Float32Array.from(numbers, (_, at) => {
    const [row, k] = [Math.floor(at / classes), at % classes];
    return numbers[Math.floor(row / inner) * classes * inner + k * inner + (row % inner)];
  });
}

function partsOfOne(counts: readonly number[]): number[] {
  const whole = counts.reduce((sum, count) => sum + count, 0);
  return counts.map((count) => (whole ? count / whole : 0));
}
