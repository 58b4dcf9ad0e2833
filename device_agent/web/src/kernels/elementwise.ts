// Element by element. A tensor begins at a multiple of 16, and its memory is padded to a multiple of 16 bytes, so
// that whole vectors may be read and written.

import { erf, erfSlope } from "./erf";

const HALF_PI_ROOT: f64 = 0.7978845608028654; // sqrt(2 / pi)
const CUBIC: f64 = 0.044715;

@inline function end(at: usize, count: i32): usize {
  return at + (((<usize>count + 3) & ~3) << 2);
}

/** to += from, of `count` numbers. */
export function addInto(to: usize, from: usize, count: i32): void {
  for (const stop = end(to, count); to < stop; to += 16, from += 16) {
    v128.store(to, f32x4.add(v128.load(to), v128.load(from)));
  }
}

/** out = x * factor + shift. */
export function affine(x: usize, factor: f32, shift: f32, out: usize, count: i32): void {
  const a = f32x4.splat(factor), b = f32x4.splat(shift);
  for (const stop = end(x, count); x < stop; x += 16, out += 16) {
    v128.store(out, f32x4.add(f32x4.mul(v128.load(x), a), b));
  }
}

export function fill(out: usize, value: f32, count: i32): void {
  const v = f32x4.splat(value);
  for (const stop = end(out, count); out < stop; out += 16) v128.store(out, v);
}

export const enum Binary { Add, Sub, Mul, Div, Max, Min, Pow, Atan2, Remainder, Fmod }

/** out = a (op) b, of tensors of one shape. */
export function binary(op: i32, a: usize, b: usize, out: usize, count: i32): void {
  const stop = end(a, count);
  switch (op) {
    case Binary.Add: for (; a < stop; a += 16, b += 16, out += 16) v128.store(out, f32x4.add(v128.load(a), v128.load(b))); return;
    case Binary.Sub: for (; a < stop; a += 16, b += 16, out += 16) v128.store(out, f32x4.sub(v128.load(a), v128.load(b))); return;
    case Binary.Mul: for (; a < stop; a += 16, b += 16, out += 16) v128.store(out, f32x4.mul(v128.load(a), v128.load(b))); return;
    case Binary.Div: for (; a < stop; a += 16, b += 16, out += 16) v128.store(out, f32x4.div(v128.load(a), v128.load(b))); return;
    case Binary.Max: for (; a < stop; a += 16, b += 16, out += 16) v128.store(out, f32x4.max(v128.load(a), v128.load(b))); return;
    case Binary.Min: for (; a < stop; a += 16, b += 16, out += 16) v128.store(out, f32x4.min(v128.load(a), v128.load(b))); return;
  }
  for (let i = 0; i < count; i++, a += 4, b += 4, out += 4) {
    const x = <f64>load<f32>(a), y = <f64>load<f32>(b);
    let z: f64;
    switch (op) {
      case Binary.Pow: z = Math.pow(x, y); break;
      case Binary.Atan2: z = Math.atan2(x, y); break;
      case Binary.Remainder: z = x - Math.floor(x / y) * y; break;
      default: z = x % y;
    }
    store<f32>(out, <f32>z);
  }
}

export const enum Unary {
  Relu, Neg, Abs, Sqrt, Rsqrt, Square, Reciprocal, Exp, Log, Sin, Cos, Tanh, Sigmoid, Silu, Gelu, GeluTanh, Erf,
  Softplus, Hardswish, Hardsigmoid, Clamp, Elu, LeakyRelu, Sign, Floor, Ceil, Round, Log1p, Expm1, PowScalar, Log2,
  LogSigmoid, Mish, Trunc, Tan, Exp2, Erfc, Sinh, Cosh, Asin, Acos, Atan, Log10,
}

@inline function sigmoid(x: f64): f64 { return 1.0 / (1.0 + Math.exp(-x)); }
@inline function softplus(x: f64): f64 { return (x > 0 ? x : 0.0) + Math.log1p(Math.exp(-Math.abs(x))); }

function roundEven(x: f64): f64 { return nearest(x); }

