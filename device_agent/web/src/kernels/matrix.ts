// Products of matrices. Both factors are packed first, so that one kernel serves every layout.

/** Rows of A that are computed at a time. */
export const ROWS: i32 = 4;
/** Columns of B that are computed at a time. */
export const COLUMNS: i32 = 8;
/** The inner dimension is taken in pieces of this length, so that a packed piece of B stays in the nearest cache. */
const DEPTH: i32 = 384;

/** Rows `row` to `row + 3` of A, from column `from`, as [depth][4]; rows beyond the last are zeros. */
function packRows(a: usize, rowStride: i32, columnStride: i32, rows: i32, depth: i32, out: usize): void {
  const step = <usize>columnStride << 2;
  for (let r = 0; r < 4; r++) {
    let to = out + (<usize>r << 2);
    if (r >= rows) {
      for (let k = 0; k < depth; k++, to += 16) store<f32>(to, 0);
      continue;
    }
    let at = a + (<usize>r * rowStride << 2);
    for (let k = 0; k < depth; k++, at += step, to += 16) store<f32>(to, load<f32>(at));
  }
}

/** Eight columns of B as [depth][8]; columns beyond the last are zeros. */
function packColumns(b: usize, rowStride: i32, columnStride: i32, columns: i32, depth: i32, out: usize): void {
  const down = <usize>rowStride << 2, right = <usize>columnStride << 2;
  if (columns == 8 && columnStride == 1) {
    for (let k = 0; k < depth; k++, b += down, out += 32) {
      v128.store(out, v128.load(b));
      v128.store(out, v128.load(b, 16), 16);
    }
    return;
  }
  for (let c = 0; c < 8; c++) {
    let to = out + (<usize>c << 2);
    if (c >= columns) {
      for (let k = 0; k < depth; k++, to += 32) store<f32>(to, 0);
      continue;
    }
    let at = b + <usize>c * right;
    for (let k = 0; k < depth; k++, at += down, to += 32) store<f32>(to, load<f32>(at));
  }
}

@inline function madd(sum: v128, a: v128, b: v128): v128 {
  return f32x4.add(sum, f32x4.mul(a, b));
}

@inline function add(at: usize, offset: usize, value: v128): void {
  v128.store(at + offset, f32x4.add(v128.load(at + offset), value));
}

/** C += packed A * packed B, of 4 by 8 numbers of which `rows` by `columns` are in C. */
function tile(a: usize, b: usize, depth: i32, c: usize, stride: usize, rows: i32, columns: i32, spare: usize): void {
  let c00 = f32x4.splat(0), c01 = c00, c10 = c00, c11 = c00, c20 = c00, c21 = c00, c30 = c00, c31 = c00;
  for (const stop = a + (<usize>depth << 4); a < stop; a += 16, b += 32) {
    const b0 = v128.load(b), b1 = v128.load(b, 16);
    let x = v128.load32_splat(a);
    c00 = madd(c00, x, b0); c01 = madd(c01, x, b1);
    x = v128.load32_splat(a, 4);
    c10 = madd(c10, x, b0); c11 = madd(c11, x, b1);
    x = v128.load32_splat(a, 8);
    c20 = madd(c20, x, b0); c21 = madd(c21, x, b1);
    x = v128.load32_splat(a, 12);
    c30 = madd(c30, x, b0); c31 = madd(c31, x, b1);
  }
  if (rows == 4 && columns == 8) {
    add(c, 0, c00); add(c, 16, c01); c += stride;
    add(c, 0, c10); add(c, 16, c11); c += stride;
    add(c, 0, c20); add(c, 16, c21); c += stride;
    add(c, 0, c30); add(c, 16, c31);
    return;
  }
  v128.store(spare, c00); v128.store(spare, c01, 16); v128.store(spare, c10, 32); v128.store(spare, c11, 48);
  v128.store(spare, c20, 64); v128.store(spare, c21, 80); v128.store(spare, c30, 96); v128.store(spare, c31, 112);
  for (let r = 0; r < rows; r++, c += stride, spare += 32) {
    for (let j = 0; j < columns; j++) {
      const at = c + (<usize>j << 2);
      store<f32>(at, load<f32>(at) + load<f32>(spare + (<usize>j << 2)));
    }
  }
}

/** The bytes of scratch memory that `multiply` needs. */
export function multiplyScratch(m: i32, k: i32): i32 {
  const depth = min(k, DEPTH), panels = (m + 3) >> 2;
  return (panels * depth << 4) + (depth << 5) + 128;
}

/**
 * C += A * B, where A is m by k and B is k by n, each with a stride of its rows and of its columns, in numbers; the
 * rows of C lie `cStride` numbers apart.
 */
export function multiply(
  m: i32, n: i32, k: i32, a: usize, aRow: i32, aColumn: i32, b: usize, bRow: i32, bColumn: i32,
  c: usize, cStride: i32, scratch: usize,
): void {
  for (let from = 0; from < k; from += DEPTH) {
    const depth = min(DEPTH, k - from);
    const spare = scratch, packedB = scratch + 128, packedA = packedB + (<usize>depth << 5);
    for (let row = 0; row < m; row += 4) {
      const at = a + (<usize>(row * aRow + from * aColumn) << 2);
      packRows(at, aRow, aColumn, min(4, m - row), depth, packedA + ((<usize>(row >> 2) * depth) << 4));
    }
    for (let column = 0; column < n; column += 8) {
      const columns = min(8, n - column);
      packColumns(b + (<usize>(from * bRow + column * bColumn) << 2), bRow, bColumn, columns, depth, packedB);
      for (let row = 0; row < m; row += 4) {
        const to = c + (<usize>(row * cStride + column) << 2);
        const panel = packedA + ((<usize>(row >> 2) * depth) << 4);
        tile(panel, packedB, depth, to, <usize>cStride << 2, min(4, m - row), columns, spare);
      }
    }
  }
}
