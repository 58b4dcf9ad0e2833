/** Who a phone is to the broker, and which job it trains: the fragment of the link that its owner gets. */

import { SplitEasyError } from "../errors.ts";
import { isRecord } from "../protocol/schema.ts";

export interface Enrolment {
  readonly device: string;
  readonly password: string;
  readonly job: string;
  /** The device loads only what this key has signed; null: anything. */
  readonly operatorKey: string | null;
  /** The key that the devices of a fleet share, 64 hexadecimal digits; null where the training has none. */
  readonly fleetKey: string | null;
  /** A file of samples on the page's own server that the owner may train on, for demonstrations. */
  readonly samples: string | null;
}

const NAME = /^[a-z0-9-]{1,63}$/;
const JOB = /^[a-z0-9-]{1,63}(@[0-9a-f]{64})?$/;

/** Read a link's fragment. Throws SplitEasyError for what no operator's command has written. */
export function readEnrolment(fragment: string): Enrolment {
  const said = decoded(fragment.replace(/^#/, ""));
  const { v, device, password, job, key = null, fleet = null, samples = null } = isRecord(said) ? said : {};
  const fits =
    v === 1 && matches(device, NAME) && matches(password, /^.{1,512}$/) && matches(job, JOB) &&
    [key, fleet].every((each) => each === null || matches(each, /^[0-9a-f]{64}$/)) && (samples === null || matches(samples, /^[\w./-]{1,200}$/));
  if (!fits) throw new SplitEasyError("this link is not complete", "open it as it was sent to you: scan the code again, or copy the whole link");
  return { device, password, job, operatorKey: key, fleetKey: fleet, samples } as Enrolment;
}

function matches(value: unknown, pattern: RegExp): boolean {
  return typeof value === "string" && pattern.test(value);
}

function decoded(text: string): unknown {
  try {
    const binary = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(Uint8Array.from(binary, (char) => char.charCodeAt(0))));
  } catch {
    return null;
  }
}
