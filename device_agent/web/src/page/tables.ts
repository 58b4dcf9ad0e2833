/** Samples from a CSV or JSON file: numbers and a label each. */

import { DataError } from "../errors.ts";
import { isRecord } from "../protocol/schema.ts";
import { text } from "./texts.ts";

const MAX_BYTES = 64 << 20;
const MOST_NAMED = 12;

export interface Shape {
  /** Numbers of one sample. */
  readonly numbers: number;
  /** Samples are bytes, as pictures are; else float32. */
  readonly bytes: boolean;
  /** Names of the classes; null where labels are numbers of another kind. */
  readonly classes: readonly string[] | null;
}

export interface Samples {
  readonly inputs: Uint8Array | Float32Array;
  readonly labels: number[];
}

/** Throws DataError, which names the line. */
export function samplesOf(content: string, shape: Shape): Samples {
  if (content.length > MAX_BYTES) throw new DataError("the file is too large for a page");
  const rows = content.trimStart().startsWith("{") ? jsonRows(content) : csvRows(content);
  if (!rows.length) throw new DataError(text("noRows", { hint: text("fileHint") }));
  const inputs = shape.bytes ? new Uint8Array(rows.length * shape.numbers) : new Float32Array(rows.length * shape.numbers);
  const labels = rows.map(({ line, values, label }, at) => {
    if (values.length !== shape.numbers) {
      throw new DataError(text("rowLength", { line, found: values.length, wanted: shape.numbers }));
    }
    values.forEach((value, place) => (inputs[at * shape.numbers + place] = numberOf(value, line, shape.bytes)));
    return labelOf(label, line, shape.classes);
  });
  return { inputs, labels };
}

interface Row {
  readonly line: number;
  readonly values: readonly unknown[];
  readonly label: unknown;
}

function csvRows(content: string): Row[] {
  const lines = content.split(/\r?\n/).map((line, at) => ({ line: at + 1, cells: line.split(/[,;\t]/).map((cell) => cell.trim()) }));
  const filled = lines.filter(({ cells }) => cells.some((cell) => cell !== ""));
  const hasHeader = filled.length > 1 && filled[0].cells.slice(0, -1).some((cell) => cell === "" || Number.isNaN(Number(cell)));
  return filled.slice(hasHeader ? 1 : 0).map(({ line, cells }) => ({ line, values: cells.slice(0, -1), label: cells[cells.length - 1] }));
}

function jsonRows(content: string): Row[] {
  let said: unknown;
  try {
    said = JSON.parse(content);
  } catch {
    throw new DataError("the file is no JSON", text("fileHint"));
  }
  const { inputs, labels } = isRecord(said) ? said : {};
  if (!Array.isArray(inputs) || !Array.isArray(labels) || inputs.length !== labels.length) throw new DataError(text("noRows", { hint: text("fileHint") }));
  return inputs.map((values: unknown, at) => ({
    line: at + 1,
    values: Array.isArray(values) ? (values.flat(Infinity) as unknown[]) : [values],
    label: labels[at] as unknown,
  }));
}

function numberOf(value: unknown, line: number, bytes: boolean): number {
  const number = typeof value === "number" ? value : typeof value === "string" && value !== "" ? Number(value) : NaN;
  const fits = bytes ? Number.isInteger(number) && number >= 0 && number <= 255 : Number.isFinite(number);
  if (!fits) throw new DataError(text("notNumber", { line, value: String(value).slice(0, 40) }));
  return number;
}

function labelOf(label: unknown, line: number, classes: readonly string[] | null): number {
  if (classes === null) return numberOf(label, line, false);
  const named = classes.indexOf(String(label));
  const number = named >= 0 ? named : Number(label === "" ? NaN : label);
  if (Number.isInteger(number) && number >= 0 && number < classes.length) return number;
  const known = classes.slice(0, MOST_NAMED).join(", ") + (classes.length > MOST_NAMED ? " …" : "");
  throw new DataError(text("unknownLabel", { line, label: String(label).slice(0, 40), known }));
}
