/** Random streams: pure functions of a key and of where they are drawn. */

export { Key, KEY_BYTES, seedOf, type Part } from "./key.ts";
export { CHUNK, fill, normal, permutation, unit } from "./numbers.ts";
export { Twister } from "./twister.ts";
