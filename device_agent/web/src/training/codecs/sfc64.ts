/** numpy's generator SFC64, seeded by one number as numpy seeds it. Its words decide which way numbers are rounded. */

const WORD = 0xffffffffffffffffn;
const POOL = 4;

/** Words of 32 bits that follow from a seed: numpy's SeedSequence. */
function seedWords(seed: bigint, count: number): Uint32Array {
  const entropy: number[] = [];
  for (let rest = seed; rest > 0n || !entropy.length; rest >>= 32n) entropy.push(Number(rest & 0xffffffffn));
  const pool = new Uint32Array(POOL);
  let constant = 0x43b0d7e5;
  const hashed = (value: number): number => {
    value ^= constant;
    constant = Math.imul(constant, 0x931e8875);
    value = Math.imul(value, constant);
    return (value ^ (value >>> 16)) >>> 0;
  };
  const mixed = (x: number, y: number): number => {
    const result = (Math.imul(0xca01f9dd, x) - Math.imul(0x4973f715, y)) >>> 0;
    return (result ^ (result >>> 16)) >>> 0;
  };
  for (let at = 0; at < POOL; at++) pool[at] = hashed(entropy[at] ?? 0);
  for (let from = 0; from < POOL; from++) {
    for (let to = 0; to < POOL; to++) if (from !== to) pool[to] = mixed(pool[to], hashed(pool[from]));
  }
  for (const word of entropy.slice(POOL)) for (let to = 0; to < POOL; to++) pool[to] = mixed(pool[to], hashed(word));
  let other = 0x8b51f9dd;
  return Uint32Array.from({ length: count }, (_, at) => {
    let value = pool[at % POOL] ^ other;
    other = Math.imul(other, 0x58f38ded);
    value = Math.imul(value, other);
    return (value ^ (value >>> 16)) >>> 0;
  });
}

export class Sfc64 {
  private a: bigint;
  private b: bigint;
  private c: bigint;
  private counter = 1n;

  constructor(seed: bigint) {
    [this.a, this.b, this.c] = new BigUint64Array(seedWords(seed, 6).buffer);
    for (let round = 0; round < 12; round++) this.next();
  }

  /** The next word of 64 bits. */
  next(): bigint {
    const word = (this.a + this.b + this.counter) & WORD;
    this.counter = (this.counter + 1n) & WORD;
    this.a = this.b ^ (this.b >> 11n);
    this.b = (this.c + (this.c << 3n)) & WORD;
    this.c = (((this.c << 24n) | (this.c >> 40n)) + word) & WORD;
    return word;
  }
}
