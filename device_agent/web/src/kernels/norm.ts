// Normalization over [samples][channels][inner], and over rows.

@inline function sumOf(v: v128): f64 {
  return (<f64>f32x4.extract_lane(v, 0) + <f64>f32x4.extract_lane(v, 1)) + (<f64>f32x4.extract_lane(v, 2) + <f64>f32x4.extract_lane(v, 3));
}

/** The sum of `count` numbers. */
function sum(x: usize, count: i32): f64 {
  let total: f64 = 0;
  const whole = count & ~3;
  for (let from = 0; from < whole; from += 1024) { // short runs, so that many small numbers don't vanish
    let v = f32x4.splat(0);
    for (const stop = x + (<usize>min(1024, whole - from) << 2); x < stop; x += 16) v = f32x4.add(v, v128.load(x));
    total += sumOf(v);
  }
  for (let i = whole; i < count; i++, x += 4) total += <f64>load<f32>(x);
  return total;
}

/** The sum of (x - mean)^2. */
function sumOfSquares(x: usize, count: i32, mean: f32): f64 {
  let total: f64 = 0;
  const whole = count & ~3, m = f32x4.splat(mean);
  for (let from = 0; from < whole; from += 1024) {
    let v = f32x4.splat(0);
    for (const stop = x + (<usize>min(1024, whole - from) << 2); x < stop; x += 16) {
      const d = f32x4.sub(v128.load(x), m);
      v = f32x4.add(v, f32x4.mul(d, d));
    }
    total += sumOf(v);
  }
  for (let i = whole; i < count; i++, x += 4) { const d = <f64>(load<f32>(x) - mean); total += d * d; }
  return total;
}

/** out[r] = the sum of row r, in double precision. */
export function rowSums(rows: i32, width: i32, x: usize, out: usize): void {
  for (let r = 0; r < rows; r++, out += 4) store<f32>(out, <f32>sum(x + (<usize>(r * width) << 2), width));
}

/** The sum of squares of `count` numbers. */
export function squares(x: usize, count: i32): f64 {
  return sumOfSquares(x, count, 0);
}

/** Mean and variance (divided by the count) of each channel of [samples][channels][inner]. */
export function channelStatistics(samples: i32, channels: i32, inner: i32, x: usize, mean: usize, variance: usize): void {
  const count = <f64>samples * <f64>inner;
  for (let c = 0; c < channels; c++) {
    let total: f64 = 0;
    for (let n = 0; n < samples; n++) total += sum(x + (<usize>((n * channels + c) * inner) << 2), inner);
    const m = <f32>(total / count);
    total = 0;
    for (let n = 0; n < samples; n++) total += sumOfSquares(x + (<usize>((n * channels + c) * inner) << 2), inner, m);
    store<f32>(mean + (<usize>c << 2), m);
    store<f32>(variance + (<usize>c << 2), <f32>(total / count));
  }
}

/** y = (x - mean) * scale + shift, one mean, scale and shift a channel; relu afterwards where asked. */
export function channelAffine(
  samples: i32, channels: i32, inner: i32, x: usize, mean: usize, scale: usize, shift: usize, y: usize, relu: i32,
): void {
  const zero = f32x4.splat(0);
  for (let n = 0; n < samples; n++) {
    for (let c = 0; c < channels; c++) {
      const at = <usize>c << 2, m = load<f32>(mean + at), k = load<f32>(scale + at), b = load<f32>(shift + at);
      const mv = f32x4.splat(m), kv = f32x4.splat(k), bv = f32x4.splat(b);
      let from = x + (<usize>((n * channels + c) * inner) << 2), to = y + (<usize>((n * channels + c) * inner) << 2);
      const stop = from + (<usize>(inner & ~3) << 2);
      if (relu) {
        for (; from < stop; from += 16, to += 16) {
          v128.store(to, f32x4.max(zero, f32x4.add(f32x4.mul(f32x4.sub(v128.load(from), mv), kv), bv)));
        }
      } else {
        for (; from < stop; from += 16, to += 16) {
          v128.store(to, f32x4.add(f32x4.mul(f32x4.sub(v128.load(from), mv), kv), bv));
        }
      }
      for (let i = inner & ~3; i < inner; i++, from += 4, to += 4) {
        const value = (load<f32>(from) - m) * k + b;
        store<f32>(to, relu ? max<f32>(value, 0) : value);
      }
    }
  }
}

