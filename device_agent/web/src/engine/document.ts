/** Read a portable graph: `spliteasy/graph/document.py` and `encoding.py`. */

import { NotSupported, PortableError } from "../errors.ts";
import { KINDS } from "./nd_array.ts";
import type { Dim, ValueSpec } from "./types.ts";

export interface TensorSpec {
  readonly names: readonly string[];
  readonly kind: "parameter" | "buffer" | "constant";
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly requires_grad?: boolean;
  readonly persistent?: boolean;
}

/** A reference to the value of that number. */
export class Ref {
  constructor(readonly slot: number) {}
}

/** A number that was written with a decimal point: Python's 1.0, which makes integers floating where 1 does not. */
export class Real {
  constructor(readonly value: number) {}
}

export class Dtype {
  constructor(readonly name: string) {}
}

export type Argument = null | boolean | number | string | Ref | Real | Dtype | readonly Argument[];

export interface Node {
  readonly op: string;
  readonly args: readonly Argument[];
  readonly kwargs: ReadonlyMap<string, Argument>;
  readonly grad: boolean;
}

export interface Graph {
  readonly inputs: readonly ValueSpec[];
  readonly nodes: readonly Node[];
  readonly results: readonly number[];
  readonly outputs: readonly ValueSpec[];
  readonly wire: number;
}

export interface Document {
  readonly name: string;
  readonly tensors: readonly TensorSpec[];
  readonly train: Graph;
  readonly eval: Graph;
}

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

const LARGEST = 2 ** 53;
const NESTING = 4;
const MOST_DIMENSIONS = 16;

/** Parse and check the form. Throws PortableError for what is no such document. */
export function documentFromJson(bytes: Uint8Array): Document {
  const root = object(parsed(bytes), "the graph");
  if (root.format !== "spliteasy-graph" || root.version !== 1) throw new PortableError("the graph is not of version 1 of spliteasy-graph");
  const tensors = list(root.tensors, "tensors").map(tensorSpec);
  return {
    name: text(root.name, "name"),
    tensors,
    train: graph(root.train, tensors.length, "train"),
    eval: graph(root.eval, tensors.length, "eval"),
  };
}

/** JSON whose numbers with a point or an exponent come back as `{"float": …}`: JavaScript can't tell 1.0 from 1. */
function parsed(bytes: Uint8Array): Json {
  const source = new TextDecoder("utf-8", { fatal: true });
  try {
    const marked = source.decode(bytes).replace(/"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?/g, (word) =>
      word.startsWith('"') || /^-?\d+$/.test(word) ? word : `{"float":${word}}`,
    );
    return JSON.parse(marked) as Json;
  } catch (error) {
    throw new PortableError(`the graph is no JSON: ${(error as Error).message}`);
  }
}

function graph(value: Json | undefined, tensors: number, mode: string): Graph {
  const record = object(value, mode);
  const inputs = list(record.inputs, "inputs").map(valueSpec);
  const first = tensors + inputs.length;
  const nodes = list(record.nodes, "nodes").map((node, place) => graphNode(node, first + place));
  const results = list(record.results, "results").map((slot) => whole(slot, "results"));
  const outputs = list(record.outputs, "outputs").map(valueSpec);
  if (results.some((slot) => slot >= first + nodes.length)) throw new PortableError("an output refers to a value that does not exist");
  const wire = whole(record.wire, "wire");
  if (outputs.length !== results.length || wire > results.length) {
    throw new PortableError("the outputs' numbers and descriptions differ in count");
  }
  return { inputs, nodes, results, outputs, wire };
}

function graphNode(value: Json, limit: number): Node {
  const record = object(value, "a node");
  const op = text(record.op, "op");
  const args = list(record.args ?? [], "args").map((arg) => argument(arg, limit));
  const kwargs = new Map(Object.entries(object(record.kwargs ?? {}, "kwargs")).map(([key, arg]) => [key, argument(arg, limit)]));
  return { op, args, kwargs, grad: record.grad !== false };
}