function unaryOf(op: i32, x: f64, p: f64, q: f64): f64 {
  switch (op) {
    case Unary.Neg: return -x;
    case Unary.Abs: return Math.abs(x);
    case Unary.Sqrt: return Math.sqrt(x);
    case Unary.Rsqrt: return 1.0 / Math.sqrt(x);
    case Unary.Square: return x * x;
    case Unary.Reciprocal: return 1.0 / x;
    case Unary.Exp: return Math.exp(x);
    case Unary.Log: return Math.log(x);
    case Unary.Sin: return Math.sin(x);
    case Unary.Cos: return Math.cos(x);
    case Unary.Tanh: return Math.tanh(x);
    case Unary.Sigmoid: return sigmoid(x);
    case Unary.Silu: return x * sigmoid(x);
    case Unary.Gelu: return 0.5 * x * (1.0 + erf(x * Math.SQRT1_2));
    case Unary.GeluTanh: return 0.5 * x * (1.0 + Math.tanh(HALF_PI_ROOT * (x + CUBIC * x * x * x)));
    case Unary.Erf: return erf(x);
    case Unary.Erfc: return 1.0 - erf(x);
    case Unary.Softplus: return x * p > q ? x : softplus(x * p) / p;
    case Unary.Hardswish: return x * min(max(x + 3.0, 0.0), 6.0) / 6.0;
    case Unary.Hardsigmoid: return min(max(x + 3.0, 0.0), 6.0) / 6.0;
    case Unary.Clamp: return x < p ? p : x > q ? q : x;
    case Unary.Elu: return x > 0 ? x : p * Math.expm1(x);
    case Unary.LeakyRelu: return x > 0 ? x : x * p;
    case Unary.Sign: return x > 0 ? 1.0 : x < 0 ? -1.0 : x;
    case Unary.Floor: return Math.floor(x);
    case Unary.Ceil: return Math.ceil(x);
    case Unary.Round: return roundEven(x);
    case Unary.Trunc: return Math.trunc(x);
    case Unary.Log1p: return Math.log1p(x);
    case Unary.Expm1: return Math.expm1(x);
    case Unary.PowScalar: return Math.pow(x, p);
    case Unary.Log2: return Math.log2(x);
    case Unary.Log10: return Math.log10(x);
    case Unary.LogSigmoid: return -softplus(-x);
    case Unary.Mish: return x * Math.tanh(softplus(x));
    case Unary.Tan: return Math.tan(x);
    case Unary.Exp2: return Math.pow(2.0, x);
    case Unary.Sinh: return Math.sinh(x);
    case Unary.Cosh: return Math.cosh(x);
    case Unary.Asin: return Math.asin(x);
    case Unary.Acos: return Math.acos(x);
    case Unary.Atan: return Math.atan(x);
    default: return x > 0 ? x : x != x ? x : 0.0; // Relu
  }
}

/** The derivative at x; y is the function's value there. */
function slopeOf(op: i32, x: f64, y: f64, p: f64, q: f64): f64 {
  switch (op) {
    case Unary.Neg: return -1.0;
    case Unary.Abs: return x > 0 ? 1.0 : x < 0 ? -1.0 : 0.0;
    case Unary.Sqrt: return 0.5 / y;
    case Unary.Rsqrt: return -0.5 * y * y * y;
    case Unary.Square: return 2.0 * x;
    case Unary.Reciprocal: return -y * y;
    case Unary.Exp: return y;
    case Unary.Log: return 1.0 / x;
    case Unary.Sin: return Math.cos(x);
    case Unary.Cos: return -Math.sin(x);
    case Unary.Tanh: return 1.0 - y * y;
    case Unary.Sigmoid: return y * (1.0 - y);
    case Unary.Silu: { const s = sigmoid(x); return s * (1.0 + x * (1.0 - s)); }
    case Unary.Gelu: return 0.5 * (1.0 + erf(x * Math.SQRT1_2)) + 0.5 * x * Math.SQRT1_2 * erfSlope(x * Math.SQRT1_2);
    case Unary.GeluTanh: {
      const t = Math.tanh(HALF_PI_ROOT * (x + CUBIC * x * x * x));
      return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * HALF_PI_ROOT * (1.0 + 3.0 * CUBIC * x * x);
    }
    case Unary.Erf: return erfSlope(x);
    case Unary.Erfc: return -erfSlope(x);
    case Unary.Softplus: return x * p > q ? 1.0 : sigmoid(x * p);
    case Unary.Hardswish: return x <= -3.0 ? 0.0 : x >= 3.0 ? 1.0 : (2.0 * x + 3.0) / 6.0;
    case Unary.Hardsigmoid: return x > -3.0 && x < 3.0 ? 1.0 / 6.0 : 0.0;
    case Unary.Clamp: return x >= p && x <= q ? 1.0 : 0.0;
    case Unary.Elu: return x > 0 ? 1.0 : y + p;
    case Unary.LeakyRelu: return x > 0 ? 1.0 : p;
    case Unary.Sign: case Unary.Floor: case Unary.Ceil: case Unary.Round: case Unary.Trunc: return 0.0;
    case Unary.Log1p: return 1.0 / (1.0 + x);
    case Unary.Expm1: return y + 1.0;
    case Unary.PowScalar: return p == 0 ? 0.0 : p * Math.pow(x, p - 1.0);
    case Unary.Log2: return 1.0 / (x * Math.LN2);
    case Unary.Log10: return 1.0 / (x * Math.LN10);
    case Unary.LogSigmoid: return sigmoid(-x);
    case Unary.Mish: { const t = Math.tanh(softplus(x)); return t + x * (1.0 - t * t) * sigmoid(x); }
    case Unary.Tan: return 1.0 + y * y;
    case Unary.Exp2: return y * Math.LN2;
    case Unary.Sinh: return Math.cosh(x);
    case Unary.Cosh: return Math.sinh(x);
    case Unary.Asin: return 1.0 / Math.sqrt(1.0 - x * x);
    case Unary.Acos: return -1.0 / Math.sqrt(1.0 - x * x);
    case Unary.Atan: return 1.0 / (1.0 + x * x);
    default: return x > 0 ? 1.0 : 0.0; // Relu
  }
}

