/** What an agent tells the page. Each is a plain object, since it crosses from one thread to another. */

import type { Evaluated } from "./history.ts";

/** A job as the page shows it. */
export interface JobShown {
  readonly name: string;
  readonly digest: string;
  readonly signed: boolean;
  readonly isPicture: boolean;
  readonly inputShape: readonly number[];
  readonly classNames: readonly string[];
  /** Labels are classes; else numbers. */
  readonly hasClasses: boolean;
  readonly resize: "none" | "stretch" | "crop" | "pad";
  /** What crosses to the server in one step, in bytes each way together. */
  readonly bytesPerSample: number;
  readonly epochs: number;
  readonly batchSize: number;
  readonly sharesLabels: boolean;
  readonly sharesLoss: boolean;
  readonly hasPublicWeights: boolean;
  /** How this phone's part of the model reaches the others of a fleet; null where it stays here. */
  readonly ends: "sealed" | "open" | null;
}

export interface DataShown {
  readonly count: number;
  readonly counts: readonly number[];
  readonly heldBack: number;
  /** A training has begun with it: it can't be changed. */
  readonly locked: boolean;
}

export interface Failure {
  readonly message: string;
  readonly hint: string | null;
  readonly kind: "account" | "state" | "other" | "bug";
}

export type Observation =
  | { readonly type: "waiting"; readonly text: string }
  | { readonly type: "locked" }
  | { readonly type: "ready"; readonly job: JobShown; readonly data: DataShown; readonly step: number; readonly done: boolean }
  | { readonly type: "data"; readonly data: DataShown }
  | { readonly type: "began"; readonly totalSteps: number; readonly stepsPerEpoch: number }
  | { readonly type: "resumed"; readonly step: number; readonly losses: readonly (number | null)[]; readonly evaluations: readonly Evaluated[] }
  | { readonly type: "step"; readonly step: number; readonly loss: number | null; readonly seconds: number; readonly bytesUp: number; readonly bytesDown: number }
  | { readonly type: "saved"; readonly step: number }
  | ({ readonly type: "evaluated" } & Evaluated)
  | { readonly type: "note"; readonly text: string }
  | { readonly type: "finished"; readonly done: boolean }
  | { readonly type: "predicted"; readonly outputs: readonly number[] }
  | { readonly type: "sample"; readonly index: number; readonly input: Uint8Array | Float32Array; readonly label: number }
  | { readonly type: "refused"; readonly failure: Failure }
  | { readonly type: "failed"; readonly failure: Failure };

export type Observe = (observation: Observation) => void;

/** What the page asks of the agent. */
export type Command =
  | { readonly type: "open"; readonly fragment: string; readonly page: string; readonly startOver: boolean }
  | { readonly type: "add"; readonly inputs: Uint8Array | Float32Array; readonly labels: readonly number[] }
  | { readonly type: "clear" }
  | { readonly type: "show"; readonly index: number }
  | { readonly type: "train"; readonly restart: boolean; readonly takeover: boolean }
  | { readonly type: "pause"; readonly why: string | null }
  | { readonly type: "predict"; readonly sample: Uint8Array | Float32Array };
