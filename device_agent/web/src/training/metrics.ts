/** Metrics of an evaluation, by name or by a function of the job's author: `spliteasy/training/metrics.py`. */

import { JobError } from "../errors.ts";
import { guesses } from "../engine/measure.ts";
import type { Judged, Loss, Tensor } from "../engine/types.ts";

type Tensors = readonly Tensor[];

/** A metric over the test batches so far; its value is null where nothing could be counted. */
export interface Metric {
  add(outputs: Tensors, targets: Tensors): Promise<void>;
  value(): number | null;
}

const TOP = 5;
const LARGEST_EXPONENT = Math.log(1e300);

/** The metric of that name, before the first batch. Throws JobError where the job's loss has nothing to read it from. */
export function makeMetric(name: string, loss: Loss, functions: ReadonlyMap<string, Loss>): Metric {
  const own = functions.get(name);
  if (own !== undefined) return ofBatches(own);
  if (name === "mae" || name === "rmse") return errors(name === "mae" ? 1 : 2);
  const { shows } = loss;
  if (name === "perplexity" && shows === "classes" && loss.isMean) return perplexity(loss);
  if (shows !== null && (name === "accuracy" || name === "token_accuracy")) return accuracy(loss);
  const gathered: Readonly<Record<string, () => Gathered>> = {
    f1: () => confusion((hit, both) => (2 * hit) / both),
    iou: () => confusion((hit, both) => hit / (both - hit)),
    auc,
  };
  if (name === "top_5" && shows === "classes") return judging(loss, topFive());
  if (shows !== null && Object.hasOwn(gathered, name)) return judging(loss, gathered[name]());
  throw new JobError(`the metric ${name.slice(0, 60)} needs scores of classes compared with labels, and the training's loss shows none`);
}

/** What is gathered of the elements that have a label. */
interface Gathered {
  add(judged: Judged): void;
  value(): number | null;
}

function judging(loss: Loss, gathered: Gathered): Metric {
  return {
    add: async (outputs, targets) => {
      const judged = await loss.judged(outputs, targets);
      if (judged !== null) gathered.add(judged);
    },
    value: () => gathered.value(),
  };
}

/** The share of labelled elements whose prediction is right. */
function accuracy(loss: Loss): Metric {
  let [hits, counted] = [0, 0];
  return {
    add: async (outputs, targets) => {
      const [right, of] = (await loss.right(outputs, targets)) ?? [0, 0];
      hits += right;
      counted += of;
    },
    value: () => (counted ? hits / counted : null),
  };
}

/** The share of labelled elements whose class is among the five with the best scores. */
function topFive(): Gathered {
  let [hits, counted] = [0, 0];
  return {
    add: (judged) => {
      hits += amongTheBest(judged).filter(Boolean).length;
      counted += judged.labels.length;
    },
    value: () => (counted ? hits / counted : null),
  };
}

function amongTheBest({ scores, labels, classes }: Judged): boolean[] {
  const count = classes ?? 1;
  return labels.map((label, row) => {
    const own = scores.subarray(row * count, (row + 1) * count);
    const better = own.reduce((sum, score, k) => sum + Number(score > own[label] || (score === own[label] && k < label)), 0);
    return better < TOP;
  });
}

/** Predictions against labels, as counts; `made` gives a class's number of hits, and of labels and predictions together. */
function confusion(made: (hit: number, both: number) => number): Gathered {
  let answers = false;
  const hits = new Map<number, number>();
  const both = new Map<number, number>();
  const count = (counts: Map<number, number>, key: number): Map<number, number> => counts.set(key, (counts.get(key) ?? 0) + 1);
  const of = (key: number): number | null => (both.get(key) ? made(hits.get(key) ?? 0, both.get(key)!) : null);
  return {
    add: (judged) => {
      answers = judged.classes === null;
      guesses(judged).forEach((guess, at) => {
        if (guess === judged.labels[at]) count(hits, guess);
        count(count(both, guess), judged.labels[at]);
      });
    },
    value: () => (answers ? of(1) : meanOf([...both.keys()].sort((a, b) => a - b).map(of))),
  };
}

