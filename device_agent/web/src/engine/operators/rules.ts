/** The table of operators that this build can run. Each file of this folder adds its own. */

import type { Arguments } from "../arguments.ts";
import type { NdArray } from "../nd_array.ts";
import type { Context } from "../tape.ts";

export type Result = NdArray | number | readonly NdArray[];

/** Computes an operator: its result has a holder of its own, which the caller drops. */
export type Rule = (context: Context, args: Arguments) => Result;

export interface Operator {
  readonly parameters: readonly string[];
  readonly rule: Rule;
  /** Where the result may share memory with the first argument in PyTorch: wholly, or a part of it. */
  readonly view: "whole" | "part" | null;
}

/** Operators that only the engine puts into a program. */
const OWN = new Set(["batch norm and relu", "same"]);
const OPERATORS = new Map<string, Operator>();

/** Add operators of one meaning: `names` and `parameters` are words; a name without an overload is the default one. */
export function define(names: string, parameters: string, rule: Rule, view: Operator["view"] = null): void {
  for (const name of names.split(/\s+/)) {
    const full = `aten.${name}${name.includes(".") ? "" : ".default"}`;
    OPERATORS.set(full, { parameters: parameters.split(/\s+/).filter(Boolean), rule, view });
  }
}

/** Add an operator that is none of ATen's: arithmetic on sizes, or several operators in one. */
export function defineOwn(name: string, parameters: string, rule: Rule): void {
  OPERATORS.set(name, { parameters: parameters.split(" "), rule, view: null });
}

export function operatorOf(name: string): Operator | undefined {
  return OPERATORS.get(name);
}

/** The name of the operator that gives what an operator that writes into its first argument would write. */
export function functionalName(name: string): string | null {
  const [namespace, base, overload] = name.split(".");
  if (namespace !== "aten" || !base.endsWith("_") || base.startsWith("__")) return null;
  return `aten.${base.slice(0, -1)}.${overload}`;
}

/** The names that a graph may have, without those that write in place. */
export function operatorNames(): string[] {
  return [...OPERATORS.keys()].filter((name) => !OWN.has(name)).sort();
}
