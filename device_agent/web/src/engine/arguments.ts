/** The arguments of a call by the names of their parameters. */

import { NotSupported, PortableError } from "../errors.ts";
import { Dtype, Real, type Argument } from "./document.ts";
import { NdArray, type Kind } from "./nd_array.ts";

/** An argument whose references were replaced by their values. */
export type Given = Exclude<Argument, readonly Argument[]> | NdArray | readonly Given[];

export class Arguments {
  readonly #given = new Map<string, Given>();

  /** `parameters`: the operator's, in order. */
  constructor(
    readonly op: string,
    parameters: readonly string[],
    args: readonly Given[],
    kwargs: Iterable<readonly [string, Given]>,
  ) {
    if (args.length > parameters.length) throw new NotSupported(`${op} is called with ${args.length} arguments`, [op]);
    args.forEach((arg, place) => this.#given.set(parameters[place], arg));
    for (const [name, arg] of kwargs) {
      if (!parameters.includes(name)) throw new NotSupported(`${op} is called with ${name}`, [op]);
      this.#given.set(name, arg);
    }
  }

  get(name: string): Given | undefined {
    const value = this.#given.get(name);
    return value === null ? undefined : value;
  }

  has(name: string): boolean {
    return this.get(name) !== undefined;
  }

  tensor(name: string): NdArray {
    const value = this.get(name);
    if (!(value instanceof NdArray)) throw this.#wrong(name, "a tensor");
    return value;
  }

  optional(name: string): NdArray | null {
    return this.has(name) ? this.tensor(name) : null;
  }

  tensors(name: string): NdArray[] {
    const value = this.get(name);
    if (!Array.isArray(value) || !value.every((each) => each instanceof NdArray)) throw this.#wrong(name, "tensors");
    return value as NdArray[];
  }

  number(name: string, otherwise?: number): number {
    const value = this.get(name);
    if (value instanceof Real) return value.value;
    if (typeof value === "number") return value;
    if (typeof value === "boolean") return Number(value);
    if (value === undefined && otherwise !== undefined) return otherwise;
    throw this.#wrong(name, "a number");
  }

  flag(name: string, otherwise = false): boolean {
    const value = this.get(name);
    if (value === undefined) return otherwise;
    if (typeof value === "boolean") return value;
    throw this.#wrong(name, "true or false");
  }

  text(name: string, otherwise: string): string {
    const value = this.get(name);
    if (value === undefined) return otherwise;
    if (typeof value === "string") return value;
    throw this.#wrong(name, "a text");
  }

  /** Whole numbers; one stands for a list of one. */
  numbers(name: string, otherwise?: readonly number[]): number[] {
    const value = this.get(name);
    if (value === undefined && otherwise) return [...otherwise];
    const items = Array.isArray(value) ? value : [value];
    if (!items.every((each) => typeof each === "number")) throw this.#wrong(name, "whole numbers");
    return items as number[];
  }

  /** `count` whole numbers; one stands for all. */
  each(name: string, count: number, otherwise?: number | readonly number[]): number[] {
    const found = this.numbers(name, typeof otherwise === "number" ? [otherwise] : otherwise);
    if (found.length === 1) return new Array<number>(count).fill(found[0]);
    if (found.length !== count) throw this.#wrong(name, `${count} numbers`);
    return found;
  }

  /** A kind of numbers, or null where none is asked for. */
  kind(name = "dtype"): Kind | null {
    const value = this.get(name);
    if (value === undefined) return null;
    if (value instanceof Dtype && ["float32", "int64", "bool"].includes(value.name)) return value.name as Kind;
    if (value instanceof Dtype) throw new NotSupported(`${this.op} makes ${value.name} numbers`, [this.op]);
    throw this.#wrong(name, "a dtype");
  }

  /** Refuse the call unless the argument has its usual value, which is all that this build knows. */
  only(name: string, ...values: readonly (boolean | number | string)[]): void {
    const value = this.get(name);
    const plain = value instanceof Real ? value.value : value;
    if (plain !== undefined && !values.includes(plain as number)) {
      throw new NotSupported(`${this.op} is called with ${name} = ${String(plain)}`, [this.op]);
    }
  }

  #wrong(name: string, what: string): PortableError {
    return new PortableError(`${this.op} is called with something else than ${what} as ${name}`);
  }
}
