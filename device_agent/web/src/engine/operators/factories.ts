/** Tensors from nothing, and arithmetic on sizes. */

import type { Arguments } from "../arguments.ts";
import type { Kind, NdArray } from "../nd_array.ts";
import type { Context } from "../tape.ts";
import { promotedOf } from "./kinds.ts";
import { define, defineOwn } from "./rules.ts";

function filled(c: Context, kind: Kind, shape: readonly number[], value: number): NdArray {
  if (kind === "float32") return c.m.filled(shape, value);
  const out = kind === "int64" ? c.m.integers(shape) : c.m.booleans(shape);
  out.whole!.fill(kind === "bool" ? Number(Boolean(value)) : value);
  return out;
}

const PLACED = "dtype layout device pin_memory memory_format";

for (const [name, value] of [["zeros", 0], ["ones", 1], ["empty.memory_format", 0]] as const) {
  define(name, `size ${PLACED}`, (c, args) => filled(c, args.kind() ?? "float32", args.numbers("size"), value));
}
for (const [name, value] of [["zeros_like", 0], ["ones_like", 1], ["empty_like", 0]] as const) {
  define(name, `self ${PLACED}`, (c, args) => filled(c, args.kind() ?? args.tensor("self").kind, args.tensor("self").shape, value));
}
for (const [name, value] of [["new_zeros", 0], ["new_ones", 1], ["new_empty", 0]] as const) {
  define(name, `self size ${PLACED}`, (c, args) => filled(c, args.kind() ?? args.tensor("self").kind, args.numbers("size"), value));
}
define("full", `size fill_value ${PLACED}`, (c, args) => {
  return filled(c, args.kind() ?? promotedOf(args, "fill_value"), args.numbers("size"), args.number("fill_value"));
});
define("full_like", `self fill_value ${PLACED}`, (c, args) => {
  return filled(c, args.kind() ?? args.tensor("self").kind, args.tensor("self").shape, args.number("fill_value"));
});
define("new_full", `self size fill_value ${PLACED}`, (c, args) => {
  return filled(c, args.kind() ?? args.tensor("self").kind, args.numbers("size"), args.number("fill_value"));
});
define("scalar_tensor", `s ${PLACED}`, (c, args) => filled(c, args.kind() ?? "float32", [], args.number("s")));
define("fill.Scalar", "self value", (c, args) => filled(c, args.tensor("self").kind, args.tensor("self").shape, args.number("value")));
define("zero", "self", (c, args) => filled(c, args.tensor("self").kind, args.tensor("self").shape, 0));

function range(c: Context, args: Arguments): NdArray {
  const [start, end, step] = [args.number("start", 0), args.number("end"), args.number("step", 1)];
  const count = Math.max(0, Math.ceil((end - start) / step));
  const values = Float64Array.from({ length: count }, (_, place) => start + place * step);
  const kind = args.kind() ?? promotedOf(args, "end", ...["start", "step"].filter((name) => args.has(name)));
  if (kind !== "float32") return c.m.integers([count], values);
  const out = c.m.make([count]);
  c.m.floats(out).set(values);
  return out;
}

define("arange", `end ${PLACED}`, range);
define("arange.start", `start end ${PLACED}`, range);
define("arange.start_step", `start end step ${PLACED}`, range);
define("eye eye.m", `n m ${PLACED}`, (c, args) => {
  const [rows, columns] = [args.number("n"), args.number("m", args.number("n"))];
  const out = filled(c, args.kind() ?? "float32", [rows, columns], 0);
  const numbers = c.m.numbers(out);
  for (let place = 0; place < Math.min(rows, columns); place++) numbers[place * columns + place] = 1;
  return out;
});
define("linspace", `start end steps ${PLACED}`, (c, args) => {
  const [start, end, steps] = [args.number("start"), args.number("end"), args.number("steps")];
  const out = c.m.make([steps]);
  const numbers = c.m.floats(out);
  for (let place = 0; place < steps; place++) numbers[place] = steps === 1 ? start : start + ((end - start) * place) / (steps - 1);
  return out;
});

define("sym_size.int", "self dim", (_, args) => args.tensor("self").shape.at(args.number("dim"))!);
define("sym_numel", "self", (_, args) => args.tensor("self").size);

const ON_SIZES: Readonly<Record<string, (a: number, b: number) => number>> = {
  add: (a, b) => a + b,
  sub: (a, b) => a - b,
  mul: (a, b) => a * b,
  floordiv: (a, b) => Math.floor(a / b),
  truediv: (a, b) => a / b,
  mod: (a, b) => a - Math.floor(a / b) * b,
  max: Math.max,
  min: Math.min,
};

for (const [name, compute] of Object.entries(ON_SIZES)) {
  defineOwn(`int.${name}`, "a b", (_, args) => compute(args.number("a"), args.number("b")));
}
defineOwn("int.neg", "a", (_, args) => -args.number("a"));
defineOwn("int.int", "a", (_, args) => Math.trunc(args.number("a")));
defineOwn("int.float", "a", (_, args) => args.number("a"));
defineOwn("getitem", "values index", (c, args) => c.m.hold(args.tensors("values")[args.number("index")]));

/** What an operator that was computed with the one before it gives. */
defineOwn("same", "self", (c, args) => c.m.hold(args.tensor("self")));
