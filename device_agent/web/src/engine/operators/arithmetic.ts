/** Element by element over two tensors, or a tensor and a number. */

import type { Arguments } from "../arguments.ts";
import { NotSupported } from "../../errors.ts";
import { BINARY } from "../kernels.ts";
import type { NdArray } from "../nd_array.ts";
import type { Context } from "../tape.ts";
import { blank, broadcastShape, giveSummed, stretched } from "./broadcast.ts";
import { cast, operand, promoted, promotedOf } from "./kinds.ts";
import { define } from "./rules.ts";

type Name = keyof typeof BINARY;

const ON_WHOLE: Partial<Record<Name, (a: number, b: number) => number>> = {
  add: (a, b) => a + b,
  sub: (a, b) => a - b,
  mul: (a, b) => a * b,
  max: Math.max,
  min: Math.min,
  pow: (a, b) => a ** b,
  remainder: (a, b) => a - Math.floor(a / b) * b,
  fmod: (a, b) => a % b,
};

/** The gradients of both, where wanted: functions of the result's gradient and the (stretched) arguments. */
type Slopes = (c: Context, g: NdArray, a: NdArray, b: NdArray, out: NdArray) => readonly [() => NdArray, () => NdArray];

const same = (c: Context, x: NdArray): NdArray => c.m.hold(x.shaped(x.shape));

function combined(c: Context, name: Name, a: NdArray, b: NdArray): NdArray {
  const out = c.m.make(a.shape);
  c.kernels.binary(BINARY[name], a.at, b.at, out.at, out.size);
  return out;
}

function scaled(c: Context, x: NdArray, factor: number): NdArray {
  const out = c.m.make(x.shape);
  c.kernels.affine(x.at, factor, 0, out.at, out.size);
  return out;
}

function mapped(c: Context, shape: readonly number[], value: (place: number) => number): NdArray {
  const out = c.m.make(shape);
  const numbers = c.m.floats(out);
  for (let place = 0; place < numbers.length; place++) numbers[place] = value(place);
  return out;
}

/** The gradient of the chosen one of two; where both are the same, half for each. */
function chosen(c: Context, g: NdArray, a: NdArray, b: NdArray, greater: boolean): NdArray {
  const out = c.m.make(g.shape);
  const [gs, as, bs, os] = [g, a, b, out].map((x) => c.m.floats(x));
  for (let i = 0; i < os.length; i++) os[i] = as[i] === bs[i] ? gs[i] / 2 : as[i] > bs[i] === greater ? gs[i] : 0;
  return out;
}

function powSlope(c: Context, g: NdArray, a: NdArray, b: NdArray): NdArray {
  const one = c.m.make(b.shape);
  c.kernels.affine(b.at, 1, -1, one.at, one.size);
  const power = combined(c, "pow", a, one);
  const [gs, bs, ps] = [g, b, power].map((x) => c.m.floats(x));
  for (let i = 0; i < ps.length; i++) ps[i] = bs[i] === 0 ? 0 : gs[i] * bs[i] * ps[i];
  c.m.drop(one);
  return power;
}

function exponentSlope(c: Context, g: NdArray, a: NdArray, b: NdArray, out: NdArray): NdArray {
  const log = c.m.make(a.shape);
  c.kernels.unary(8, a.at, log.at, log.size, 0, 0);
  const [gs, as, bs, os, ls] = [g, a, b, out, log].map((x) => c.m.floats(x));
  for (let i = 0; i < ls.length; i++) ls[i] = as[i] === 0 && bs[i] >= 0 ? 0 : gs[i] * os[i] * ls[i];
  return log;
}

