/** The Mersenne Twister as torch's CPU generator uses it, whose words are a key's stream. */

import type { Key } from "./key.ts";

const WORDS = 624;
const SHIFT = 397;
const TWO_32 = 2 ** 32;
const UNIT_53 = 2 ** -53;

export class Twister {
  readonly #words: Uint32Array;
  #next = WORDS;

  /** Begin with the words of the key's stream, as `state_of` in `spliteasy/runtime/randomness.py` does. */
  static of(key: Key): Twister {
    const bytes = key.stream(4 * WORDS);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    return new Twister(Uint32Array.from({ length: WORDS }, (_, place) => view.getUint32(4 * place, true)));
  }

  constructor(words: Uint32Array) {
    if (words.length !== WORDS) throw new RangeError(`a Mersenne Twister has ${WORDS} words, not ${words.length}`);
    this.#words = words.slice();
  }

  /** The next 32 bits. */
  word(): number {
    if (this.#next === WORDS) this.#twist();
    let y = this.#words[this.#next++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  /** A multiple of 2^-53 from 0, below 1: the low 53 bits of two words, the first of which is the high one. */
  unit(): number {
    const high = this.word() & 0x1fffff;
    return (high * TWO_32 + this.word()) * UNIT_53;
  }

  /** Write 1 with that probability, else 0, into each place: what torch's `bernoulli_` draws. */
  bernoulli(out: Float32Array | Uint8Array, probability: number): void {
    for (let place = 0; place < out.length; place++) out[place] = this.unit() < probability ? 1 : 0;
  }

  #twist(): void {
    const words = this.#words;
    for (let place = 0; place < WORDS; place++) {
      const y = (words[place] & 0x80000000) | (words[(place + 1) % WORDS] & 0x7fffffff);
      words[place] = words[(place + SHIFT) % WORDS] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.#next = 0;
  }
}
