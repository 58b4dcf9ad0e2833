/** Marvell: the normal noise under which two classes' gradients are told apart the least. See `spliteasy/privacy/defences/marvell.py`. */

const GRID = 65;
const ROUNDS = 6;
const TINY = 1e-30;

type Pair = readonly [number, number];

/** The gradients [samples, dims] with noise; null where the batch has no two classes to hide. */
export function noisyClasses(
  rows: Float64Array, dims: number, positive: readonly boolean[], power: number, normal: Float32Array | Float64Array,
): Float64Array | null {
  const count = positive.length;
  const ones = positive.filter(Boolean).length;
  if (ones === 0 || ones === count) return null;
  const means = [false, true].map((kind) => meanOf(rows, dims, positive, kind));
  const difference = means[1].map((each, k) => each - means[0][k]);
  const gap = difference.reduce((sum, each) => sum + each * each, 0);
  if (gap <= 0) return null;
  const spread = means.map((mean, kind) => spreadOf(rows, dims, positive, kind === 1, mean)) as unknown as Pair;
  const { along, across } = leastTelling(gap, spread, dims, ones / count, power * gap);
  const direction = difference.map((each) => each / Math.sqrt(gap));
  const out = new Float64Array(rows.length);
  positive.forEach((is, row) => {
    const [a, c] = [Math.sqrt(along[Number(is)]), Math.sqrt(across[Number(is)])];
    const drawn = normal.subarray(row * dims, (row + 1) * dims);
    const part = direction.reduce((sum, each, k) => sum + each * drawn[k], 0);
    for (let k = 0; k < dims; k++) {
      const parallel = part * direction[k];
      out[row * dims + k] = rows[row * dims + k] + c * (drawn[k] - parallel) + a * parallel;
    }
  });
  return out;
}

function meanOf(rows: Float64Array, dims: number, positive: readonly boolean[], kind: boolean): Float64Array {
  const sum = new Float64Array(dims);
  let count = 0;
  positive.forEach((is, row) => {
    if (is !== kind) return;
    count += 1;
    for (let k = 0; k < dims; k++) sum[k] += rows[row * dims + k];
  });
  return sum.map((each) => each / count);
}

/** A class's own variance in one direction. */
function spreadOf(rows: Float64Array, dims: number, positive: readonly boolean[], kind: boolean, mean: Float64Array): number {
  let [sum, count] = [0, 0];
  positive.forEach((is, row) => {
    if (is !== kind) return;
    count += 1;
    for (let k = 0; k < dims; k++) sum += (rows[row * dims + k] - mean[k]) ** 2;
  });
  return sum / count / dims;
}

/** The variances of the noise on class 0 and class 1, along and across the difference of the means. */
function leastTelling(gap: number, spread: Pair, dims: number, positive: number, power: number): { along: Pair; across: Pair } {
  const shares: Pair = [Math.max(1 - positive, TINY), Math.max(positive, TINY)];
  const low = spread[0] <= spread[1] ? 0 : 1;
  const dear = shares[low] * (dims - 1);
  const most = Math.min(power, dear * Math.abs(spread[1] - spread[0]));
  const tells = (spent: number, part: number): number => {
    const raised = dear > 0 ? spent / dear : 0;
    const ratio = (spread[low] + raised + TINY) / (spread[1 - low] + TINY);
    const left = power - spent;
    const first = spread[0] + (part * left) / shares[0] + TINY;
    const second = spread[1] + ((1 - part) * left) / shares[1] + TINY;
    return (dims - 1) * (ratio + 1 / ratio - 2) + first / second + second / first - 2 + gap * (1 / first + 1 / second);
  };
  let best = [Infinity, 0, 0];
  let [acrossSpan, alongSpan]: Pair[] = [[0, most], [0, 1]];
  for (let round = 0; round < ROUNDS; round++) {
    const [spent, part] = [points(acrossSpan), points(alongSpan)];
    let [row, column, least] = [0, 0, Infinity];
    spent.forEach((s, r) => part.forEach((p, c) => {
      const found = tells(s, p);
      if (found < least) [row, column, least] = [r, c, found];
    }));
    if (least < best[0]) best = [least, spent[row], part[column]];
    [acrossSpan, alongSpan] = [around(spent, row), around(part, column)];
  }
  const [, spent, share] = best;
  const rest = power - spent;
  const across: [number, number] = [0, 0];
  across[low] = dear > 0 ? spent / dear : 0;
  return { along: [(share * rest) / shares[0], ((1 - share) * rest) / shares[1]], across };
}

function points([from, to]: Pair): number[] {
  const step = (to - from) / (GRID - 1);
  return Array.from({ length: GRID }, (_, at) => (at === GRID - 1 ? to : from + at * step));
}

function around(found: readonly number[], place: number): Pair {
  return [found[Math.max(0, place - 1)], found[Math.min(found.length - 1, place + 1)]];
}
