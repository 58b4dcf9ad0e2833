/** Made by `npm run types` out of the JSON Schemas; not to be changed by hand. */

export interface Ask {
  readonly about: string;
  readonly about_kind: "FORWARD" | "BACKWARD" | "READY";
  readonly attempt: AttemptRef;
  readonly block_bytes?: number | null;
  readonly digests?: readonly string[];
  readonly forward: string;
  readonly kind: "ASK";
  readonly micro?: number;
  readonly partial?: readonly string[];
  readonly partial_ranges?: readonly (readonly (readonly [number, number])[])[];
  readonly request: string;
  readonly session: string;
  readonly step: number;
  readonly total?: number | null;
  readonly traceparent?: string | null;
}

export interface AttemptRef {
  readonly nonce: string;
  readonly number: number;
}

export interface Backward {
  readonly attempt: AttemptRef;
  readonly codec?: string;
  readonly forward: string;
  readonly kind: "BACKWARD";
  readonly loss?: number | null;
  readonly micro?: number;
  readonly noise?: string | null;
  readonly noise_multiplier?: number | null;
  readonly outputs?: string | null;
  readonly packing?: readonly Packing[];
  readonly reply_codec?: string | null;
  readonly request: string;
  readonly session: string;
  readonly step: number;
  readonly traceparent?: string | null;
}

export interface Body {
  readonly answers: string;
  readonly attempt: AttemptRef;
  readonly fence: number;
  readonly kind: "BODY";
  readonly names: readonly string[];
  readonly session: string;
  readonly step: number;
}

export interface Busy {
  readonly answers: string;
  readonly kind: "BUSY";
  readonly reason?: string;
  readonly retry_after_s: number;
}

export interface Close {
  readonly attempt: AttemptRef;
  readonly kind: "CLOSE";
  readonly request: string;
  readonly session: string;
  readonly step: number;
  readonly traceparent?: string | null;
}

export interface Closed {
  readonly answers: string;
  readonly attempt: AttemptRef;
  readonly fence: number;
  readonly kind: "CLOSED";
  readonly session: string;
  readonly step: number;
}

export interface Error {
  readonly answers: string;
  readonly code: "unknown-job" | "other-job" | "no-common-step" | "bad-request" | "bad-tensor" | "not-allowed" | "not-finite" | "computation-failed" | "log-full" | "replay-mismatch" | "unknown-session" | "store-full" | "unavailable" | "internal";
  readonly hint?: string | null;
  readonly kind: "ERROR";
  readonly message: string;
  readonly retriable?: boolean;
  readonly session: string;
}

export interface Eval {
  readonly attempt: AttemptRef;
  readonly codec?: string;
  readonly kind: "EVAL";
  readonly length?: number | null;
  readonly packing?: readonly Packing[];
  readonly reply_codec?: string | null;
  readonly request: string;
  readonly samples: number;
  readonly session: string;
  readonly step: number;
  readonly traceparent?: string | null;
}

export interface Evaluated {
  readonly answers: string;
  readonly attempt: AttemptRef;
  readonly codec?: string;
  readonly fence: number;
  readonly kind: "EVALUATED";
  readonly packing?: readonly Packing[];
  readonly reply_codec?: string | null;
  readonly session: string;
  readonly step: number;
}

export interface Forward {
  readonly attempt: AttemptRef;
  readonly batch?: number | null;
  readonly best?: boolean | null;
  readonly codec?: string;
  readonly counted?: number | null;
  readonly keep?: boolean | null;
  readonly kind: "FORWARD";
  readonly length?: number | null;
  readonly micro?: number;
  readonly oldest_checkpoint: number;
  readonly packing?: readonly Packing[];
  readonly reply_codec?: string | null;
  readonly request: string;
  readonly samples: number;
  readonly session: string;
  readonly step: number;
  readonly targets?: number;
  readonly traceparent?: string | null;
}

export interface Forwarded {
  readonly answers: string;
  readonly attempt: AttemptRef;
  readonly codec?: string;
  readonly fence: number;
  readonly kept?: boolean | null;
  readonly kind: "FORWARDED";
  readonly micro?: number;
  readonly packing?: readonly Packing[];
  readonly reply_codec?: string | null;
  readonly session: string;
  readonly step: number;
}

export interface GetBody {
  readonly attempt: AttemptRef;
  readonly kind: "GET_BODY";
  readonly request: string;
  readonly session: string;
  readonly step: number;
  readonly traceparent?: string | null;
}

export interface GetJob {
  readonly digest?: string | null;
  readonly kind: "GET_JOB";
  readonly request: string;
  readonly session: string;
  readonly without_parts?: boolean;
}

