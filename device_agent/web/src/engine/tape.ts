/** The record of a forward, and the way back through it. */

import type { Twister } from "../random/index.ts";
import { Machine, type NdArray } from "./nd_array.ts";

/** A function that is given the gradients of an operator's results, null where a result got none. */
export type Back = (...gradients: (NdArray | null)[]) => void;

interface Entry {
  readonly results: readonly NdArray[];
  readonly kept: readonly NdArray[];
  readonly back: Back;
}

export class Tape {
  readonly #entries: Entry[] = [];

  constructor(readonly machine: Machine) {}

  /** `kept` are held until the way back has passed. */
  add(results: readonly NdArray[], kept: readonly NdArray[], back: Back): void {
    for (const each of kept) this.machine.hold(each);
    for (const each of results) each.needsGrad = true;
    this.#entries.push({ results, kept, back });
  }

  /** Go back from gradients that lie in the results' `grad`; each entry is dropped once it was passed. */
  goBack(): void {
    for (let entry = this.#entries.pop(); entry; entry = this.#entries.pop()) {
      const { results, kept, back } = entry;
      const gradients = results.map((each) => each.grad);
      for (const each of results) each.grad = null;
      if (gradients.some((each) => each !== null)) back(...gradients);
      for (const each of gradients) if (each) this.machine.drop(each);
      for (const each of kept) this.machine.drop(each);
    }
  }

  /** Free what the entries hold; there is no way back any more. */
  forget(): void {
    for (const { kept } of this.#entries) for (const each of kept) this.machine.drop(each);
    this.#entries.length = 0;
  }
}

/** What an operator computes with: the machine, the record if there is one, and random numbers. */
export class Context {
  readonly kernels;

  constructor(
    readonly m: Machine,
    private readonly tape: Tape | null,
    private readonly random: Twister | null,
  ) {
    this.kernels = m.kernels;
  }

  /** Whether a gradient is wanted of any of them. */
  wants(...values: (NdArray | null | undefined)[]): boolean {
    return this.tape !== null && values.some((value) => value?.needsGrad);
  }

  /**
   * Record how gradients of `results` flow back to the operator's arguments; `kept` are tensors that `back` reads.
   * Call it only where `wants` says so.
   */
  record(results: NdArray | readonly NdArray[], kept: readonly NdArray[], back: Back): void {
    this.tape?.add(Array.isArray(results) ? results : [results as NdArray], kept, back);
  }

  /** Add a gradient to that of an argument, and drop it. */
  give(to: NdArray, gradient: NdArray): void {
    const { m } = this;
    if (!to.needsGrad) {
      m.drop(gradient);
    } else if (!to.grad) {
      to.grad = gradient.shape === to.shape ? gradient : gradient.shaped(to.shape);
    } else if (to.grad.block!.holders === 1) {
      m.kernels.addInto(to.grad.at, gradient.at, to.size);
      m.drop(gradient);
    } else {
      const sum = m.make(to.shape);
      m.kernels.binary(0, to.grad.at, gradient.at, sum.at, to.size);
      m.drop(to.grad);
      m.drop(gradient);
      to.grad = sum;
    }
  }

  /** The generator that random operators draw from, in order. */
  get twister(): Twister {
    if (!this.random) throw new Error("a random operator runs where no random numbers were prepared");
    return this.random;
  }
}
