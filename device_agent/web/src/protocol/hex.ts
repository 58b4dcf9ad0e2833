/** Bytes in hexadecimal digits, and random ones. */

export function toHex(bytes: Uint8Array): string {
  let text = "";
  for (const byte of bytes) text += byte.toString(16).padStart(2, "0");
  return text;
}

export function fromHex(text: string): Uint8Array {
  return Uint8Array.from({ length: text.length >> 1 }, (_, at) => parseInt(text.slice(2 * at, 2 * at + 2), 16));
}

/** 64 random bits: ids of requests, and nonces of attempts. */
export function newNonce(): string {
  return toHex(crypto.getRandomValues(new Uint8Array(8)));
}
