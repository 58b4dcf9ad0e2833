/** NoPeek: the head also learns to send what depends less on its inputs. See `spliteasy/privacy/defences/nopeek.py`. */

import type { Tensor } from "../../engine/types.ts";

const TINY = 1e-9;

/** The gradient of strength · distance correlation of inputs and what is sent, by what is sent. */
export function penaltyGradient(strength: number, inputs: readonly Tensor[], sent: Tensor): Float32Array {
  const count = sent.shape[0];
  if (!inputs.length || count < 2) return new Float32Array(sent.data.length);
  const seen = centred(distances(inputs, count), count);
  const apart = distances([sent], count);
  const other = centred(apart, count);
  const pairs = count * count;
  const mean = (one: Float64Array, two: Float64Array): number => one.reduce((sum, each, at) => sum + each * two[at], 0) / pairs;
  const [covariance, first, second] = [mean(seen, other), mean(seen, seen), mean(other, other)];
  const variances = first * second;
  if (variances < TINY) return new Float32Array(sent.data.length);
  const held = Math.max(covariance, TINY);
  const correlation = Math.sqrt(held / Math.sqrt(variances));
  const byCovariance = covariance >= TINY ? strength / (2 * correlation * Math.sqrt(variances)) : 0;
  const bySecond = (-strength * held * first) / (4 * correlation * variances ** 1.5);
  const back = centred(seen.map((each, at) => (each * byCovariance + 2 * other[at] * bySecond) / pairs), count);
  return byValues(back, apart, sent);
}

/** The distances of all pairs of samples, [count, count]. */
function distances(values: readonly Tensor[], count: number): Float64Array {
  const out = new Float64Array(count * count);
  for (const { data } of values) {
    const width = data.length / count;
    const numbers = data as Float32Array;
    for (let i = 0; i < count; i++) {
      for (let j = 0; j < i; j++) {
        let sum = 0;
        for (let k = 0; k < width; k++) sum += (numbers[i * width + k] - numbers[j * width + k]) ** 2;
        out[i * count + j] += sum;
        out[j * count + i] += sum;
      }
    }
  }
  return out.map((square) => (square > 0 ? Math.sqrt(Math.max(square, TINY ** 2)) : 0));
}

/** Less the means of row and column. */
function centred(table: Float64Array, count: number): Float64Array {
  const rows = new Float64Array(count);
  const columns = new Float64Array(count);
  table.forEach((each, at) => {
    rows[Math.floor(at / count)] += each / count;
    columns[at % count] += each / count;
  });
  const whole = rows.reduce((sum, each) => sum + each, 0) / count;
  return table.map((each, at) => each - rows[Math.floor(at / count)] - columns[at % count] + whole);
}

/** The gradient of the values, from that of their distances. */
function byValues(back: Float64Array, apart: Float64Array, { shape: [count], data }: Tensor): Float32Array {
  const width = data.length / count;
  const numbers = data as Float32Array;
  const out = new Float64Array(data.length);
  for (let i = 0; i < count; i++) {
    for (let j = 0; j < count; j++) {
      const distance = apart[i * count + j];
      if (distance <= TINY) continue;
      const weight = (back[i * count + j] + back[j * count + i]) / distance;
      for (let k = 0; k < width; k++) out[i * width + k] += weight * (numbers[i * width + k] - numbers[j * width + k]);
    }
  }
  return Float32Array.from(out);
}