/** dy = dy where y > 0, else 0, in place, of `count` numbers. */
@inline function masked(d: v128, y: usize, relu: i32): v128 {
  return relu ? v128.and(d, f32x4.gt(v128.load(y), f32x4.splat(0))) : d;
}

/**
 * Through relu (where asked: `y` is its output) and y = (x - mean) * rstd * gamma + beta, for each channel: the sums of
 * dy and of dy * (x - mean) * rstd; and dx, where `dx` is not 0 (it may be dy's memory): with the batch's statistics,
 * or with given ones (`fixed`). `scale` is rstd * gamma.
 */
export function channelBack(
  samples: i32, channels: i32, inner: i32, x: usize, mean: usize, rstd: usize, scale: usize, y: usize, relu: i32,
  dy: usize, fixed: i32, dgamma: usize, dbeta: usize, dx: usize,
): void {
  const count = <f64>samples * <f64>inner, whole = inner & ~3;
  for (let c = 0; c < channels; c++) {
    const channel = <usize>c << 2, m = load<f32>(mean + channel), mv = f32x4.splat(m), r = <f64>load<f32>(rstd + channel);
    let total: f64 = 0, product: f64 = 0;
    for (let n = 0; n < samples; n++) {
      const at = <usize>((n * channels + c) * inner) << 2;
      for (let from = 0; from < whole; from += 1024) {
        let s = f32x4.splat(0), p = s;
        for (let i = at + (<usize>from << 2), stop = i + (<usize>min(1024, whole - from) << 2); i < stop; i += 16) {
          const d = masked(v128.load(dy + i), y + i, relu);
          s = f32x4.add(s, d);
          p = f32x4.add(p, f32x4.mul(d, f32x4.sub(v128.load(x + i), mv)));
        }
        total += sumOf(s);
        product += sumOf(p);
      }
      for (let j = whole; j < inner; j++) {
        const i = at + (<usize>j << 2);
        const d = !relu || load<f32>(y + i) > 0 ? load<f32>(dy + i) : <f32>0;
        total += <f64>d;
        product += <f64>d * <f64>(load<f32>(x + i) - m);
      }
    }
    store<f32>(dbeta + channel, <f32>total);
    store<f32>(dgamma + channel, <f32>(product * r));
    if (!dx) continue;
    const k = load<f32>(scale + channel), kv = f32x4.splat(k);
    const a: f32 = fixed ? 0 : <f32>(total / count), av = f32x4.splat(a);
    const b: f32 = fixed ? 0 : <f32>(product * r * r / count), bv = f32x4.splat(b);
    for (let n = 0; n < samples; n++) {
      const at = <usize>((n * channels + c) * inner) << 2;
      for (let i = at, stop = at + (<usize>whole << 2); i < stop; i += 16) {
        const d = masked(v128.load(dy + i), y + i, relu);
        const away = f32x4.mul(f32x4.sub(v128.load(x + i), mv), bv);
        v128.store(dx + i, f32x4.mul(kv, f32x4.sub(f32x4.sub(d, av), away)));
      }
      for (let j = whole; j < inner; j++) {
        const i = at + (<usize>j << 2);
        const d = !relu || load<f32>(y + i) > 0 ? load<f32>(dy + i) : <f32>0;
        store<f32>(dx + i, k * (d - a - (load<f32>(x + i) - m) * b));
      }
    }
  }
}

