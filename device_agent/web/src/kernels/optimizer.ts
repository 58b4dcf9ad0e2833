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

/** RMSprop. `average` is 0 unless it is centered, `buffer` 0 without momentum. */
export function rmsprop(
  count: i32, p: usize, g: usize, square: usize, average: usize, buffer: usize, rate: f32, alpha: f64, eps: f32, momentum: f32,
  decay: f32,
): void {
  const keep = <f32>alpha, w = <f32>(1.0 - alpha);
  for (let i = 0; i < count; i++, p += 4, g += 4, square += 4) {
    let d = load<f32>(g);
    if (decay != 0) d = d + decay * load<f32>(p);
    const s = load<f32>(square) * keep + w * d * d;
    store<f32>(square, s);
    let under = s;
    if (average) {
      const a = mixed(load<f32>(average), d, w);
      store<f32>(average, a);
      average += 4;
      under = s - a * a;
    }
    const below = sqrt<f32>(under) + eps;
    if (buffer) {
      const b = load<f32>(buffer) * momentum + d / below;
      store<f32>(buffer, b);
      buffer += 4;
      store<f32>(p, load<f32>(p) - rate * b);
    } else {
      store<f32>(p, load<f32>(p) - rate * (d / below));
    }
  }
}

/** Adagrad; `rate` is what its own decay has left of the learning rate. */
export function adagrad(count: i32, p: usize, g: usize, sum: usize, rate: f32, eps: f32, decay: f32): void {
  for (let i = 0; i < count; i++, p += 4, g += 4, sum += 4) {
    const value = load<f32>(p);
    let d = load<f32>(g);
    if (decay != 0) d = d + decay * value;
    const s = load<f32>(sum) + d * d;
    store<f32>(sum, s);
    store<f32>(p, value - rate * (d / (sqrt<f32>(s) + eps)));
  }
}

/** Lion: each weight moves by `rate` in the direction of a sign; `keep` is what its decay leaves of the weight. */
export function lion(count: i32, p: usize, g: usize, momentum: usize, rate: f32, beta1: f32, part2: f32, keep: f32): void {
  for (let i = 0; i < count; i++, p += 4, g += 4, momentum += 4) {
    const d = load<f32>(g), m = load<f32>(momentum);
    const way = mixed(d, m, beta1);
    const sign: f32 = way > 0 ? 1 : way < 0 ? -1 : way;
    store<f32>(p, load<f32>(p) * keep - rate * sign);
    store<f32>(momentum, mixed(m, d, part2));
  }
}

/** Move `a` towards `b` by the part `weight` of the way. */
export function lerp(count: i32, a: usize, b: usize, weight: f32): void {
  for (let i = 0; i < count; i++, a += 4, b += 4) store<f32>(a, mixed(load<f32>(a), load<f32>(b), weight));
}

/** torch's `lerp`, which counts from the nearer end. */
@inline function mixed(from: f32, to: f32, weight: f32): f32 {
  return weight < 0.5 ? from + weight * (to - from) : to - (to - from) * (<f32>1 - weight);
}
