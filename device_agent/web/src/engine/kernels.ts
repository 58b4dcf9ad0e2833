/** The kernels (`src/kernels`), as they are called from here. Pointers are byte offsets in their memory. */

export interface Kernels {
  readonly memory: WebAssembly.Memory;
  heapBase(): number;
  addInto(to: number, from: number, count: number): void;
  affine(x: number, factor: number, shift: number, out: number, count: number): void;
  binary(op: number, a: number, b: number, out: number, count: number): void;
  fill(out: number, value: number, count: number): void;
  notFinite(x: number, count: number): number;
  reluBack(y: number, dy: number, dx: number, count: number): void;
  unary(op: number, x: number, y: number, count: number, p: number, q: number): void;
  unaryBack(op: number, x: number, y: number, dy: number, dx: number, count: number, p: number, q: number): void;
  multiply(
    m: number, n: number, k: number, a: number, aRow: number, aColumn: number, b: number, bRow: number,
    bColumn: number, c: number, cStride: number, scratch: number,
  ): void;
  multiplyScratch(m: number, k: number): number;
  convolve(
    rows: number, places: number, taps: number, x: number, place: number, offset: number, weights: number,
    bias: number, out: number, outStride: number,
  ): void;
  convolveOne(
    places: number, taps: number, x: number, place: number, offset: number, weights: number, bias: number, out: number,
  ): void;
  convolveWeights(
    rows: number, places: number, taps: number, x: number, place: number, offset: number, dy: number, dw: number,
  ): void;
  packGradients(rows: number, lines: number, width: number, quads: number, dy: number, out: number): void;
  packWeights(rows: number, taps: number, w: number, rowStride: number, order: number, out: number): void;
  repack(rows: number, x: number, from: number, out: number, to: number): void;
  scatterRows(rows: number, width: number, x: number, xRow: number, out: number, outRow: number, step: number): void;
  spread(
    planes: number, h: number, w: number, x: number, top: number, left: number, rows: number, width: number,
    stride: number, out: number,
  ): void;
  channelAffine(
    samples: number, channels: number, inner: number, x: number, mean: number, scale: number, shift: number,
    y: number, relu: number,
  ): void;
  channelBack(
    samples: number, channels: number, inner: number, x: number, mean: number, rstd: number, scale: number, y: number,
    relu: number, dy: number, fixed: number, dgamma: number, dbeta: number, dx: number,
  ): void;
  channelStatistics(
    samples: number, channels: number, inner: number, x: number, mean: number, variance: number,
  ): void;
  rowNormalize(
    rows: number, width: number, eps: number, plain: number, x: number, y: number, means: number, rstds: number,
  ): void;
  rowNormalizeBack(
    rows: number, width: number, plain: number, y: number, rstds: number, dy: number, dx: number,
  ): void;
  rowSums(rows: number, width: number, x: number, out: number): void;
  squares(x: number, count: number): number;
  softmax(rows: number, width: number, logarithm: number, safe: number, x: number, y: number): void;
  softmaxBack(rows: number, width: number, logarithm: number, y: number, dy: number, dx: number): void;
  averagePool(
    planes: number, h: number, w: number, oh: number, ow: number, limits: number, factor: number, x: number, y: number,
  ): void;
  averagePoolBack(
    planes: number, h: number, w: number, oh: number, ow: number, limits: number, factor: number, dy: number,
    dx: number,
  ): void;
  maxPool(
    planes: number, h: number, w: number, kh: number, kw: number, sh: number, sw: number, ph: number, pw: number,
    dh: number, dw: number, oh: number, ow: number, x: number, y: number, index: number,
  ): void;
  maxPoolBack(planes: number, inputs: number, outputs: number, dy: number, index: number, dx: number): void;
  strided(mode: number, dimensions: number, shape: number, from: number, to: number): void;
  sgd(
    count: number, p: number, g: number, buffer: number, first: number, rate: number, momentum: number,
    dampening: number, nesterov: number, decay: number,
  ): void;
  adam(
    count: number, p: number, g: number, mean: number, square: number, rate: number, beta1: number, beta2: number,
    eps: number, decay: number, decoupled: number, one: number, two: number,
  ): void;
  rmsprop(
    count: number, p: number, g: number, square: number, average: number, buffer: number, rate: number, alpha: number,
    eps: number, momentum: number, decay: number,
  ): void;
  adagrad(count: number, p: number, g: number, sum: number, rate: number, eps: number, decay: number): void;
  lion(
    count: number, p: number, g: number, momentum: number, rate: number, beta1: number, part2: number, keep: number,
  ): void;
  lerp(count: number, a: number, b: number, weight: number): void;
}

/** The numbers of `Binary` in `src/kernels/elementwise.ts`. */
export const BINARY = { add: 0, sub: 1, mul: 2, div: 3, max: 4, min: 5, pow: 6, atan2: 7, remainder: 8, fmod: 9 } as const;

const UNARY_NAMES = [
  "relu", "neg", "abs", "sqrt", "rsqrt", "square", "reciprocal", "exp", "log", "sin", "cos", "tanh", "sigmoid", "silu",
  "gelu", "geluTanh", "erf", "softplus", "hardswish", "hardsigmoid", "clamp", "elu", "leakyRelu", "sign", "floor",
  "ceil", "round", "log1p", "expm1", "powScalar", "log2", "logSigmoid", "mish", "trunc", "tan", "exp2", "erfc", "sinh",
  "cosh", "asin", "acos", "atan", "log10",
] as const;

export type UnaryName = (typeof UNARY_NAMES)[number];

/** The numbers of `Unary` in `src/kernels/elementwise.ts`. */
export const UNARY = Object.fromEntries(UNARY_NAMES.map((name, number) => [name, number])) as Record<UnaryName, number>;

export async function loadKernels(source: BufferSource | WebAssembly.Module): Promise<Kernels> {
  const module = source instanceof WebAssembly.Module ? source : await WebAssembly.compile(source);
  const instance = await WebAssembly.instantiate(module, {});
  return instance.exports as unknown as Kernels;
}
