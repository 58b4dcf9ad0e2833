/** A segment: its graphs, made ready to run, and its tensors. See `spliteasy/graph/segment.py`. */

import { PortableError } from "../errors.ts";
import { refuseDtypes } from "./checks.ts";
import { documentFromJson, foreignDtypes, type Document } from "./document.ts";
import type { Machine, NdArray } from "./nd_array.ts";
import { Program } from "./program.ts";
import { tensorsFromBytes } from "./safetensors.ts";
import type { SegmentSource, Tensor } from "./types.ts";

export class Segment {
  readonly train: Program;
  readonly eval: Program;
  /** In the order of the table. */
  readonly tensors: readonly NdArray[];

  /** Throws PortableError for tensors that don't fit, and NotSupported for what this build can't run. */
  constructor(
    readonly machine: Machine,
    readonly document: Document,
    given: Readonly<Record<string, Tensor>>,
  ) {
    refuseDtypes(document.name, foreignDtypes(document));
    this.train = new Program(document.train, document);
    this.eval = new Program(document.eval, document);
    const unknown = Object.keys(given).find((name) => !document.tensors.some(({ names }) => names[0] === name));
    if (unknown !== undefined) throw new PortableError(`segment ${document.name} has no tensor named ${unknown}`);
    this.tensors = document.tensors.map(({ names: [name], dtype, shape, kind, requires_grad }) => {
      const tensor = Object.hasOwn(given, name) ? given[name] : undefined;
      if (!tensor) throw new PortableError(`tensor ${name} of segment ${document.name} is missing`);
      const same = tensor.shape.length === shape.length && tensor.shape.every((side, place) => side === shape[place]);
      if (!same || tensor.dtype !== dtype) {
        throw new PortableError(`tensor ${name} is ${tensor.dtype} [${tensor.shape.join(", ")}], the graph says ${dtype} [${shape.join(", ")}]`);
      }
      const own = machine.imported(tensor);
      own.needsGrad = kind === "parameter" && requires_grad === true;
      return own;
    });
  }

  static load(machine: Machine, source: SegmentSource): Segment {
    const document = documentFromJson(source.graph);
    return new Segment(machine, document, { ...tensorsFromBytes(source.tensors), ...source.drawn });
  }

  /** Name and tensor of all of a kind, by main name. */
  named(kind: "parameter" | "buffer"): [string, NdArray][] {
    return this.document.tensors.flatMap((spec, place) => (spec.kind === kind ? [[spec.names[0], this.tensors[place]] as [string, NdArray]] : []));
  }

  /** The tensors of a state dict, under all their names. */
  stateNames(): [string, NdArray][] {
    return this.document.tensors.flatMap((spec, place) =>
      spec.kind === "parameter" || spec.persistent !== false ? spec.names.map((name) => [name, this.tensors[place]] as [string, NdArray]) : [],
    );
  }

  free(): void {
    for (const { block } of this.tensors) if (block) this.machine.arena.release(block);
  }
}
