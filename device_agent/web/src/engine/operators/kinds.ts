/** From one kind of numbers to another, as PyTorch promotes them. */

import type { Arguments, Given } from "../arguments.ts";
import { Real } from "../document.ts";
import { NdArray, type Kind, type Machine } from "../nd_array.ts";
import type { Context } from "../tape.ts";

const RANK: Readonly<Record<Kind, number>> = { bool: 0, int64: 1, float32: 2 };

export type Operand = NdArray | number;

function kindOf(value: Given | undefined): Kind {
  if (value instanceof NdArray) return value.kind;
  if (value instanceof Real) return "float32";
  return typeof value === "boolean" ? "bool" : "int64";
}

/** The kind of a result over these arguments, tensors and plain numbers. */
export function promoted(...values: (Given | undefined)[]): Kind {
  return values.map(kindOf).reduce((a, b) => (RANK[a] >= RANK[b] ? a : b), "bool");
}

export function promotedOf(args: Arguments, ...names: string[]): Kind {
  return promoted(...names.map((name) => args.get(name)));
}

/** The argument as a tensor, a number as one without dimensions; with a holder of its own. */
export function operand(c: Context, args: Arguments, name: string, kind: Kind): NdArray {
  const value = args.get(name);
  if (value instanceof NdArray) return converted(c, value, kind);
  const number = args.number(name);
  return kind === "float32" ? c.m.filled([], number) : kind === "int64" ? c.m.integers([], [number]) : c.m.booleans([], [number ? 1 : 0]);
}

/** The tensor with numbers of that kind, with a holder of its own; gradients flow through it. */
export function converted(c: Context, x: NdArray, kind: Kind): NdArray {
  if (x.kind === kind) return passedOn(c, x);
  return cast(c.m, x, kind);
}

/** The same tensor as another value, to which gradients flow back. */
export function passedOn(c: Context, x: NdArray, shape = x.shape): NdArray {
  const out = c.m.hold(x.shaped(shape));
  if (c.wants(x)) c.record(out, [], (g) => c.give(x, c.m.hold(g!.shaped(x.shape))));
  return out;
}

export function cast(m: Machine, x: NdArray, kind: Kind): NdArray {
  const numbers = m.numbers(x);
  if (kind === "float32") {
    const out = m.make(x.shape);
    m.floats(out).set(m.numbers(x));
    return out;
  }
  if (kind === "int64") return m.integers(x.shape, Float64Array.from(numbers, Math.trunc));
  return m.booleans(x.shape, Uint8Array.from(numbers, (value) => (value ? 1 : 0)));
}
