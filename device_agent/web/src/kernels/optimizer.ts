// One optimizer step on one tensor, in the order of operations of torch's classes.

/** Stochastic gradient descent. `buffer` is 0 without momentum; `first`: the buffer begins as the gradient. */
export function sgd(
  count: i32, p: usize, g: usize, buffer: usize, first: i32, rate: f32, momentum: f32, dampening: f32, nesterov: i32, decay: f32,
): void {
  for (let i = 0; i < count; i++, p += 4, g += 4) {
    const value = load<f32>(p);
    let d = load<f32>(g);
    if (decay != 0) d = d + decay * value;
    if (buffer) {
      const b = first ? d : momentum * load<f32>(buffer) + (<f32>1 - dampening) * d;
      store<f32>(buffer, b);
      buffer += 4;
      d = nesterov ? d + momentum * b : b;
    }
    store<f32>(p, value - rate * d);
  }
}

/** Adam, and AdamW (`decoupled`). `one` and `two` are the bias corrections 1 - beta^step. */
export function adam(
  count: i32, p: usize, g: usize, mean: usize, square: usize, rate: f64, beta1: f64, beta2: f64, eps: f64, decay: f64,
  decoupled: i32, one: f64, two: f64,
): void {
  const size = rate / one, root = Math.sqrt(two), w1 = <f32>(1.0 - beta1), b2 = <f32>beta2, w2 = <f32>(1.0 - beta2);
  const keep = <f32>(1.0 - rate * decay), wd = <f32>decay;
  for (let i = 0; i < count; i++, p += 4, g += 4, mean += 4, square += 4) {
    let value = load<f32>(p), d = load<f32>(g);
    if (decay != 0) {
      if (decoupled) value = value * keep;
      else d = d + wd * value;
    }
    const m = load<f32>(mean) + w1 * (d - load<f32>(mean));
    const v = load<f32>(square) * b2 + w2 * d * d;
    store<f32>(mean, m);
    store<f32>(square, v);
    const below = <f32>(<f64>sqrt<f32>(v) / root) + <f32>eps;
    store<f32>(p, value - <f32>size * (m / below));
  }
}
