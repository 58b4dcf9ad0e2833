// Convolutions as sums over taps: a tap is a place in the padded input, relative to the output's place.
//
// The padded input is split by columns modulo the stride (`spread`), so that four outputs beside each other read
// four numbers beside each other. Outputs are computed four at a time: a `place` is the input's byte offset of four
// outputs of one row. Rows of outputs are padded to multiples of four.

@inline function madd(sum: v128, a: v128, b: v128): v128 {
  return f32x4.add(sum, f32x4.mul(a, b));
}

/**
 * Copy planes of h by w numbers into planes of `rows` by (`stride` times `width`), shifted by `top` and `left` (which
 * may be negative), zeros around; column x goes to place x / stride of part x % stride of its row.
 */
export function spread(
  planes: i32, h: i32, w: i32, x: usize, top: i32, left: i32, rows: i32, width: i32, stride: i32, out: usize,
): void {
  const row = <usize>(width * stride) << 2;
  memory.fill(out, 0, <usize>planes * <usize>rows * row);
  for (let plane = 0; plane < planes; plane++) {
    for (let i = max(0, -top); i < min(h, rows - top); i++) {
      const from = x + (<usize>((plane * h + i) * w) << 2);
      const to = out + <usize>(plane * rows + i + top) * row;
      if (stride == 1) {
        const skip = max(0, -left), count = min(w, width - left) - skip;
        if (count > 0) memory.copy(to + (<usize>(left + skip) << 2), from + (<usize>skip << 2), <usize>count << 2);
        continue;
      }
      let j = max(0, -left);
      const last = min(w, width * stride - left);
      if (stride == 2) {
        if ((j + left) & 1 && j < last) {
          store<f32>(to + (<usize>(width + ((j + left) >> 1)) << 2), load<f32>(from + (<usize>j << 2)));
          j++;
        }
        for (; j + 8 <= last; j += 8) {
          const a = v128.load(from + (<usize>j << 2)), b = v128.load(from + (<usize>j << 2), 16);
          const place = to + (<usize>((j + left) >> 1) << 2);
          v128.store(place, v128.shuffle<i32>(a, b, 0, 2, 4, 6));
          v128.store(place + (<usize>width << 2), v128.shuffle<i32>(a, b, 1, 3, 5, 7));
        }
      }
      for (; j < last; j++) {
        const column = j + left;
        store<f32>(to + (<usize>((column % stride) * width + column / stride) << 2), load<f32>(from + (<usize>j << 2)));
      }
    }
  }
}

/** Weights of `rows` outputs by `taps` as panels of four outputs: [rows / 4][taps][4], zeros beyond the last. */
export function packWeights(rows: i32, taps: i32, w: usize, rowStride: i32, order: usize, out: usize): void {
  for (let row = 0; row < rows; row += 4) {
    for (let t = 0; t < taps; t++, out += 16) {
      const at = w + (<usize>load<i32>(order + (<usize>t << 2)) << 2);
      for (let r = 0; r < 4; r++) {
        store<f32>(out + (<usize>r << 2), row + r < rows ? load<f32>(at + (<usize>((row + r) * rowStride) << 2)) : 0);
      }
    }
  }
}

/**
 * out[r][p] = bias[r] + sum over taps of weight[r][tap] * x[place[p] + offset[tap]], for r of `rows` and p of `places`
 * quadruples. Rows of `out` lie `outStride` bytes apart, quadruples 16 bytes; `bias` is 0 where there is none.
 */