export interface Gradient {
  readonly answers: string;
  readonly attempt: AttemptRef;
  readonly checkpoint?: boolean;
  readonly codec?: string;
  readonly durable_step: number;
  readonly fence: number;
  readonly kept?: boolean | null;
  readonly kind: "GRADIENT";
  readonly loss?: number | null;
  readonly micro?: number | null;
  readonly packing?: readonly Packing[];
  readonly reply_codec?: string | null;
  readonly session: string;
  readonly skipped?: boolean;
  readonly step: number;
}

export interface Have {
  readonly answers: string;
  readonly kind: "HAVE";
  readonly ranges: readonly (readonly [number, number])[];
}

export interface Job {
  readonly answers: string;
  readonly digest: string;
  readonly kind: "JOB";
  readonly manifest: string;
  readonly parts: readonly string[];
  readonly session: string;
  readonly shard: number;
  readonly signature?: string | null;
}

export interface Mean {
  readonly answers: string;
  readonly attempt: AttemptRef;
  readonly drawn?: number;
  readonly durable_step: number;
  readonly fence: number;
  readonly initial?: boolean;
  readonly kept?: boolean;
  readonly kind: "MEAN";
  readonly names?: readonly string[];
  readonly opened?: number | null;
  readonly record: string;
  readonly round: number;
  readonly scheduled?: number | null;
  readonly sealed?: SealedSum | null;
  readonly session: string;
  readonly step: number;
}

export interface Missing {
  readonly answers: string;
  readonly attempt: AttemptRef;
  readonly fence: number;
  readonly kind: "MISSING";
  readonly micro?: number | null;
  readonly missing: "FORWARD" | "BACKWARD" | "READY";
  readonly rows?: readonly (readonly [number, number])[] | null;
  readonly session: string;
  readonly step: number;
}

export interface Open {
  readonly agent?: string | null;
  readonly attempt: AttemptRef;
  readonly digest: string;
  readonly held: readonly number[];
  readonly kind: "OPEN";
  readonly previous?: string | null;
  readonly request: string;
  readonly restart?: boolean;
  readonly session: string;
  readonly total_steps?: number | null;
}

export interface Opened {
  readonly answers: string;
  readonly attempt: AttemptRef;
  readonly durable_step: number;
  readonly fence: number;
  readonly kind: "OPENED";
  readonly newest?: string | null;
  readonly session: string;
  readonly shard?: number | null;
  readonly step: number;
}

export interface Packing {
  readonly meta?: { readonly [name: string]: number | string | readonly number[] };
  readonly parts: number;
}

export interface Ready {
  readonly accuracy?: number | null;
  readonly attempt: AttemptRef;
  readonly fleet_key?: string | null;
  readonly kind: "READY";
  readonly last?: boolean;
  readonly names?: readonly string[];
  readonly nonce?: string | null;
  readonly oldest_checkpoint: number;
  readonly request: string;
  readonly round: number;
  readonly samples?: number;
  readonly session: string;
  readonly step: number;
  readonly traceparent?: string | null;
  readonly whole?: boolean;
}

export interface Recall {
  readonly attempt: AttemptRef;
  readonly batch?: number | null;
  readonly best?: boolean | null;
  readonly codec?: string;
  readonly counted?: number | null;
  readonly forward: string;
  readonly kind: "RECALL";
  readonly micro?: number;
  readonly oldest_checkpoint: number;
  readonly packing?: readonly Packing[];
  readonly reply_codec?: string | null;
  readonly request: string;
  readonly samples: number;
  readonly sent?: readonly (readonly [number, number])[];
  readonly session: string;
  readonly step: number;
  readonly targets?: number;
  readonly traceparent?: string | null;
}

export interface Reopen {
  readonly answers: string;
  readonly attempt: AttemptRef;
  readonly kind: "REOPEN";
  readonly reason: string;
  readonly session: string;
  readonly shard?: number | null;
}

export interface SealedAddend {
  readonly device: string;
  readonly nonce: string;
  readonly weight: number;
}

export interface SealedSum {
  readonly addends: readonly SealedAddend[];
  readonly drawn: number;
  readonly round: number;
}

export interface Superseded {
  readonly answers: string;
  readonly attempt: AttemptRef;
  readonly kind: "SUPERSEDED";
  readonly newest: number;
  readonly session: string;
}

export interface Working {
  readonly answers: string;
  readonly attempt: AttemptRef;
  readonly kind: "WORKING";
  readonly session: string;
  readonly step: number;
}