const SLOPES: Partial<Record<Name, Slopes>> = {
  add: (c, g) => [() => same(c, g), () => same(c, g)],
  sub: (c, g) => [() => same(c, g), () => scaled(c, g, -1)],
  mul: (c, g, a, b) => [() => combined(c, "mul", g, b), () => combined(c, "mul", g, a)],
  div: (c, g, _a, b, out) => [
    () => combined(c, "div", g, b),
    () => {
      const product = combined(c, "mul", g, out);
      c.kernels.binary(BINARY.div, product.at, b.at, product.at, product.size);
      c.kernels.affine(product.at, -1, 0, product.at, product.size);
      return product;
    },
  ],
  max: (c, g, a, b) => [() => chosen(c, g, a, b, true), () => chosen(c, g, b, a, true)],
  min: (c, g, a, b) => [() => chosen(c, g, a, b, false), () => chosen(c, g, b, a, false)],
  pow: (c, g, a, b, out) => [() => powSlope(c, g, a, b), () => exponentSlope(c, g, a, b, out)],
  remainder: (c, g, a, b) => [
    () => same(c, g),
    () => {
      const [gs, as, bs] = [g, a, b].map((x) => c.m.floats(x).slice());
      return mapped(c, g.shape, (i) => -gs[i] * Math.floor(as[i] / bs[i]));
    },
  ],
};

/** a (op) b of two tensors, which are dropped. */
function ofTwo(c: Context, op: string, name: Name, a: NdArray, b: NdArray): NdArray {
  const shape = broadcastShape(a.shape, b.shape);
  const [x, y] = [stretched(c.m, a, shape), stretched(c.m, b, shape)];
  let out: NdArray;
  if (x.isFloat) {
    out = combined(c, name, x, y);
    const slopes = SLOPES[name];
    if (c.wants(a, b)) {
      if (!slopes) throw new NotSupported(`${op} has no gradient here`, [op]);
      const kept = name === "add" || name === "sub" ? [] : [x, y, out];
      c.record(out, kept, (g) => {
        const [ofA, ofB] = slopes(c, g!, x, y, out);
        if (a.needsGrad) giveSummed(c, a, ofA());
        if (b.needsGrad) giveSummed(c, b, ofB());
      });
    }
  } else {
    const compute = ON_WHOLE[name];
    if (!compute) throw new NotSupported(`${op} over integers`, [op]);
    out = blank(c.m, x.kind, shape);
    const numbers = out.whole!;
    for (let i = 0; i < numbers.length; i++) {
      const value = compute(x.whole![i], y.whole![i]);
      numbers[i] = x.kind === "bool" ? (value ? 1 : 0) : value;
    }
  }
  c.m.drop(x);
  c.m.drop(y);
  c.m.drop(a);
  c.m.drop(b);
  return out;
}

function arithmetic(name: Name, reversed = false) {
  return (c: Context, args: Arguments): NdArray => {
    const kind = name === "div" ? "float32" : promotedOf(args, "self", "other");
    const alpha = args.number("alpha", 1);
    const plain = typeof args.get("other") !== "object" || !("shape" in (args.get("other") as object));
    if (kind === "float32" && plain && (name === "add" || name === "sub" || name === "mul" || name === "div")) {
      return withNumber(c, name, args.tensor("self"), args.number("other") * alpha, reversed ? alpha : null, args);
    }
    const a = operand(c, args, "self", kind);
    let b = operand(c, args, "other", kind);
    if (alpha !== 1) {
      const [first, second] = reversed ? [a, b] : [b, a];
      const scaledOne = multipliedBy(c, first, alpha);
      if (reversed) return ofTwo(c, args.op, name, second, scaledOne);
      b = scaledOne;
    }
    return reversed ? ofTwo(c, args.op, name, b, a) : ofTwo(c, args.op, name, a, b);
  };
}

/** A tensor and a number, in one pass. `reversed`: what the tensor is multiplied by before it is taken away. */
function withNumber(c: Context, name: Name, self: NdArray, other: number, reversed: number | null, args: Arguments): NdArray {
  const x = self.isFloat ? self : cast(c.m, self, "float32");
  const given = reversed === null ? other : args.number("other");
  const [factor, shift] =
    reversed !== null ? [-reversed, given] : name === "add" ? [1, other] : name === "sub" ? [1, -other] : name === "mul" ? [other, 0] : [1 / other, 0];
  const out = c.m.make(x.shape);
  if (name === "div" && reversed === null) {
    const numbers = c.m.floats(x);
    c.m.floats(out).set(numbers.map((value) => value / Math.fround(other)));
  } else {
    c.kernels.affine(x.at, factor, shift, out.at, out.size);
  }
  if (c.wants(self)) c.record(out, [], (g) => c.give(self, factor === 1 ? same(c, g!) : scaled(c, g!, factor)));
  if (x !== self) c.m.drop(x);
  return out;
}

