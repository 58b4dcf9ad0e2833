/** What a browser has to have, and what the owner is told where it has not. */

import { text } from "./texts.ts";

/** The smallest module with an instruction of WebAssembly SIMD. */
const SIMD = Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11);

/** Why the page can't work here; null where it can. */
export function missing(): string | null {
  if (!window.isSecureContext) return text("insecure");
  if (typeof WebAssembly !== "object" || !WebAssembly.validate(SIMD)) return text("noEngine");
  if (typeof navigator.storage?.getDirectory !== "function") return text("noStorage");
  if (navigator.locks === undefined) return text("noLocks");
  return null;
}

/** Keep the screen on while `wanted`, as far as the browser lets the page. */
export class WakeLock {
  private wanted = false;
  private held: WakeLockSentinel | null = null;

  constructor(private readonly refused: () => void) {
    document.addEventListener("visibilitychange", () => void this.take());
  }

  set(wanted: boolean): void {
    this.wanted = wanted;
    if (wanted) void this.take();
    else void this.held?.release();
  }

  private async take(): Promise<void> {
    if (!this.wanted || document.hidden || (this.held !== null && !this.held.released)) return;
    try {
      this.held = await navigator.wakeLock.request("screen");
    } catch {
      this.refused(); // the battery is low, or the browser has none
    }
  }
}
