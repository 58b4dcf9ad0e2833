// Pooling over planes of h by w numbers.

/** Four numbers, each `step` (1 or 2) places after the one before. */
@inline function four(at: usize, step: i32): v128 {
  const first = v128.load(at);
  return step == 1 ? first : v128.shuffle<i32>(first, v128.load(at, 16), 0, 2, 4, 6);
}

/** The greatest number of each window and its place in the plane; a NaN is greatest. Padding is never chosen. */
export function maxPool(
  planes: i32, h: i32, w: i32, kh: i32, kw: i32, sh: i32, sw: i32, ph: i32, pw: i32, dh: i32, dw: i32, oh: i32, ow: i32,
  x: usize, y: usize, index: usize,
): void {
  // Between these columns no window touches the padding, and four outputs are computed at a time.
  const first = min(ow, (pw + sw - 1) / sw);
  const inner = sw <= 2 ? max(first, min(ow, (w - 1 + pw - (kw - 1) * dw) / sw + 1)) : first;
  const lanes = i32x4(0, sw, 2 * sw, 3 * sw);
  for (let plane = 0; plane < planes; plane++, x += <usize>(h * w) << 2) {
    for (let i = 0; i < oh; i++) {
      let top = i * sh - ph;
      if (top < 0) top += ((-top + dh - 1) / dh) * dh;
      const bottom = min(h, i * sh - ph + (kh - 1) * dh + 1);
      for (let j = 0; j < ow;) {
        if (j >= first && j < inner && inner - first >= 4) {
          const back = max(0, j + 4 - inner); // the last four may be computed beside some that were
          j -= back; y -= <usize>back << 2; index -= <usize>back << 2;
          let best = f32x4.splat(-f32.POSITIVE_INFINITY), at = i32x4.add(i32x4.splat(top * w + j * sw - pw), lanes);
          for (let a = top; a < bottom; a += dh) {
            for (let b = 0; b < kw; b++) {
              const place = a * w + j * sw - pw + b * dw;
              const value = four(x + (<usize>place << 2), sw);
              const more = v128.or(f32x4.gt(value, best), f32x4.ne(value, value));
              best = v128.bitselect(value, best, more);
              at = v128.bitselect(i32x4.add(i32x4.splat(place), lanes), at, more);
            }
          }
          v128.store(y, best);
          v128.store(index, at);
          j += 4; y += 16; index += 16;
          continue;
        }
        let left = j * sw - pw;
        if (left < 0) left += ((-left + dw - 1) / dw) * dw;
        const right = min(w, j * sw - pw + (kw - 1) * dw + 1);
        let best: f32 = -f32.POSITIVE_INFINITY, at = top * w + left;
        for (let a = top; a < bottom; a += dh) {
          for (let b = a * w + left, stop = a * w + right; b < stop; b += dw) {
            const value = load<f32>(x + (<usize>b << 2)), more = value > best || value != value;
            best = select<f32>(value, best, more);
            at = select<i32>(b, at, more);
          }
        }
        store<f32>(y, best);
        store<i32>(index, at);
        j++; y += 4; index += 4;
      }
    }
  }
}

/** dx = 0, and the gradient of each output added at its place; planes of `inputs` and of `outputs` numbers. */
export function maxPoolBack(planes: i32, inputs: i32, outputs: i32, dy: usize, index: usize, dx: usize): void {
  memory.fill(dx, 0, <usize>planes * <usize>inputs << 2);
  for (let plane = 0; plane < planes; plane++, dx += <usize>inputs << 2) {
    for (let o = 0; o < outputs; o++, dy += 4, index += 4) {
      const at = dx + (<usize>load<i32>(index) << 2);
      store<f32>(at, load<f32>(at) + load<f32>(dy));
    }
  }
}

/**
 * The mean of each window: `limits` holds for each row of outputs and then for each column the first and the last
 * (excluded) row or column of the window; `divisor` holds 1 / count for each output.
 */
export function averagePool(
  planes: i32, h: i32, w: i32, oh: i32, ow: i32, limits: usize, factor: usize, x: usize, y: usize,
): void {
  const columns = limits + (<usize>oh << 3);
  for (let plane = 0; plane < planes; plane++, x += <usize>(h * w) << 2) {
    for (let i = 0, f = factor; i < oh; i++) {
      const top = load<i32>(limits + (<usize>i << 3)), bottom = load<i32>(limits + (<usize>i << 3), 4);
      for (let j = 0; j < ow; j++, y += 4, f += 4) {
        const left = load<i32>(columns + (<usize>j << 3)), right = load<i32>(columns + (<usize>j << 3), 4);
        let total: f32 = 0;
        for (let a = top; a < bottom; a++) {
          for (let b = x + (<usize>(a * w + left) << 2), stop = x + (<usize>(a * w + right) << 2); b < stop; b += 4) total += load<f32>(b);
        }
        store<f32>(y, total * load<f32>(f));
      }
    }
  }
}

/** dx = 0, and each output's gradient times its factor added to its window. */
export function averagePoolBack(
  planes: i32, h: i32, w: i32, oh: i32, ow: i32, limits: usize, factor: usize, dy: usize, dx: usize,
): void {
  const columns = limits + (<usize>oh << 3);
  memory.fill(dx, 0, <usize>planes * <usize>(h * w) << 2);
  for (let plane = 0; plane < planes; plane++, dx += <usize>(h * w) << 2) {
    for (let i = 0, f = factor; i < oh; i++) {
      const top = load<i32>(limits + (<usize>i << 3)), bottom = load<i32>(limits + (<usize>i << 3), 4);
      for (let j = 0; j < ow; j++, dy += 4, f += 4) {
        const left = load<i32>(columns + (<usize>j << 3)), right = load<i32>(columns + (<usize>j << 3), 4);
        const share = load<f32>(dy) * load<f32>(f);
        for (let a = top; a < bottom; a++) {
          for (let b = dx + (<usize>(a * w + left) << 2), stop = dx + (<usize>(a * w + right) << 2); b < stop; b += 4) {
            store<f32>(b, load<f32>(b) + share);
          }
        }
      }
    }
  }
}