/** x times a number; x is dropped. */
function multipliedBy(c: Context, x: NdArray, factor: number): NdArray {
  if (!x.isFloat) {
    const out = c.m.integers(x.shape, Float64Array.from(x.whole!, (value) => value * factor));
    return out;
  }
  const out = scaled(c, x, factor);
  if (c.wants(x)) c.record(out, [], (g) => c.give(x, scaled(c, g!, factor)));
  c.m.drop(x);
  return out;
}

define("add.Tensor add.Scalar", "self other alpha", arithmetic("add"));
define("sub.Tensor sub.Scalar subtract.Tensor subtract.Scalar", "self other alpha", arithmetic("sub"));
define("rsub.Tensor rsub.Scalar", "self other alpha", arithmetic("sub", true));
define("mul.Tensor mul.Scalar multiply.Tensor multiply.Scalar", "self other", arithmetic("mul"));
define("div.Tensor div.Scalar divide.Tensor divide.Scalar true_divide.Tensor true_divide.Scalar", "self other", arithmetic("div"));
define("maximum max.other fmax", "self other", arithmetic("max"));
define("minimum min.other fmin", "self other", arithmetic("min"));
define("pow.Tensor_Tensor pow.Scalar", "self exponent", (c, args) => {
  const kind = promoted(args.get("self"), args.get("exponent"));
  return ofTwo(c, args.op, "pow", operand(c, args, "self", kind), operand(c, args, "exponent", kind));
});
define("remainder.Tensor remainder.Scalar", "self other", arithmetic("remainder"));
define("fmod.Tensor fmod.Scalar", "self other", arithmetic("fmod"));
define("atan2", "self other", arithmetic("atan2"));

function rounded(round: (value: number) => number) {
  return (c: Context, args: Arguments): NdArray => {
    const kind = promotedOf(args, "self", "other");
    const [a, b] = [operand(c, args, "self", kind), operand(c, args, "other", kind)];
    const shape = broadcastShape(a.shape, b.shape);
    const [x, y] = [stretched(c.m, a, shape), stretched(c.m, b, shape)];
    const out = blank(c.m, kind, shape);
    const [xs, ys, os] = [x, y, out].map((each) => c.m.numbers(each));
    for (let i = 0; i < os.length; i++) os[i] = round(xs[i] / ys[i]);
    for (const each of [x, y, a, b]) c.m.drop(each);
    return out;
  };
}

define("floor_divide floor_divide.Scalar", "self other", rounded(Math.floor));
define("div.Tensor_mode div.Scalar_mode", "self other rounding_mode", (c, args) => {
  const mode = args.text("rounding_mode", "");
  return mode === "floor" ? rounded(Math.floor)(c, args) : mode === "trunc" ? rounded(Math.trunc)(c, args) : arithmetic("div")(c, args);
});

define("addcmul", "self tensor1 tensor2 value", (c, args) => addProduct(c, args, "mul"));
define("addcdiv", "self tensor1 tensor2 value", (c, args) => addProduct(c, args, "div"));

function addProduct(c: Context, args: Arguments, name: "mul" | "div"): NdArray {
  const [self, one, two] = ["self", "tensor1", "tensor2"].map((each) => operand(c, args, each, "float32"));
  return ofTwo(c, args.op, "add", self, multipliedBy(c, ofTwo(c, args.op, name, one, two), args.number("value", 1)));
}

define("lerp.Scalar lerp.Tensor", "self end weight", (c, args) => {
  const [start, stop, weight] = ["self", "end", "weight"].map((each) => operand(c, args, each, "float32"));
  const away = ofTwo(c, args.op, "sub", stop, c.m.hold(start));
  return ofTwo(c, args.op, "add", start, ofTwo(c, args.op, "mul", away, weight));
});
