/** The kernels' memory in blocks. A freed block is joined with its free neighbours, and used again. */

import { OutOfMemory } from "../errors.ts";
import type { Kernels } from "./kernels.ts";
import type { MemoryFigures } from "./types.ts";

const PAGE = 65536;
const ALIGNMENT = 64;
/** Kernels read and write whole vectors, and convolutions some numbers beyond a row. */
const SLACK = 64;

/** A piece of memory that is freed when nobody holds it any more. */
export interface Block {
  readonly at: number;
  readonly bytes: number;
  holders: number;
}

interface Gap {
  at: number;
  bytes: number;
}

export class Arena {
  readonly #memory: WebAssembly.Memory;
  readonly #limit: number;
  /** Free pieces by place, none beside another. */
  readonly #gaps: Gap[] = [];
  #end: number;
  #used = 0;
  #peak = 0;
  #made: Set<Block> | null = null;

  constructor(kernels: Kernels, limit: number) {
    this.#memory = kernels.memory;
    this.#limit = Math.min(limit, 2 ** 32 - PAGE);
    this.#end = Math.ceil((kernels.heapBase() >>> 0) / ALIGNMENT) * ALIGNMENT;
  }

  get buffer(): ArrayBuffer {
    return this.#memory.buffer as ArrayBuffer;
  }

  /** A block with one holder. Throws OutOfMemory where the limit would be passed. */
  take(bytes: number): Block {
    const size = Math.ceil((bytes + SLACK) / ALIGNMENT) * ALIGNMENT;
    const block = { at: this.#place(size), bytes: size, holders: 1 };
    this.#used += size;
    this.#peak = Math.max(this.#peak, this.#used);
    this.#made?.add(block);
    return block;
  }

  hold(block: Block): void {
    block.holders++;
  }

  /** One holder less. */
  drop(block: Block): void {
    if (--block.holders > 0) return;
    if (block.holders < 0) throw new Error("a block of memory was dropped by more holders than it had");
    this.#made?.delete(block);
    this.#used -= block.bytes;
    this.#free(block.at, block.bytes);
  }

  /** Free a block whoever holds it. */
  release(block: Block): void {
    block.holders = 1;
    this.drop(block);
  }

  /** Run `work`; where it throws, all blocks that it took are freed. */
  guarded<T>(work: () => T): T {
    if (this.#made) return work();
    const made = new Set<Block>();
    this.#made = made;
    try {
      return work();
    } catch (error) {
      this.#made = null;
      for (const block of made) this.release(block);
      throw error;
    } finally {
      this.#made = null;
    }
  }

  get figures(): MemoryFigures {
    return { reserved: this.#memory.buffer.byteLength, used: this.#used, peak: this.#peak, limit: this.#limit };
  }

  /** The smallest gap that is large enough, or the end of what was used so far. */
  #place(size: number): number {
    let best = -1;
    for (let place = 0; place < this.#gaps.length; place++) {
      const { bytes } = this.#gaps[place];
      if (bytes >= size && (best < 0 || bytes < this.#gaps[best].bytes)) best = place;
    }
    if (best >= 0) {
      const gap = this.#gaps[best];
      const { at } = gap;
      gap.at += size;
      gap.bytes -= size;
      if (!gap.bytes) this.#gaps.splice(best, 1);
      return at;
    }
    return this.#extend(size);
  }

  #extend(size: number): number {
    const last = this.#gaps.at(-1);
    const at = last && last.at + last.bytes === this.#end ? last.at : this.#end;
    const end = at + size;
    if (end > this.#limit) {
      const mebi = (bytes: number): string => `${Math.round(bytes / 2 ** 20)} MiB`;
      throw new OutOfMemory(
        `the training needs more than the ${mebi(this.#limit)} of memory that it may have here`,
        "lower batch_size, or raise micro_batches in the job",
      );
    }
    const missing = Math.ceil((end - this.#memory.buffer.byteLength) / PAGE);
    if (missing > 0) {
      try {
        this.#memory.grow(missing);
      } catch {
        throw new OutOfMemory("this device gives the page no more memory", "close other tabs, or lower batch_size in the job");
      }
    }
    if (at !== this.#end) this.#gaps.pop();
    this.#end = end;
    return at;
  }

  #free(at: number, bytes: number): void {
    let low = 0;
    let high = this.#gaps.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#gaps[middle].at < at) low = middle + 1;
      else high = middle;
    }
    const before = this.#gaps[low - 1];
    const after = this.#gaps[low];
    const touchesBefore = before !== undefined && before.at + before.bytes === at;
    const touchesAfter = after !== undefined && at + bytes === after.at;
    if (touchesBefore) {
      before.bytes += bytes + (touchesAfter ? after.bytes : 0);
      if (touchesAfter) this.#gaps.splice(low, 1);
    } else if (touchesAfter) {
      after.at = at;
      after.bytes += bytes;
    } else {
      this.#gaps.splice(low, 0, { at, bytes });
    }
  }
}
