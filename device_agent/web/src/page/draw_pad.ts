/** A canvas to draw on with a finger, a pen or a mouse: white on black. */

import { contextOf } from "./pictures.ts";
import { button, element } from "./dom.ts";
import { text } from "./texts.ts";

const SIDE = 280;
const STROKE = 26;

export class DrawPad {
  readonly root: HTMLElement;
  readonly canvas: HTMLCanvasElement;
  private last: { x: number; y: number } | null = null;

  constructor(label: string) {
    this.canvas = element("canvas", { class: "pad", width: String(SIDE), height: String(SIDE), role: "img", "aria-label": label });
    this.canvas.addEventListener("pointerdown", (event) => this.begin(event));
    this.canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) this.canvas.addEventListener(end, () => (this.last = null));
    this.root = element("div", { class: "drawing" }, this.canvas, button(text("clearDrawing"), () => this.clear(), "plain"));
    this.clear();
  }

  clear(): void {
    const context = contextOf(this.canvas);
    context.fillStyle = "black";
    context.fillRect(0, 0, SIDE, SIDE);
  }

  private begin(event: PointerEvent): void {
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    this.last = this.place(event);
    this.line(this.last, this.last);
  }

  private move(event: PointerEvent): void {
    if (this.last === null) return;
    const next = this.place(event);
    this.line(this.last, next);
    this.last = next;
  }

  private line(from: { x: number; y: number }, to: { x: number; y: number }): void {
    const context = contextOf(this.canvas);
    context.strokeStyle = "white";
    context.lineWidth = STROKE;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(from.x, from.y);
    context.lineTo(to.x + 0.01, to.y);
    context.stroke();
  }

  private place(event: PointerEvent): { x: number; y: number } {
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    return { x: ((event.clientX - left) / width) * SIDE, y: ((event.clientY - top) / height) * SIDE };
  }
}
