/** Products of matrices. */

import type { Arguments } from "../arguments.ts";
import { NotSupported } from "../../errors.ts";
import { BINARY } from "../kernels.ts";
import type { NdArray } from "../nd_array.ts";
import type { Context } from "../tape.ts";
import { broadcastShape, giveSummed, stretched, sumOver } from "./broadcast.ts";
import { define } from "./rules.ts";

/** A matrix in memory: strides of its rows and columns, in numbers. */
interface Matrix {
  readonly at: number;
  readonly row: number;
  readonly column: number;
}

const plain = (at: number, width: number): Matrix => ({ at, row: width, column: 1 });
const turned = ({ at, row, column }: Matrix): Matrix => ({ at, row: column, column: row });

/** c += a * b, for m by k and k by n. */
function multiplied(c: Context, m: number, n: number, k: number, a: Matrix, b: Matrix, to: number, scratch: number): void {
  c.kernels.multiply(m, n, k, a.at, a.row, a.column, b.at, b.row, b.column, to, n, scratch);
}

/** batches of c = a * b; each is given at its number. */
function product(
  c: Context, count: number, m: number, n: number, k: number, a: (batch: number) => Matrix, b: (batch: number) => Matrix, out: NdArray,
): NdArray {
  c.kernels.fill(out.at, 0, out.size);
  c.m.scratch(c.kernels.multiplyScratch(m, k), (scratch) => {
    for (let batch = 0; batch < count; batch++) multiplied(c, m, n, k, a(batch), b(batch), out.at + 4 * batch * m * n, scratch);
  });
  return out;
}

define("linear", "input weight bias", (c, args) => {
  const { m } = c;
  const [x, weight, bias] = [args.tensor("input"), args.tensor("weight"), args.optional("bias")];
  const [outputs, inputs] = weight.shape;
  const rows = x.size / inputs;
  const out = m.make([...x.shape.slice(0, -1), outputs]);
  product(c, 1, rows, outputs, inputs, () => plain(x.at, inputs), () => turned(plain(weight.at, inputs)), out);
  if (bias) addBias(c, out, bias);
  if (c.wants(x, weight, bias)) {
    c.record(out, [x, weight], (g) => {
      const dy = plain(g!.at, outputs);
      if (bias?.needsGrad) c.give(bias, sumOver(m, g!.shaped([rows, outputs]), [0]));
      if (weight.needsGrad) {
        c.give(weight, product(c, 1, outputs, inputs, rows, () => turned(dy), () => plain(x.at, inputs), m.make(weight.shape)));
      }
      if (x.needsGrad) c.give(x, product(c, 1, rows, inputs, outputs, () => dy, () => plain(weight.at, inputs), m.make(x.shape)));
    });
  }
  return out;
});

function addBias(c: Context, out: NdArray, bias: NdArray): void {
  const wide = stretched(c.m, bias, out.shape);
  c.kernels.addInto(out.at, wide.at, out.size);
  c.m.drop(wide);
}

/** Batches of matrices [count, m, k] times [count, k, n]. */
function batched(c: Context, a: NdArray, b: NdArray, shape: readonly number[]): NdArray {
  const [count, rows, inner] = a.shape;
  const columns = b.shape[2];
  const first = (batch: number): Matrix => plain(a.at + 4 * batch * rows * inner, inner);
  const second = (batch: number): Matrix => plain(b.at + 4 * batch * inner * columns, columns);
  const out = product(c, count, rows, columns, inner, first, second, c.m.make(shape));
  if (c.wants(a, b)) {
    c.record(out, [a, b], (g) => {
      const dy = (batch: number): Matrix => plain(g!.at + 4 * batch * rows * columns, columns);
      if (a.needsGrad) c.give(a, product(c, count, rows, inner, columns, dy, (each) => turned(second(each)), c.m.make(a.shape)));
      if (b.needsGrad) c.give(b, product(c, count, inner, columns, rows, (each) => turned(first(each)), dy, c.m.make(b.shape)));
    });
  }
  return out;
}

/** The tensor stretched or reshaped, as a value that gradients flow through; with a holder of its own. */
function seenAs(c: Context, x: NdArray, wide: readonly number[], shape: readonly number[]): NdArray {
  const out = stretched(c.m, x, wide).shaped(shape);
  if (c.wants(x)) c.record(out, [], (g) => giveSummed(c, x, c.m.hold(g!.shaped(wide))));
  return out;
}

/** Any product that `matmul` computes. */
export function matmul(c: Context, args: Arguments, one: NdArray, other: NdArray): NdArray {
  const left = one.shape.length === 1 ? [1, ...one.shape] : one.shape;
  const right = other.shape.length === 1 ? [...other.shape, 1] : other.shape;
  const [rows, inner] = left.slice(-2);
  const columns = right.at(-1)!;
  if (right.at(-2) !== inner) throw new NotSupported(`${args.op} of shapes [${one.shape.join(", ")}] and [${other.shape.join(", ")}]`, [args.op]);
  const outer = broadcastShape(left.slice(0, -2), right.slice(0, -2));
  const count = outer.reduce((a, b) => a * b, 1);
  const a = seenAs(c, one, one.shape.length === 1 ? one.shape : [...outer, rows, inner], [count, rows, inner]);
  const b = seenAs(c, other, other.shape.length === 1 ? other.shape : [...outer, inner, columns], [count, inner, columns]);
  const shape = [...outer, ...(one.shape.length === 1 ? [] : [rows]), ...(other.shape.length === 1 ? [] : [columns])];
  if ((one.shape.length === 1 || other.shape.length === 1) && count > 1) {
    throw new NotSupported(`${args.op} of a vector and batches of matrices`, [args.op]);
  }
  const out = batched(c, a, b, shape);
  c.m.drop(a);
  c.m.drop(b);
  return out;
}

define("matmul linalg_matmul", "self other", (c, args) => matmul(c, args, args.tensor("self"), args.tensor("other")));
define("mm", "self mat2", (c, args) => matmul(c, args, args.tensor("self"), args.tensor("mat2")));
define("bmm", "self mat2", (c, args) => matmul(c, args, args.tensor("self"), args.tensor("mat2")));
define("mv", "self vec", (c, args) => matmul(c, args, args.tensor("self"), args.tensor("vec")));
define("dot inner", "self other", (c, args) => {
  if (args.tensor("self").shape.length !== 1) throw new NotSupported(`${args.op} of more than vectors`, [args.op]);
  return matmul(c, args, args.tensor("self"), args.tensor("other"));
});

/** beta * self + alpha * one * other. */
function added(c: Context, args: Arguments, one: NdArray, other: NdArray): NdArray {
  args.only("beta", 1);
  args.only("alpha", 1);
  const self = args.tensor("self");
  const result = matmul(c, args, one, other);
  const wide = stretched(c.m, self, result.shape);
  const out = c.m.make(result.shape);
  c.kernels.binary(BINARY.add, wide.at, result.at, out.at, out.size);
  c.m.drop(wide);
  if (c.wants(self, result)) {
    c.record(out, [], (g) => {
      if (self.needsGrad) giveSummed(c, self, c.m.hold(g!.shaped(g!.shape)));
      if (result.needsGrad) c.give(result, c.m.hold(g!.shaped(g!.shape)));
    });
  }
  c.m.drop(result);
  return out;
}

define("addmm", "self mat1 mat2 beta alpha", (c, args) => added(c, args, args.tensor("mat1"), args.tensor("mat2")));
define("baddbmm", "self batch1 batch2 beta alpha", (c, args) => added(c, args, args.tensor("batch1"), args.tensor("batch2")));
