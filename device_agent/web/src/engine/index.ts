/** What the engine offers to the rest of the agent. */

export type * from "./types.ts";
export * from "../random/index.ts";