function argument(value: Json, limit: number, depth = 0): Argument {
  if (value === null || typeof value === "boolean" || typeof value === "string") return value;
  if (typeof value === "number") return whole(value, "an argument", -LARGEST);
  if (Array.isArray(value)) {
    if (depth >= NESTING) throw new PortableError("an argument is nested too deeply");
    return value.map((item) => argument(item, limit, depth + 1));
  }
  const entries = Object.entries(value);
  const [tag, content] = entries.length === 1 ? entries[0] : ["", null];
  if (tag === "ref" && typeof content === "number") {
    if (!Number.isInteger(content) || content < 0 || content >= limit) {
      throw new PortableError(`a node refers to value ${content}, which is not computed before it`);
    }
    return new Ref(content);
  }
  if (tag === "float" && typeof content === "number") return new Real(content);
  if (tag === "float") return new Real({ inf: Infinity, "-inf": -Infinity, nan: NaN }[String(content)] ?? NaN);
  if (tag === "dtype" && typeof content === "string") return new Dtype(content);
  if (tag === "memory_format" && typeof content === "string") return content;
  if (tag === "complex") throw new NotSupported("this device does not compute with complex numbers");
  throw new PortableError(`an argument of unknown form, tagged ${tag}`);
}

function tensorSpec(value: Json): TensorSpec {
  const record = object(value, "a tensor");
  const names = list(record.names, "names").map((name) => text(name, "names"));
  const kind = text(record.kind, "kind");
  if (!names.length || !["parameter", "buffer", "constant"].includes(kind)) throw new PortableError("a tensor has no name or no kind");
  return {
    names,
    kind: kind as TensorSpec["kind"],
    dtype: text(record.dtype, "dtype"),
    shape: shapeOf(record.shape).map((side) => whole(side as Json, "shape")),
    requires_grad: record.requires_grad === true,
    persistent: record.persistent !== false,
  };
}

function valueSpec(value: Json): ValueSpec {
  const record = object(value, "a value");
  const dtype = record.dtype ?? null;
  return {
    name: text(record.name, "name"),
    dtype: dtype === null ? null : (text(dtype, "dtype") as ValueSpec["dtype"]),
    shape: shapeOf(record.shape),
    needs_grad: record.needs_grad === true,
  };
}

function shapeOf(value: Json | undefined): Dim[] {
  const sides = list(value ?? [], "shape");
  if (sides.length > MOST_DIMENSIONS) throw new PortableError("a shape has too many dimensions");
  return sides.map((side) => {
    if (typeof side === "number") return whole(side, "shape");
    const record = object(side, "a dimension");
    return { batch: whole(record.batch, "batch"), plus: whole(record.plus ?? 0, "plus", -LARGEST) };
  });
}

/** The dtypes among inputs, outputs and tensors that this device does not compute with. */
export function foreignDtypes(document: Document): string[] {
  const values = [document.train, document.eval].flatMap((mode) => [...mode.inputs, ...mode.outputs]);
  const dtypes = [...document.tensors, ...values].map((each) => each.dtype).filter((dtype) => dtype !== null);
  return [...new Set(dtypes.filter((dtype) => !KINDS.includes(dtype)))];
}

function object(value: Json | undefined, what: string): { [key: string]: Json } {
  if (value === null || typeof value !== "object" || Array.isArray(value)) throw malformed(what);
  return value;
}

function list(value: Json | undefined, what: string): Json[] {
  if (!Array.isArray(value)) throw malformed(what);
  return value;
}

function text(value: Json | undefined, what: string): string {
  if (typeof value !== "string" || !value) throw malformed(what);
  return value;
}

function whole(value: Json | undefined, what: string, least = 0): number {
  if (typeof value !== "number" || !Number.isInteger(value) || value < least || value > LARGEST) throw malformed(what);
  return value;
}

function malformed(what: string): PortableError {
  return new PortableError(`the graph is malformed at ${what}`);
}