export function convolve(
  rows: i32, places: i32, taps: i32, x: usize, place: usize, offset: usize, weights: usize, bias: usize,
  out: usize, outStride: i32,
): void {
  const st = <usize>outStride, zero = f32x4.splat(0);
  for (let p = 0; p < places; p += 2) {
    const two = p + 1 < places;
    const x0 = x + <usize>load<i32>(place + (<usize>p << 2));
    const x1 = two ? x + <usize>load<i32>(place + (<usize>(p + 1) << 2)) : x0;
    let w = weights;
    for (let r = 0; r < rows; r += 4) {
      let c00 = zero, c01 = zero, c10 = zero, c11 = zero, c20 = zero, c21 = zero, c30 = zero, c31 = zero;
      for (let o = offset, stop = offset + (<usize>taps << 2); o < stop; o += 4, w += 16) {
        const at = <usize>load<i32>(o);
        const b0 = v128.load(x0 + at), b1 = v128.load(x1 + at);
        let v = v128.load32_splat(w);
        c00 = madd(c00, v, b0); c01 = madd(c01, v, b1);
        v = v128.load32_splat(w, 4);
        c10 = madd(c10, v, b0); c11 = madd(c11, v, b1);
        v = v128.load32_splat(w, 8);
        c20 = madd(c20, v, b0); c21 = madd(c21, v, b1);
        v = v128.load32_splat(w, 12);
        c30 = madd(c30, v, b0); c31 = madd(c31, v, b1);
      }
      if (bias) {
        const from = bias + (<usize>r << 2);
        let v = v128.load32_splat(from);
        c00 = f32x4.add(c00, v); c01 = f32x4.add(c01, v);
        if (r + 1 < rows) { v = v128.load32_splat(from, 4); c10 = f32x4.add(c10, v); c11 = f32x4.add(c11, v); }
        if (r + 2 < rows) { v = v128.load32_splat(from, 8); c20 = f32x4.add(c20, v); c21 = f32x4.add(c21, v); }
        if (r + 3 < rows) { v = v128.load32_splat(from, 12); c30 = f32x4.add(c30, v); c31 = f32x4.add(c31, v); }
      }
      let to = out + <usize>r * st + (<usize>p << 4);
      v128.store(to, c00); if (two) v128.store(to, c01, 16);
      if (r + 1 < rows) { to += st; v128.store(to, c10); if (two) v128.store(to, c11, 16); }
      if (r + 2 < rows) { to += st; v128.store(to, c20); if (two) v128.store(to, c21, 16); }
      if (r + 3 < rows) { to += st; v128.store(to, c30); if (two) v128.store(to, c31, 16); }
    }
  }
}

/** One output row alone, as depthwise convolutions have it: `convolve` of rows = 1, four quadruples at a time. */
export function convolveOne(
  places: i32, taps: i32, x: usize, place: usize, offset: usize, weights: usize, bias: f32, out: usize,
): void {
  const start = f32x4.splat(bias);
  let p = 0;
  for (; p + 4 <= places; p += 4) {
    const q = place + (<usize>p << 2);
    const x0 = x + <usize>load<i32>(q), x1 = x + <usize>load<i32>(q, 4), x2 = x + <usize>load<i32>(q, 8), x3 = x + <usize>load<i32>(q, 12);
    let c0 = start, c1 = start, c2 = start, c3 = start;
    for (let t = 0; t < taps; t++) {
      const at = <usize>load<i32>(offset + (<usize>t << 2)), v = v128.load32_splat(weights + (<usize>t << 2));
      c0 = madd(c0, v, v128.load(x0 + at)); c1 = madd(c1, v, v128.load(x1 + at));
      c2 = madd(c2, v, v128.load(x2 + at)); c3 = madd(c3, v, v128.load(x3 + at));
    }
    const to = out + (<usize>p << 4);
    v128.store(to, c0); v128.store(to, c1, 16); v128.store(to, c2, 32); v128.store(to, c3, 48);
  }
  for (; p < places; p++) {
    const x0 = x + <usize>load<i32>(place + (<usize>p << 2));
    let c = start;
    for (let t = 0; t < taps; t++) {
      c = madd(c, v128.load32_splat(weights + (<usize>t << 2)), v128.load(x0 + <usize>load<i32>(offset + (<usize>t << 2))));
    }
    v128.store(out + (<usize>p << 4), c);
  }
}

@inline function sumOf(v: v128): f32 {
  return (f32x4.extract_lane(v, 0) + f32x4.extract_lane(v, 1)) + (f32x4.extract_lane(v, 2) + f32x4.extract_lane(v, 3));
}

@inline function addAt(at: usize, value: v128): void {
  store<f32>(at, load<f32>(at) + sumOf(value));
}

