/** Convolutions in one and two dimensions. */

import { Arguments } from "../arguments.ts";
import { NotSupported } from "../../errors.ts";
import type { Machine, NdArray } from "../nd_array.ts";
import type { Context } from "../tape.ts";
import { sumOver } from "./broadcast.ts";
import { define } from "./rules.ts";

/** The sizes of a convolution in two dimensions. */
interface Sizes {
  readonly n: number;
  readonly groups: number;
  /** Channels of input and of output, of one group. */
  readonly ci: number;
  readonly co: number;
  readonly h: number;
  readonly w: number;
  readonly kh: number;
  readonly kw: number;
  readonly oh: number;
  readonly ow: number;
  readonly stride: readonly number[];
  readonly padding: readonly number[];
  readonly dilation: readonly number[];
}

const quads = (width: number): number => 4 * Math.ceil(width / 4);

/** One pass over padded planes: which numbers each output is the sum of. See `src/kernels/convolution.ts`. */
interface Pass {
  /** Rows of the padded planes, numbers of a row's part, and parts (the stride by columns). */
  readonly rows: number;
  readonly width: number;
  readonly parts: number;
  /** Byte offsets of every four outputs, by rows of outputs padded to multiples of four. */
  readonly places: Int32Array;
  /** Byte offsets of the taps, relative to an output's place. */
  readonly offsets: Int32Array;
  /** Each tap's place among the weights of one output, in numbers. */
  readonly order: Int32Array;
}

/** `taps`: for each, its channel, row and column in the padded planes, and its place among the weights. */
function passOf(
  rows: number, columns: number, oh: number, ow: number, stride: readonly number[],
  taps: readonly (readonly [number, number, number, number])[],
): Pass {
  const parts = stride[1];
  const width = quads(Math.ceil(columns / parts));
  const row = width * parts;
  const places: number[] = [];
  for (let i = 0; i < oh; i++) for (let j = 0; j < ow; j += 4) places.push(4 * (i * stride[0] * row + j));
  const offsets = taps.map(([channel, i, j]) => 4 * ((channel * rows + i) * row + (j % parts) * width + Math.floor(j / parts)));
  return {
    rows, width, parts, places: Int32Array.from(places), offsets: Int32Array.from(offsets),
    order: Int32Array.from(taps, ([, , , order]) => order),
  };
}

function sizesOf(x: NdArray, weight: NdArray, args: Arguments): Sizes {
  const [n, channels, h, w] = x.shape;
  const [outputs, ci, kh, kw] = weight.shape;
  const stride = args.each("stride", 2, 1);
  const padding = args.each("padding", 2, 0);
  const dilation = args.each("dilation", 2, 1);
  const groups = args.number("groups", 1);
  const side = (size: number, k: number, d: number): number =>
    Math.floor((size + 2 * padding[d] - dilation[d] * (k - 1) - 1) / stride[d]) + 1;
  if (channels !== ci * groups) throw new NotSupported(`${args.op} is called with ${channels} channels`, [args.op]);
  return { n, groups, ci, co: outputs / groups, h, w, kh, kw, oh: side(h, kh, 0), ow: side(w, kw, 1), stride, padding, dilation };
}

function forwardPass(s: Sizes): Pass {
  const taps: [number, number, number, number][] = [];
  for (let channel = 0; channel < s.ci; channel++) {
    for (let i = 0; i < s.kh; i++) {
      for (let j = 0; j < s.kw; j++) {
        taps.push([channel, i * s.dilation[0], j * s.dilation[1], (channel * s.kh + i) * s.kw + j]);
      }
    }
  }
  return passOf(s.h + 2 * s.padding[0], s.w + 2 * s.padding[1], s.oh, s.ow, s.stride, taps);
}

/** The byte addresses of a pass's tables and room, while `work` runs. */
interface Tables {
  readonly places: number;
  readonly offsets: number;
  readonly order: number;
  /** Padded planes of one sample and group. */
  readonly planes: number;
}

function withTables(m: Machine, pass: Pass, channels: number, work: (tables: Tables) => void): void {
  const { places, offsets, order } = pass;
  const room = 4 * channels * pass.rows * pass.width * pass.parts + 64;
  m.withInts([...places, ...offsets, ...order], (at) => {
    m.scratch(room, (planes) => {
      const second = at + 4 * places.length;
      work({ places: at, offsets: second, order: second + 4 * offsets.length, planes });
    });
  });
}

/**
 * Convolve `planes` samples and groups: `target` is where each one's outputs go, `outputs` rows of `oh` by `ow`.
 * `finish` is called with rows of outputs padded to multiples of four where these are not whole.
 */
function runPass(
  c: Context, pass: Pass, tables: Tables, packed: number, outputs: number, bias: number, out: number, stride: number,
): void {
  const { kernels } = c;
  if (outputs === 1) {
    const first = bias ? new Float32Array(c.m.arena.buffer, bias, 1)[0] : 0;
    kernels.convolveOne(pass.places.length, pass.offsets.length, tables.planes, tables.places, tables.offsets, packed, first, out);
    return;
  }
  kernels.convolve(
    outputs, pass.places.length, pass.offsets.length, tables.planes, tables.places, tables.offsets, packed, bias, out, stride,
  );
}

