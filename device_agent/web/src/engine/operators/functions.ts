/** Functions of one number, element by element. */

import type { Arguments } from "../arguments.ts";
import { UNARY, type UnaryName } from "../kernels.ts";
import type { NdArray } from "../nd_array.ts";
import type { Context } from "../tape.ts";
import { cast } from "./kinds.ts";
import { define } from "./rules.ts";

/** y = f(x) by the kernel of that name, with its two constants. */
export function apply(c: Context, name: UnaryName, self: NdArray, p = 0, q = 0): NdArray {
  const x = self.isFloat ? c.m.hold(self) : cast(c.m, self, "float32");
  const y = c.m.make(x.shape);
  c.kernels.unary(UNARY[name], x.at, y.at, y.size, p, q);
  if (c.wants(self)) {
    const relu = name === "relu";
    c.record(y, relu ? [y] : [self, y], (g) => {
      const dx = c.m.make(y.shape);
      if (relu) c.kernels.reluBack(y.at, g!.at, dx.at, y.size);
      else c.kernels.unaryBack(UNARY[name], self.at, y.at, g!.at, dx.at, y.size, p, q);
      c.give(self, dx);
    });
  }
  c.m.drop(x);
  return y;
}

const PLAIN: Readonly<Partial<Record<UnaryName, string>>> = {
  relu: "relu", sqrt: "sqrt", rsqrt: "rsqrt", reciprocal: "reciprocal", exp: "exp", log: "log", sin: "sin", cos: "cos",
  tanh: "tanh", sigmoid: "sigmoid special_expit", silu: "silu", erf: "erf special_erf", erfc: "erfc special_erfc",
  hardswish: "hardswish", hardsigmoid: "hardsigmoid", log1p: "log1p", expm1: "expm1", log2: "log2", log10: "log10",
  logSigmoid: "log_sigmoid", mish: "mish", tan: "tan", exp2: "exp2", sinh: "sinh", cosh: "cosh", asin: "asin arcsin",
  acos: "acos arccos", atan: "atan arctan",
};

for (const [name, operators] of Object.entries(PLAIN)) {
  define(operators, "self", (c, args) => apply(c, name as UnaryName, args.tensor("self")));
}

/** Those that leave integers integers. */
const ON_WHOLE: Readonly<Partial<Record<UnaryName, readonly [string, (value: number) => number]>>> = {
  neg: ["neg negative", (value) => -value],
  abs: ["abs absolute", Math.abs],
  square: ["square", (value) => value * value],
  sign: ["sign sgn", Math.sign],
  floor: ["floor", Math.floor],
  ceil: ["ceil", Math.ceil],
  round: ["round", (value) => value],
  trunc: ["trunc fix", Math.trunc],
};

for (const [name, [operators, onWhole]] of Object.entries(ON_WHOLE)) {
  define(operators, "self", (c, args) => {
    const self = args.tensor("self");
    if (self.kind === "int64") return c.m.integers(self.shape, Float64Array.from(self.whole!, (value) => onWhole(value) + 0));
    return apply(c, name as UnaryName, self);
  });
}

define("relu6", "self", (c, args) => apply(c, "clamp", args.tensor("self"), 0, 6));
define("hardtanh", "self min_val max_val", (c, args) => {
  return apply(c, "clamp", args.tensor("self"), args.number("min_val", -1), args.number("max_val", 1));
});
define("clamp clip", "self min max", (c, args) => clamped(c, args));
define("clamp_min", "self min", (c, args) => clamped(c, args));
define("clamp_max", "self max", (c, args) => clamped(c, args));

function clamped(c: Context, args: Arguments): NdArray {
  const self = args.tensor("self");
  const [least, most] = [args.number("min", -Infinity), args.number("max", Infinity)];
  if (self.kind === "int64") return c.m.integers(self.shape, Float64Array.from(self.whole!, (x) => Math.min(Math.max(x, least), most)));
  return apply(c, "clamp", self, Math.fround(least), Math.fround(most));
}

define("leaky_relu", "self negative_slope", (c, args) => apply(c, "leakyRelu", args.tensor("self"), args.number("negative_slope", 0.01)));
define("elu", "self alpha scale input_scale", (c, args) => {
  args.only("scale", 1);
  args.only("input_scale", 1);
  return apply(c, "elu", args.tensor("self"), args.number("alpha", 1));
});
define("softplus", "self beta threshold", (c, args) => {
  return apply(c, "softplus", args.tensor("self"), args.number("beta", 1), args.number("threshold", 20));
});
define("gelu", "self approximate", (c, args) => {
  args.only("approximate", "none", "tanh");
  return apply(c, args.text("approximate", "none") === "tanh" ? "geluTanh" : "gelu", args.tensor("self"));
});
define("pow.Tensor_Scalar", "self exponent", (c, args) => {
  const self = args.tensor("self");
  const exponent = args.number("exponent");
  if (self.kind === "int64" && typeof args.get("exponent") === "number") {
    return c.m.integers(self.shape, Float64Array.from(self.whole!, (value) => value ** exponent));
  }
  if (exponent === 2) return apply(c, "square", self);
  if (exponent === 0.5) return apply(c, "sqrt", self);
  return apply(c, "powScalar", self, exponent);
});
define("glu", "self dim", (c, args) => {
  const self = args.tensor("self");
  const dim = args.number("dim", -1);
  const at = dim < 0 ? dim + self.shape.length : dim;
  const outer = self.shape.slice(0, at).reduce((a, b) => a * b, 1);
  const width = self.size / outer / 2;
  const shape = self.shape.map((side, place) => (place === at ? side / 2 : side));
  const out = c.m.make(shape);
  const gate = c.m.make(shape);
  const [xs, gs, os] = [self, gate, out].map((x) => c.m.floats(x));
  for (let o = 0; o < outer; o++) gs.set(xs.subarray((2 * o + 1) * width, (2 * o + 2) * width), o * width);
  c.kernels.unary(UNARY.sigmoid, gate.at, gate.at, gate.size, 0, 0);
  for (let o = 0; o < outer; o++) for (let i = 0; i < width; i++) os[o * width + i] = xs[2 * o * width + i] * gs[o * width + i];
  if (c.wants(self)) {
    c.record(out, [self, gate], (g) => {
      const dx = c.m.make(self.shape);
      const [ds, us, vs, ys] = [dx, self, gate, g!].map((x) => c.m.floats(x));
      for (let o = 0; o < outer; o++) {
        for (let i = 0; i < width; i++) {
          const [gradient, share] = [ys[o * width + i], vs[o * width + i]];
          ds[2 * o * width + i] = gradient * share;
          ds[(2 * o + 1) * width + i] = gradient * us[2 * o * width + i] * share * (1 - share);
        }
      }
      c.give(self, dx);
    });
  }
  c.m.drop(gate);
  return out;
});