/**
 * Pack the gradients of outputs by four rows: [rows / 4][lines * quads][4][4], where a row has `lines` lines of `width`
 * numbers, each padded with zeros to `quads` quadruples. Rows beyond the last are zeros.
 */
export function packGradients(rows: i32, lines: i32, width: i32, quads: i32, dy: usize, out: usize): void {
  const size = <usize>(lines * width) << 2, places = lines * quads, panels = (rows + 3) >> 2;
  if ((rows & 3) != 0 || (width & 3) != 0) memory.fill(out, 0, <usize>panels * <usize>places << 6);
  for (let r = 0; r < rows; r++, dy += size) {
    let from = dy, to = out + ((<usize>(r >> 2) * places) << 6) + (<usize>(r & 3) << 4);
    for (let line = 0; line < lines; line++) {
      for (let left = width; left > 0; left -= 4, to += 64) {
        if (left >= 4) {
          v128.store(to, v128.load(from));
          from += 16;
        } else {
          for (let j = 0; j < left; j++, from += 4) store<f32>(to + (<usize>j << 2), load<f32>(from));
        }
      }
    }
  }
}

/**
 * dw[r][tap] += sum over p of dy[r][p] * x[place[p] + offset[tap]], where `dy` was packed by `packGradients`. Rows of
 * `dw` have `taps` numbers.
 */
export function convolveWeights(
  rows: i32, places: i32, taps: i32, x: usize, place: usize, offset: usize, dy: usize, dw: usize,
): void {
  const zero = f32x4.splat(0), stop = place + (<usize>places << 2), down = <usize>taps << 2;
  for (let r = 0; r < rows; r += 4, dy += <usize>places << 6) {
    for (let t = 0; t < taps; t += 2) {
      const both = t + 1 < taps;
      const xa = x + <usize>load<i32>(offset + (<usize>t << 2));
      const xb = both ? x + <usize>load<i32>(offset + (<usize>(t + 1) << 2)) : xa;
      let c00 = zero, c01 = zero, c10 = zero, c11 = zero, c20 = zero, c21 = zero, c30 = zero, c31 = zero;
      for (let q = place, y = dy; q < stop; q += 4, y += 64) {
        const from = <usize>load<i32>(q);
        const b0 = v128.load(xa + from), b1 = v128.load(xb + from);
        let v = v128.load(y);
        c00 = madd(c00, v, b0); c01 = madd(c01, v, b1);
        v = v128.load(y, 16);
        c10 = madd(c10, v, b0); c11 = madd(c11, v, b1);
        v = v128.load(y, 32);
        c20 = madd(c20, v, b0); c21 = madd(c21, v, b1);
        v = v128.load(y, 48);
        c30 = madd(c30, v, b0); c31 = madd(c31, v, b1);
      }
      let to = dw + <usize>r * down + (<usize>t << 2);
      addAt(to, c00); if (both) addAt(to + 4, c01);
      if (r + 1 < rows) { to += down; addAt(to, c10); if (both) addAt(to + 4, c11); }
      if (r + 2 < rows) { to += down; addAt(to, c20); if (both) addAt(to + 4, c21); }
      if (r + 3 < rows) { to += down; addAt(to, c30); if (both) addAt(to + 4, c31); }
    }
  }
}

/** Copy rows of `from` numbers into rows of `to` numbers, of which the smaller count is copied; zeros fill up. */
export function repack(rows: i32, x: usize, from: i32, out: usize, to: i32): void {
  const count = <usize>min(from, to) << 2, width = <usize>to << 2;
  for (let r = 0; r < rows; r++, x += <usize>from << 2, out += width) {
    memory.copy(out, x, count);
    if (to > from) memory.fill(out + count, 0, width - count);
  }
}

/** Write rows of numbers, each `step` places after the one before in its row of `out` and `outRow` numbers apart. */
export function scatterRows(rows: i32, width: i32, x: usize, xRow: i32, out: usize, outRow: i32, step: i32): void {
  for (let r = 0; r < rows; r++) {
    let from = x + (<usize>(r * xRow) << 2), to = out + (<usize>(r * outRow) << 2);
    for (let j = 0; j < width; j++, from += 4, to += <usize>step << 2) store<f32>(to, load<f32>(from));
  }
}
