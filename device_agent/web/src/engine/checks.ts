/** Values against their descriptions, and what this build can't compute with. */

import { DataError, NotSupported } from "../errors.ts";
import type { Dim, Value, ValueSpec } from "./types.ts";

export function refuseDtypes(name: string, dtypes: readonly string[]): void {
  if (!dtypes.length) return;
  throw new NotSupported(
    `${name} has ${dtypes.join(" and ")} numbers, and a browser computes with float32, int64 and bool`, [],
    "train this job on a device with Python, or make the model float32",
  );
}

function sideAt(dim: Dim, batch: number): number {
  return typeof dim === "number" ? dim : dim.batch * batch + (dim.plus ?? 0);
}

export function shapeFor(spec: ValueSpec, batch: number): number[] {
  return (spec.shape ?? []).map((dim) => sideAt(dim, batch));
}

/** The batch size that the first value with a batch dimension shows; null if none does. */
export function batchOf(specs: readonly ValueSpec[], values: readonly Value[]): number | null {
  for (const [at, spec] of specs.entries()) {
    const value = values[at];
    if (typeof value !== "object" || value.shape.length !== (spec.shape ?? []).length) continue;
    for (const [place, dim] of (spec.shape ?? []).entries()) {
      if (typeof dim === "number") continue;
      const size = value.shape[place] - (dim.plus ?? 0);
      if (size % dim.batch === 0) return size / dim.batch;
    }
  }
  return null;
}

/** Throws DataError for the first value that does not fit its place. */
export function checkValues(name: string, specs: readonly ValueSpec[], values: readonly Value[]): void {
  if (values.length !== specs.length) throw new DataError(`${name}: called with ${values.length} values, expected ${specs.length}`);
  const batch = batchOf(specs, values);
  specs.forEach((spec, at) => {
    const known = batch !== null || (spec.shape ?? []).every((dim) => typeof dim === "number");
    const problem = known ? problemWith(spec, values[at], batch ?? 1) : null;
    if (problem) {
      throw new DataError(
        `${name}: ${spec.name}: ${problem}`,
        "only the batch size is free: bring samples to the sizes that the model was traced with",
      );
    }
  });
}

function problemWith(spec: ValueSpec, value: Value, batch: number): string | null {
  const shape = shapeFor(spec, batch);
  if (spec.dtype === null) {
    return value === (shape[0] ?? 0) ? null : `expected the integer ${shape[0] ?? 0}, got ${typeof value === "number" ? value : "a tensor"}`;
  }
  if (typeof value === "number") return "expected a tensor, got an integer";
  if (value.dtype !== spec.dtype) return `expected ${spec.dtype}, got ${value.dtype}`;
  const same = value.shape.length === shape.length && value.shape.every((side, place) => side === shape[place]);
  return same ? null : `expected shape [${shape.join(", ")}], got [${value.shape.join(", ")}]`;
}
