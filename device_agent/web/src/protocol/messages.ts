/** The messages of the session protocol, with the types that `npm run types` makes of the JSON Schemas. */

import { WireError } from "../errors.ts";
import type { Tensor } from "./tensor.ts";
import { SCHEMAS } from "./generated/schemas.ts";
import type {
  Ask, Backward, Body, Busy, Close, Closed, Error as ErrorReply, Eval, Evaluated, Forward, Forwarded, GetBody,
  GetJob, Gradient, Have, Job, Mean, Missing, Open, Opened, Ready, Reopen, Superseded, Working,
} from "./generated/message.ts";
import { isRecord, misfit, type Schema } from "./schema.ts";

export type { AttemptRef } from "./generated/message.ts";
export type {
  Ask, Backward, Body, Busy, Close, Closed, ErrorReply, Eval, Evaluated, Forward, Forwarded, GetBody, GetJob,
  Gradient, Have, Job, Mean, Missing, Open, Opened, Ready, Reopen, Superseded, Working,
};

/** A value of a boundary: a tensor, an integer (a batch size), or nothing (an absent gradient). */
export type Value = Tensor | number | null;

/** A message's fields, and the values that travel beside them. */
export type Carried<T> = T & { readonly values: readonly Value[] };

export type Request = GetJob | Open | Forward | Backward | Ready | Eval | Ask | GetBody | Close;
export type Reply =
  | Job | Opened | Superseded | Reopen | Forwarded | Gradient | Mean | Evaluated | Missing | Working | Body
  | Closed | Have | Busy | ErrorReply;
export type AnyMessage = Carried<Request | Reply>;
export type AnyRequest = Carried<Request>;
export type AnyReply = Carried<Reply>;
export type MessageOf<K extends AnyMessage["kind"]> = Extract<AnyMessage, { kind: K }>;

export const MAX_HELD_STEPS = 1024;
export const MAX_RANGES = 1024;

const MESSAGE = SCHEMAS.message as Schema;
const BY_KIND = new Map(
  Object.values(MESSAGE.$defs!).flatMap((part): [unknown, Schema][] => {
    const kind = part.properties?.["kind"];
    return kind ? [[kind.const, part]] : [];
  }),
);

/** The message of a decoded header. Throws WireError unless it is one of ours. */
export function fromHeader(header: unknown, values: readonly Value[], newer: boolean): AnyMessage {
  const part = isRecord(header) ? BY_KIND.get(header["kind"]) : undefined;
  if (!isRecord(header) || part === undefined || "values" in header) {
    throw new WireError("the message's fields are not an object of ours");
  }
  const why = misfit(header, part, MESSAGE, newer);
  if (why !== null) throw new WireError(`not a message of ours: ${why}`);
  return { ...header, values } as AnyMessage;
}
