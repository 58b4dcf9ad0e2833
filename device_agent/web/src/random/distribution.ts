/**
 * The distribution function of the standard normal law, and its inverse, to about 14 digits.
 *
 * Near the middle the function is a power series, in the tails a continued fraction of Mills' ratio. The inverse
 * begins with the leading terms of the tail and is mended by Halley's steps.
 */

const HALF_LOG_2PI = 0.5 * Math.log(2 * Math.PI);
const MIDDLE = 2.5;

function density(x: number): number {
  return Math.exp(-0.5 * x * x - HALF_LOG_2PI);
}

/** The area below `-x` for x >= MIDDLE, over the density there. */
function mills(x: number): number {
  let value = 0;
  for (let level = 200; level > 0; level--) value = level / (x + value);
  return 1 / (x + value);
}

/** The area from 0 to x, for |x| < MIDDLE. */
function middle(x: number): number {
  let term = x;
  let sum = x;
  for (let odd = 3; Math.abs(term) > 1e-18 * Math.abs(sum); odd += 2) {
    term *= (x * x) / odd;
    sum += term;
  }
  return sum * density(x);
}

/** The probability of a number below x. */
export function ndtr(x: number): number {
  if (Number.isNaN(x)) return NaN;
  if (x <= -MIDDLE) return x < -40 ? 0 : density(x) * mills(-x);
  if (x >= MIDDLE) return 1 - (x > 40 ? 0 : density(x) * mills(x));
  return 0.5 + middle(x);
}

/** The number below which another lies with probability p. */
export function ndtri(p: number): number {
  if (!(p >= 0 && p <= 1)) return NaN;
  if (p === 0) return -Infinity;
  if (p === 1) return Infinity;
  if (p > 0.5) return -ndtri(1 - p);
  let x = 0;
  if (p < 0.2) {
    const t = Math.sqrt(-2 * Math.log(p));
    x = -(t - Math.log(t * Math.sqrt(2 * Math.PI)) / t);
  }
  for (let round = 0; round < 8; round++) {
    const step = (ndtr(x) - p) / density(x);
    const moved = step / (1 + 0.5 * x * step);
    x -= moved;
    if (Math.abs(moved) <= 1e-15 * Math.abs(x)) break;
  }
  return x;
}