/** The area under the ROC curve; of more than two classes the mean of each against the rest. All scores are kept. */
function auc(): Gathered {
  let columns: number[][] = [];
  const labels: number[] = [];
  return {
    add: (judged) => {
      const found = columnsOf(judged);
      columns = found.map((column, k) => [...(columns[k] ?? []), ...column]);
      labels.push(...judged.labels);
    },
    value: () => {
      if (columns.length === 1) return area(columns[0], labels.map((label) => label === 1));
      return meanOf(columns.map((column, k) => area(column, labels.map((label) => label === k))));
    },
  };
}

/** One column of scores for yes and no and for two classes, else one a class: its probability. */
function columnsOf({ scores, classes }: Judged): number[][] {
  if (classes === null) return [Array.from(scores)];
  const rows = Array.from({ length: scores.length / classes }, (_, row) => scores.subarray(row * classes, (row + 1) * classes));
  if (classes === 2) return [rows.map(([no, yes]) => Math.fround(yes - no))];
  const likely = rows.map((row) => {
    const most = row.reduce((a, b) => Math.max(a, b), -Infinity);
    const powers = Array.from(row, (score) => Math.exp(score - most));
    const sum = powers.reduce((a, b) => a + b, 0);
    return powers.map((power) => Math.fround(power / sum));
  });
  return Array.from({ length: classes }, (_, k) => likely.map((row) => row[k]));
}

/** The share of pairs of a positive and a negative whose scores are in order; ties count half. */
function area(scores: readonly number[], positive: readonly boolean[]): number | null {
  const yes = positive.filter(Boolean).length;
  const no = positive.length - yes;
  if (!yes || !no) return null;
  const order = scores.map((_, at) => at).sort((a, b) => scores[a] - scores[b]);
  let ranks = 0;
  for (let start = 0; start < order.length; ) {
    let end = start;
    while (end < order.length && scores[order[end]] === scores[order[start]]) end++;
    const rank = (start + 1 + end) / 2;
    for (let at = start; at < end; at++) if (positive[order[at]]) ranks += rank;
    start = end;
  }
  return (ranks - (yes * (yes + 1)) / 2) / (yes * no);
}

/** The mean absolute error of the first output to the first target, or the root of the mean square. */
function errors(power: 1 | 2): Metric {
  let [total, counted] = [0, 0];
  return {
    add: async ([output], [target]) => {
      const wanted = Array.from(target.data, Number);
      (output.data as Float32Array).forEach((value, at) => (total += Math.abs(value - wanted[at]) ** power));
      counted += wanted.length;
    },
    value: () => (counted ? (total / counted) ** (1 / power) : null),
  };
}

/** The exponential of the mean loss over labelled elements. */
function perplexity(loss: Loss): Metric {
  let [total, counted] = [0, 0];
  return {
    add: async (outputs, targets) => {
      const elements = await loss.elements(targets);
      if (!elements) return;
      total += (await loss.value(outputs, targets)) * elements;
      counted += elements;
    },
    value: () => (counted ? (total / counted < LARGEST_EXPONENT ? Math.exp(total / counted) : Infinity) : null),
  };
}

/** A function of the job's author: its mean over the test batches, each counted by its samples. */
function ofBatches(own: Loss): Metric {
  let [total, counted] = [0, 0];
  return {
    add: async (outputs, targets) => {
      const samples = targets[0].shape[0];
      total += (await own.value(outputs, targets)) * samples;
      counted += samples;
    },
    value: () => (counted ? total / counted : null),
  };
}

function meanOf(numbers: readonly (number | null)[]): number | null {
  const found = numbers.filter((each) => each !== null);
  return found.length ? found.reduce((sum, each) => sum + each, 0) / found.length : null;
}