/** y = f(x); p and q are the function's own constants. */
export function unary(op: i32, x: usize, y: usize, count: i32, p: f64, q: f64): void {
  if (op == Unary.Relu) {
    const zero = f32x4.splat(0);
    for (const stop = end(x, count); x < stop; x += 16, y += 16) v128.store(y, f32x4.max(zero, v128.load(x)));
    return;
  }
  if (op == Unary.Clamp) {
    const least = f32x4.splat(<f32>p), most = f32x4.splat(<f32>q);
    for (const stop = end(x, count); x < stop; x += 16, y += 16) {
      v128.store(y, f32x4.min(f32x4.max(v128.load(x), least), most));
    }
    return;
  }
  for (let i = 0; i < count; i++, x += 4, y += 4) store<f32>(y, <f32>unaryOf(op, <f64>load<f32>(x), p, q));
}

/** dx = dy * f'(x), where y = f(x). */
export function unaryBack(op: i32, x: usize, y: usize, dy: usize, dx: usize, count: i32, p: f64, q: f64): void {
  if (op == Unary.Clamp) {
    const least = f32x4.splat(<f32>p), most = f32x4.splat(<f32>q);
    for (const stop = end(x, count); x < stop; x += 16, dy += 16, dx += 16) {
      const value = v128.load(x);
      v128.store(dx, v128.and(v128.load(dy), v128.and(f32x4.ge(value, least), f32x4.le(value, most))));
    }
    return;
  }
  for (let i = 0; i < count; i++, x += 4, y += 4, dy += 4, dx += 4) {
    store<f32>(dx, <f32>(<f64>load<f32>(dy) * slopeOf(op, <f64>load<f32>(x), <f64>load<f32>(y), p, q)));
  }
}

/** dx = dy where y > 0, else 0: relu's gradient from its own output. */
export function reluBack(y: usize, dy: usize, dx: usize, count: i32): void {
  const zero = f32x4.splat(0);
  for (const stop = end(y, count); y < stop; y += 16, dy += 16, dx += 16) {
    v128.store(dx, v128.and(v128.load(dy), f32x4.gt(v128.load(y), zero)));
  }
}

/** Whether a number is NaN or infinite. */
export function notFinite(x: usize, count: i32): i32 {
  let sum = f32x4.splat(0);
  const zero = f32x4.splat(0), stop = x + ((<usize>count & ~3) << 2);
  for (; x < stop; x += 16) sum = f32x4.add(sum, f32x4.mul(v128.load(x), zero));
  let total = f32x4.extract_lane(sum, 0) + f32x4.extract_lane(sum, 1) + f32x4.extract_lane(sum, 2) + f32x4.extract_lane(sum, 3);
  for (let i = count & ~3; i < count; i++, x += 4) total += load<f32>(x) * <f32>0;
  return <i32>(total != 0);
}