/** y = (x - mean) / sqrt(variance + eps) of each row; its mean (0 where `plain`: root mean square) and 1 / root kept. */
export function rowNormalize(rows: i32, width: i32, eps: f64, plain: i32, x: usize, y: usize, means: usize, rstds: usize): void {
  for (let r = 0; r < rows; r++) {
    const at = <usize>(r * width) << 2;
    const m = plain ? <f32>0 : <f32>(sum(x + at, width) / <f64>width);
    const rstd = <f32>(1.0 / Math.sqrt(sumOfSquares(x + at, width, m) / <f64>width + eps));
    store<f32>(means + (<usize>r << 2), m);
    store<f32>(rstds + (<usize>r << 2), rstd);
    for (let i = 0; i < width; i++) {
      const place = at + (<usize>i << 2);
      store<f32>(y + place, (load<f32>(x + place) - m) * rstd);
    }
  }
}

/** dx of `rowNormalize`, from its y and dy. */
export function rowNormalizeBack(rows: i32, width: i32, plain: i32, y: usize, rstds: usize, dy: usize, dx: usize): void {
  for (let r = 0; r < rows; r++) {
    const at = <usize>(r * width) << 2;
    let total: f64 = 0, product: f64 = 0;
    for (let i = at, stop = at + (<usize>width << 2); i < stop; i += 4) {
      total += <f64>load<f32>(dy + i);
      product += <f64>load<f32>(dy + i) * <f64>load<f32>(y + i);
    }
    const a = plain ? <f32>0 : <f32>(total / <f64>width), b = <f32>(product / <f64>width);
    const k = load<f32>(rstds + (<usize>r << 2));
    for (let i = at, stop = at + (<usize>width << 2); i < stop; i += 4) {
      store<f32>(dx + i, k * (load<f32>(dy + i) - a - load<f32>(y + i) * b));
    }
  }
}

/** Softmax, or its logarithm, of each row. A row without any number above minus infinity gives NaN, or zeros (`safe`). */
export function softmax(rows: i32, width: i32, logarithm: i32, safe: i32, x: usize, y: usize): void {
  for (let r = 0; r < rows; r++) {
    const at = <usize>(r * width) << 2, stop = at + (<usize>width << 2);
    let most: f32 = -f32.POSITIVE_INFINITY, total: f64 = 0;
    for (let i = at; i < stop; i += 4) most = max<f32>(most, load<f32>(x + i));
    if (safe && most == -f32.POSITIVE_INFINITY) { memory.fill(y + at, 0, stop - at); continue; }
    if (logarithm) {
      for (let i = at; i < stop; i += 4) total += Math.exp(<f64>(load<f32>(x + i) - most));
      const log = Math.log(total);
      for (let i = at; i < stop; i += 4) store<f32>(y + i, <f32>(<f64>(load<f32>(x + i) - most) - log));
      continue;
    }
    for (let i = at; i < stop; i += 4) {
      const e = Math.exp(<f64>(load<f32>(x + i) - most));
      total += e;
      store<f32>(y + i, <f32>e);
    }
    for (let i = at; i < stop; i += 4) store<f32>(y + i, <f32>(<f64>load<f32>(y + i) / total));
  }
}

/** dx of `softmax`, from its y and dy. */
export function softmaxBack(rows: i32, width: i32, logarithm: i32, y: usize, dy: usize, dx: usize): void {
  for (let r = 0; r < rows; r++) {
    const at = <usize>(r * width) << 2, stop = at + (<usize>width << 2);
    let total: f64 = 0;
    for (let i = at; i < stop; i += 4) total += <f64>load<f32>(dy + i) * (logarithm ? 1.0 : <f64>load<f32>(y + i));
    for (let i = at; i < stop; i += 4) {
      const d = <f64>load<f32>(dy + i), value = <f64>load<f32>(y + i);
      store<f32>(dx + i, <f32>(logarithm ? d - Math.exp(value) * total : value * (d - total)));
    }
  }
}
