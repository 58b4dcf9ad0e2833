/** Pictures as the model wants them: bytes of channels, height, width. */

export type Resize = "none" | "stretch" | "crop" | "pad";

export interface Size {
  readonly channels: number;
  readonly height: number;
  readonly width: number;
}

/** The largest side at which a picture is looked at before it is made small. */
const WORKING = 512;
/** The part of a drawing's side that stays free around what was drawn. */
const MARGIN = 0.06;

/** A picture of a file, upright, on white where it is transparent. Rejects where the browser can't read it. */
export async function pictureOf(file: Blob, size: Size, resize: Resize): Promise<Uint8Array> {
  const bitmap = await createImageBitmap(file);
  try {
    const { x, y, width, height } = placed(bitmap, size, resize);
    const scale = Math.max(1, Math.floor(WORKING / Math.max(size.width, size.height)));
    const canvas = canvasOf(size.width * scale, size.height * scale);
    const context = contextOf(canvas);
    context.fillStyle = "black";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.fillStyle = "white";
    context.fillRect(x * scale, y * scale, width * scale, height * scale);
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, x * scale, y * scale, width * scale, height * scale);
    return averaged(context.getImageData(0, 0, canvas.width, canvas.height), size);
  } finally {
    bitmap.close();
  }
}

/** Where a picture lies in the model's input, in its pixels. */
function placed(picture: { width: number; height: number }, size: Size, resize: Resize) {
  if (resize === "stretch" || resize === "none") return { x: 0, y: 0, width: size.width, height: size.height };
  const ratios = [size.width / picture.width, size.height / picture.height];
  const ratio = resize === "crop" ? Math.max(...ratios) : Math.min(...ratios);
  const [width, height] = [picture.width * ratio, picture.height * ratio];
  return { x: (size.width - width) / 2, y: (size.height - height) / 2, width, height };
}

/** What was drawn, in the middle and as large as fits; null where nothing was. */
export function drawingOf(canvas: HTMLCanvasElement, size: Size): Uint8Array | null {
  const { data, width, height } = contextOf(canvas).getImageData(0, 0, canvas.width, canvas.height);
  let [left, top, right, bottom] = [width, height, 0, 0];
  for (let at = 0; at < width * height; at++) {
    if (data[4 * at] < 64) continue;
    left = Math.min(left, at % width);
    right = Math.max(right, (at % width) + 1);
    top = Math.min(top, Math.floor(at / width));
    bottom = Math.max(bottom, Math.floor(at / width) + 1);
  }
  if (right <= left) return null;
  const side = Math.max(right - left, bottom - top) * (1 + 2 * MARGIN);
  const made = canvasOf(size.width * 16, size.height * 16);
  const context = contextOf(made);
  context.fillStyle = "black";
  context.fillRect(0, 0, made.width, made.height);
  const [x, y] = [(left + right - side) / 2, (top + bottom - side) / 2];
  context.drawImage(canvas, x, y, side, side, 0, 0, made.width, made.height);
  return averaged(context.getImageData(0, 0, made.width, made.height), size);
}

/** Each pixel is the mean of what it covers. */
function averaged(image: ImageData, { channels, height, width }: Size): Uint8Array {
  const out = new Uint8Array(channels * height * width);
  for (let row = 0; row < height; row++) {
    const [top, bottom] = covered(row, height, image.height);
    for (let column = 0; column < width; column++) {
      const [left, right] = covered(column, width, image.width);
      const sums = [0, 0, 0];
      for (let y = top; y < bottom; y++) {
        for (let x = left; x < right; x++) for (let c = 0; c < 3; c++) sums[c] += image.data[4 * (y * image.width + x) + c];
      }
      const [red, green, blue] = sums.map((sum) => sum / ((bottom - top) * (right - left)));
      const values = channels === 1 ? [0.299 * red + 0.587 * green + 0.114 * blue] : [red, green, blue];
      values.forEach((value, channel) => (out[(channel * height + row) * width + column] = Math.round(value)));
    }
  }
  return out;
}

function covered(place: number, count: number, size: number): [number, number] {
  const begin = Math.floor((place * size) / count);
  return [begin, Math.max(begin + 1, Math.floor(((place + 1) * size) / count))];
}

/** A picture of the model's input, for a person to look at. */
export function thumbnail(pixels: Uint8Array, { channels, height, width }: Size): HTMLCanvasElement {
  const canvas = canvasOf(width, height);
  const image = new ImageData(width, height);
  for (let at = 0; at < width * height; at++) {
    for (let c = 0; c < 3; c++) image.data[4 * at + c] = pixels[(channels === 1 ? 0 : c) * width * height + at];
    image.data[4 * at + 3] = 255;
  }
  contextOf(canvas).putImageData(image, 0, 0);
  return canvas;
}

function canvasOf(width: number, height: number): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

export function contextOf(canvas: HTMLCanvasElement): CanvasRenderingContext2D {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (context === null) throw new Error("the browser has no canvas");
  return context;
}
