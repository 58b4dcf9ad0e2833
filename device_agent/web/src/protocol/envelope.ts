/** The envelope: one message as bytes (`broker/protocol/WIRE.md`). */

import { WireError } from "../errors.ts";
import { fromHeader, type AnyMessage, type Value } from "./messages.ts";
import { isRecord } from "./schema.ts";
import { isDense, isDtype, itemBytes, product, Tensor, type Dtype } from "./tensor.ts";

const MAGIC = [0x53, 0x50, 0x45, 0x5a];
const PREFIX = 12;
const VERSION = 1;
export const MINOR = 5;
const ALIGNMENT = 64;
const MAX_HEADER_BYTES = 8 << 20;
const MAX_TOTAL_BYTES = 1 << 30;
const MAX_VALUES = 1 << 16;
const MAX_DIMENSIONS = 8;
const SLOT_KEYS: ReadonlySet<string> = new Set(["dtype", "shape", "offset", "length", "strides"]);

/** The message as bytes. Throws WireError for a value that has no form on the wire. */
export function encode(message: AnyMessage): Uint8Array {
  const { values, ...fields } = message;
  const slots: unknown[] = [];
  const placed: [number, Uint8Array][] = [];
  let end = 0;
  for (const value of values) {
    if (!(value instanceof Tensor)) {
      if (value !== null && !Number.isSafeInteger(value)) throw new WireError(`${value} has no form on the wire`);
      slots.push(value);
      continue;
    }
    const offset = aligned(end);
    const { dtype, shape, strides, bytes } = value;
    slots.push({ dtype, shape, ...(strides && bytes.length ? { strides } : {}), offset, length: bytes.length });
    if (bytes.length) {
      placed.push([offset, bytes]);
      end = offset + bytes.length;
    }
  }
  const text = new TextEncoder().encode(JSON.stringify({ m: withoutNulls(fields), v: slots }));
  const header = PREFIX + text.length;
  const start = end ? aligned(header) : header;
  const data = new Uint8Array(start + end);
  const view = new DataView(data.buffer);
  data.set(MAGIC);
  view.setUint16(4, VERSION, true);
  view.setUint16(6, MINOR, true);
  view.setUint32(8, text.length, true);
  data.set(text, PREFIX);
  for (const [offset, bytes] of placed) data.set(bytes, start + offset);
  return data;
}

/** The message in `data`; its tensors are views of it. Throws WireError, and nothing else. */
export function decode(data: Uint8Array): AnyMessage {
  if (data.length > MAX_TOTAL_BYTES) throw new WireError(`${data.length} bytes are more than a message has`);
  if (data.length < PREFIX || MAGIC.some((byte, at) => data[at] !== byte)) throw new WireError("not a message of SplitEasy");
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const version = view.getUint16(4, true);
  if (version !== VERSION) throw new WireError(`a message of wire version ${version}, this side speaks ${VERSION}`);
  const length = view.getUint32(8, true);
  const start = PREFIX + length;
  if (length > MAX_HEADER_BYTES || start > data.length) throw new WireError("a header that does not fit");
  const newer = view.getUint16(6, true) > MINOR;
  const header = parsed(data.subarray(PREFIX, start));
  const keys = isRecord(header) ? Object.keys(header) : [];
  if (!isRecord(header) || !("m" in header && "v" in header) || (keys.length > 2 && !newer)) {
    throw new WireError("the header is not a message's");
  }
  return fromHeader(header["m"], unpacked(header["v"], data, start), newer);
}

/** The header. Among the values a number with a fraction or an exponent is none of ours, not even `1.0`. */
function parsed(bytes: Uint8Array): unknown {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    if (/\d(\.|[eE])/.test(text.slice(text.lastIndexOf('"v":')))) throw new WireError("a value is no integer");
    return JSON.parse(text);
  } catch (error) {
    throw error instanceof WireError ? error : new WireError("the header is not JSON");
  }
}

function unpacked(slots: unknown, data: Uint8Array, headerEnd: number): Value[] {
  if (!Array.isArray(slots) || slots.length > MAX_VALUES) throw new WireError("the values are not a list, or too many");
  const start = aligned(headerEnd);
  const described: (Slot | number | null)[] = [];
  let end = 0;
  for (const slot of slots) {
    if (slot === null || typeof slot === "number") {
      if (slot !== null && !Number.isSafeInteger(slot)) throw new WireError("a value is no integer within 2^53");
      described.push(slot);
      continue;
    }
    const found = checkedSlot(slot);
    if (found.offset !== aligned(end)) throw new WireError(`a tensor at ${found.offset} where ${aligned(end)} is next`);
    if (found.length) end = found.offset + found.length;
    described.push(found);
  }
  if (data.length !== (end ? start + end : headerEnd)) throw new WireError("a message with bytes too few or too many");
  // The tensors lie at multiples of their elements' size only where the message itself lies at one of 8.
  const placed = data.byteOffset % 8 ? data.slice() : data;
  return described.map((slot) => (slot === null || typeof slot === "number" ? slot : tensorAt(placed, start, slot)));
}

interface Slot {
  readonly dtype: Dtype;
  readonly shape: number[];
  readonly strides: number[] | null;
  readonly offset: number;
  readonly length: number;
}

function checkedSlot(slot: unknown): Slot {
  if (!isRecord(slot) || Object.keys(slot).some((key) => !SLOT_KEYS.has(key))) throw new WireError("a value that is none of ours");
  const { dtype, offset, length } = slot;
  if (!isDtype(dtype)) throw new WireError("an unknown dtype");
  const shape = sizes(slot["shape"]);
  if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(length)) throw new WireError("a tensor's place is not integers");
  if (product(shape.map((size) => size || 1)) > MAX_TOTAL_BYTES) throw new WireError("a tensor that is too large");
  if (product(shape) * itemBytes(dtype) !== length) throw new WireError("a tensor's length is not its shape's");
  const strides = "strides" in slot ? sizes(slot["strides"]) : null;
  if (strides && !(length && strides.length === shape.length && isDense(shape, strides))) {
    throw new WireError("strides that do not fill their shape");
  }
  return { dtype, shape, strides, offset: offset as number, length: length as number };
}

function sizes(value: unknown): number[] {
  const fine = Array.isArray(value) && value.length <= MAX_DIMENSIONS && value.every((size) => Number.isSafeInteger(size) && size >= 0);
  if (!fine) throw new WireError("a shape or strides are not a short list of integers from 0 on");
  return value as number[];
}

function tensorAt(data: Uint8Array, start: number, slot: Slot): Tensor {
  const bytes = data.subarray(start + slot.offset, start + slot.offset + slot.length);
  if (slot.dtype === "bool" && bytes.some((byte) => byte > 1)) throw new WireError("a bool that is neither 0 nor 1");
  return new Tensor(slot.dtype, slot.shape, slot.length ? bytes : new Uint8Array(0), slot.strides);
}

function withoutNulls(fields: object): object {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== null && value !== undefined));
}

function aligned(offset: number): number {
  return Math.ceil(offset / ALIGNMENT) * ALIGNMENT;
}