/** Pack the weights of each group; a single output's are taken as they lie. */
function packedGroups(c: Context, s: Sizes, weight: NdArray, pass: Pass, order: number, at: number, size: number): void {
  for (let group = 0; group < s.groups; group++) {
    const own = weight.at + 4 * group * s.co * s.ci * s.kh * s.kw;
    if (s.co === 1) c.kernels.repack(1, own, pass.offsets.length, at + group * size, pass.offsets.length);
    else c.kernels.packWeights(s.co, pass.offsets.length, own, s.ci * s.kh * s.kw, order, at + group * size);
  }
}

function forward(c: Context, s: Sizes, x: NdArray, weight: NdArray, bias: NdArray | null, out: NdArray): void {
  const { m, kernels } = c;
  const pass = forwardPass(s);
  const padded = quads(s.ow);
  const plane = s.oh * s.ow;
  const size = 16 * Math.ceil(s.co / 4) * pass.offsets.length;
  withTables(m, pass, s.ci, (tables) => {
    m.scratch(size * s.groups + (padded === s.ow ? 0 : 4 * s.co * s.oh * padded), (packed) => {
      packedGroups(c, s, weight, pass, tables.order, packed, size);
      const spare = packed + size * s.groups;
      for (let sample = 0; sample < s.n; sample++) {
        for (let group = 0; group < s.groups; group++) {
          const at = sample * s.groups + group;
          spreadPlanes(c, s, x.at + 4 * at * s.ci * s.h * s.w, pass, tables);
          const to = out.at + 4 * at * s.co * plane;
          const own = bias ? bias.at + 4 * group * s.co : 0;
          const [target, stride] = padded === s.ow ? [to, 4 * plane] : [spare, 4 * s.oh * padded];
          runPass(c, pass, tables, packed + group * size, s.co, own, target, stride);
          if (padded !== s.ow) kernels.repack(s.co * s.oh, spare, padded, to, s.ow);
        }
      }
    });
  });
}

function spreadPlanes(c: Context, s: Sizes, from: number, pass: Pass, tables: Tables): void {
  c.kernels.spread(s.ci, s.h, s.w, from, s.padding[0], s.padding[1], pass.rows, pass.width, pass.parts, tables.planes);
}

function weightGradient(c: Context, s: Sizes, x: NdArray, dy: NdArray, dw: NdArray): void {
  const { m, kernels } = c;
  const pass = forwardPass(s);
  const taps = pass.offsets.length;
  const count = pass.places.length;
  kernels.fill(dw.at, 0, dw.size);
  withTables(m, pass, s.ci, (tables) => {
    m.scratch(64 * Math.ceil(s.co / 4) * count, (packed) => {
      for (let at = 0; at < s.n * s.groups; at++) {
        spreadPlanes(c, s, x.at + 4 * at * s.ci * s.h * s.w, pass, tables);
        kernels.packGradients(s.co, s.oh, s.ow, quads(s.ow) / 4, dy.at + 4 * at * s.co * s.oh * s.ow, packed);
        const to = dw.at + 4 * (at % s.groups) * s.co * taps;
        kernels.convolveWeights(s.co, count, taps, tables.planes, tables.places, tables.offsets, packed, to);
      }
    });
  });
}

/**
 * The gradient of the input: for each remainder of rows and columns by the stride, a convolution of the outputs'
 * gradients with the taps that lead to such rows and columns.
 */
function inputGradient(c: Context, s: Sizes, weight: NdArray, dy: NdArray, dx: NdArray): void {
  c.kernels.fill(dx.at, 0, dx.size);
  for (let a = 0; a < Math.min(s.stride[0], s.h); a++) {
    for (let b = 0; b < Math.min(s.stride[1], s.w); b++) remainderGradient(c, s, weight, dy, dx, a, b);
  }
}

/** The taps of one dimension that lead to inputs of that remainder: [tap, the output relative to the input / stride]. */
function tapsTo(remainder: number, k: number, stride: number, padding: number, dilation: number): [number, number][] {
  const found: [number, number][] = [];
  for (let tap = 0; tap < k; tap++) {
    const away = remainder + padding - tap * dilation;
    if (away % stride === 0) found.push([tap, away / stride]);
  }
  return found;
}

