// The error function in double precision, to about nine digits.

const TWO_OVER_ROOT_PI: f64 = 1.1283791670955126;

// erf(x) / x as a power series in x^2, over TWO_OVER_ROOT_PI: (-1)^n / (n! * (2n + 1)).
const MIDDLE: StaticArray<f64> = [
  1.0,
  -0.3333333333333333,
  0.1,
  -0.023809523809523808,
  0.004629629629629629,
  -0.0007575757575757576,
  0.00010683760683760684,
  -1.3227513227513228e-05,
  1.4589169000933706e-06,
  -1.4503852223150468e-07,
  1.3122532963802806e-08,
  -1.0892221037148573e-09,
  8.35070279514724e-11,
  -5.9477940136376354e-12,
];

// exp(x^2) * erfc(x) / t as a polynomial in 3 * t - 1, where t = 1 / (1 + x / 2): fitted to x from 1 to infinity at
// Chebyshev's nodes.
const TAIL: StaticArray<f64> = [
  0.41099837286902347,
  0.17190473715585503,
  0.051458944170588994,
  0.008316561973789409,
  -0.0007068671435766632,
  -0.000628443617246177,
  -1.8405431271587674e-05,
  5.2248327039821e-05,
  3.2221495721359025e-06,
  -5.262378217987292e-06,
  -1.886051482565388e-07,
  4.447712748823951e-07,
];

export function erf(x: f64): f64 {
  const a = Math.abs(x);
  if (a < 1.0) {
    const square = x * x;
    let sum: f64 = 0;
    for (let n = MIDDLE.length - 1; n >= 0; n--) sum = sum * square + unchecked(MIDDLE[n]);
    return x * sum * TWO_OVER_ROOT_PI;
  }
  const t = 1.0 / (1.0 + 0.5 * a), u = 3.0 * t - 1.0;
  let sum: f64 = 0;
  for (let n = TAIL.length - 1; n >= 0; n--) sum = sum * u + unchecked(TAIL[n]);
  const value = 1.0 - Math.exp(-a * a) * t * sum;
  return x > 0 ? value : x < 0 ? -value : x;
}

export function erfSlope(x: f64): f64 {
  return TWO_OVER_ROOT_PI * Math.exp(-x * x);
}
