// Copies between a tensor in row-major order and one with strides.

/** Dimensions of a tensor at most. */
const MOST: i32 = 16;
const counter = new StaticArray<i32>(MOST);

/**
 * For every element of `shape`, in order: to[i] = from[its place] (`mode` 0), from[its place] = to[i] (1), or
 * from[its place] += to[i] (2). `shape` holds the sizes and then the strides, in numbers; the last size is at least 1.
 */
export function strided(mode: i32, dimensions: i32, shape: usize, from: usize, to: usize): void {
  const strides = shape + (<usize>dimensions << 2), last = dimensions - 1;
  const width = load<i32>(shape + (<usize>last << 2)), step = <usize>load<i32>(strides + (<usize>last << 2)) << 2;
  for (let d = 0; d < last; d++) unchecked(counter[d] = 0);
  for (;;) {
    let at = from;
    const stop = to + (<usize>width << 2);
    if (mode == 0 && step == 4) {
      memory.copy(to, at, <usize>width << 2);
      to = stop;
    } else if (mode == 0) for (; to < stop; to += 4, at += step) store<f32>(to, load<f32>(at));
    else if (mode == 1) for (; to < stop; to += 4, at += step) store<f32>(at, load<f32>(to));
    else for (; to < stop; to += 4, at += step) store<f32>(at, load<f32>(at) + load<f32>(to));
    let d = last - 1;
    for (; d >= 0; d--) {
      const stride = <usize>load<i32>(strides + (<usize>d << 2)) << 2, size = load<i32>(shape + (<usize>d << 2));
      const place = unchecked(counter[d]) + 1;
      if (place < size) {
        unchecked(counter[d] = place);
        from += stride;
        break;
      }
      unchecked(counter[d] = 0);
      from -= stride * <usize>(size - 1);
    }
    if (d < 0) return;
  }
}
