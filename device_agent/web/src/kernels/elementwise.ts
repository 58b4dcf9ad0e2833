// Element by element. Every pointer is a multiple of 16, and the memory behind a tensor is padded to 16 bytes.

/** to += from, of `count` numbers. */
export function addInto(to: usize, from: usize, count: i32): void {
  const end = to + ((<usize>count + 3) & ~3) * 4;
  for (; to < end; to += 16, from += 16) v128.store(to, f32x4.add(v128.load(to), v128.load(from)));
}
