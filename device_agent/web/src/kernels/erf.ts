// The error function in double precision, to about nine digits.

const TWO_OVER_ROOT_PI: f64 = 1.1283791670955126;

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
    let term = x, sum = x;
    for (let n = 1; n < 14; n++) {
      term *= -x * x / <f64>n;
      sum += term / <f64>(2 * n + 1);
    }
    return sum * TWO_OVER_ROOT_PI;
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