function remainderGradient(c: Context, s: Sizes, weight: NdArray, dy: NdArray, dx: NdArray, a: number, b: number): void {
  const { m, kernels } = c;
  const down = tapsTo(a, s.kh, s.stride[0], s.padding[0], s.dilation[0]);
  const right = tapsTo(b, s.kw, s.stride[1], s.padding[1], s.dilation[1]);
  if (!down.length || !right.length) return;
  const [top, left] = [down, right].map((taps) => Math.max(0, ...taps.map(([, away]) => -away)));
  const [bottom, end] = [down, right].map((taps) => Math.max(...taps.map(([, away]) => away)));
  const [ih, iw] = [Math.ceil((s.h - a) / s.stride[0]), Math.ceil((s.w - b) / s.stride[1])];
  const taps: [number, number, number, number][] = [];
  const size = s.kh * s.kw;
  for (let channel = 0; channel < s.co; channel++) {
    for (const [i, y] of down) for (const [j, x] of right) taps.push([channel, y + top, x + left, channel * s.ci * size + i * s.kw + j]);
  }
  const rows = Math.max(ih + bottom + top, top + 1);
  const pass = passOf(rows, Math.max(iw + end + left, left + 1), ih, iw, [1, 1], taps);
  const packedSize = 16 * Math.ceil(s.ci / 4) * taps.length;
  const padded = quads(iw);
  withTables(m, pass, s.co, (tables) => {
    m.scratch(packedSize * s.groups + 4 * s.ci * ih * padded, (packed) => {
      for (let group = 0; group < s.groups; group++) {
        const own = weight.at + 4 * group * s.co * s.ci * size;
        const to = packed + group * packedSize;
        if (s.ci > 1) kernels.packWeights(s.ci, taps.length, own, size, tables.order, to);
        else packOne(m, own, pass.order, to);
      }
      const spare = packed + packedSize * s.groups;
      for (let at = 0; at < s.n * s.groups; at++) {
        const from = dy.at + 4 * at * s.co * s.oh * s.ow;
        kernels.spread(s.co, s.oh, s.ow, from, top, left, pass.rows, pass.width, 1, tables.planes);
        runPass(c, pass, tables, packed + (at % s.groups) * packedSize, s.ci, 0, spare, 4 * ih * padded);
        for (let channel = 0; channel < s.ci; channel++) {
          const to = dx.at + 4 * (((at * s.ci + channel) * s.h + a) * s.w + b);
          kernels.scatterRows(ih, iw, spare + 4 * channel * ih * padded, padded, to, s.stride[0] * s.w, s.stride[1]);
        }
      }
    });
  });
}

function packOne(m: Machine, from: number, order: Int32Array, to: number): void {
  const { buffer } = m.arena;
  const weights = new Float32Array(buffer, from);
  const packed = new Float32Array(buffer, to, order.length);
  order.forEach((place, tap) => (packed[tap] = weights[place]));
}

/** A convolution of [n, c, h, w]; `x` and `weight` may be views of tensors with one dimension less. */
function convolution(c: Context, args: Arguments, x: NdArray, weight: NdArray, shapeOf: (s: Sizes) => number[]): NdArray {
  const { m } = c;
  const [input, kernel] = [args.tensor("input"), args.tensor("weight")];
  const bias = args.optional("bias");
  const s = sizesOf(x, weight, args);
  const out = m.make(shapeOf(s));
  forward(c, s, x, weight, bias, out);
  if (c.wants(input, kernel, bias)) {
    c.record(out, [x, weight], (g) => {
      const dy = g!;
      if (bias?.needsGrad) c.give(bias, sumOver(m, dy.shaped([s.n, s.groups * s.co, s.oh * s.ow]), [0, 2]));
      if (kernel.needsGrad) {
        const dw = m.make(kernel.shape);
        weightGradient(c, s, x, dy, dw);
        c.give(kernel, dw);
      }
      if (input.needsGrad) {
        const dx = m.make(input.shape);
        inputGradient(c, s, weight, dy, dx);
        c.give(input, dx);
      }
    });
  }
  return out;
}

define("conv2d", "input weight bias stride padding dilation groups", (c, args) => {
  const x = args.tensor("input");
  if (x.shape.length !== 4) throw new NotSupported(`${args.op} without a batch dimension`, [args.op]);
  return convolution(c, args, x, args.tensor("weight"), (s) => [s.n, s.groups * s.co, s.oh, s.ow]);
});

define("conv1d", "input weight bias stride padding dilation groups", (c, args) => {
  const [x, weight] = [args.tensor("input"), args.tensor("weight")];
  if (x.shape.length !== 3) throw new NotSupported(`${args.op} without a batch dimension`, [args.op]);
  const flat = (t: NdArray): NdArray => t.shaped([t.shape[0], t.shape[1], 1, t.shape[2]]);
  return convolution(c, flattened(args), flat(x), flat(weight), (s) => [s.n, s.groups * s.co, s.ow]);
});

/** The arguments of a convolution in one dimension as those of one in two, whose first has one row. */
function flattened(args: Arguments): Arguments {
  const parameters = ["input", "weight", "bias", "stride", "padding", "dilation", "groups"];
  const [stride, padding, dilation] = [args.each("stride", 1, 1), args.each("padding", 1, 0), args.each("dilation", 1, 1)];
  const given = [
    args.tensor("input"), args.tensor("weight"), args.optional("bias"), [1, ...stride], [0, ...padding], [1, ...dilation],
    args.number("groups", 1),
  ];
  return new Arguments(args.op, parameters, given, []);
}
