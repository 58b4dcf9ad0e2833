/** What the engine offers to the rest of the agent. */

export type * from "./types.ts";
export { createEngine } from "./local.ts";
export { tensorsFromBytes, tensorsToBytes } from "./safetensors.ts";
export { factor } from "./schedule.ts";
export * from "../random/index.ts";
