/** CRC-32 with zlib's polynomial, eight bytes at a time. */

const TABLES = makeTables();

function makeTables(): Uint32Array[] {
  const first = new Uint32Array(256);
  for (let byte = 0; byte < 256; byte++) {
    let crc = byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
    first[byte] = crc;
  }
  const tables = [first];
  for (let n = 1; n < 8; n++) {
    const before = tables[n - 1];
    tables.push(before.map((crc) => (crc >>> 8) ^ first[crc & 255]));
  }
  return tables;
}

/** The checksum of `data`, going on from `crc`, which is that of the bytes before it. */
export function crc32(data: Uint8Array, crc = 0): number {
  const [t0, t1, t2, t3, t4, t5, t6, t7] = TABLES as [
    Uint32Array, Uint32Array, Uint32Array, Uint32Array, Uint32Array, Uint32Array, Uint32Array, Uint32Array,
  ];
  let c = ~crc;
  let at = 0;
  for (const end = data.length - 7; at < end; at += 8) {
    c ^= data[at] | (data[at + 1] << 8) | (data[at + 2] << 16) | (data[at + 3] << 24);
    c =
      t7[c & 255] ^ t6[(c >>> 8) & 255] ^ t5[(c >>> 16) & 255] ^ t4[c >>> 24] ^
      t3[data[at + 4]] ^ t2[data[at + 5]] ^ t1[data[at + 6]] ^ t0[data[at + 7]];
  }
  for (; at < data.length; at++) c = (c >>> 8) ^ t0[(c ^ data[at]) & 255];
  return ~c >>> 0;
}
