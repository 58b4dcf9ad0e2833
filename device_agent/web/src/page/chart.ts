/** The error of each step as a curve. */

const WIDTH = 320;
const HEIGHT = 120;
const SVG = "http://www.w3.org/2000/svg";

export class Chart {
  readonly root = document.createElementNS(SVG, "svg");
  private readonly line = document.createElementNS(SVG, "polyline");

  constructor(label: string) {
    this.root.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.root.setAttribute("role", "img");
    this.root.setAttribute("aria-label", label);
    this.root.setAttribute("class", "chart");
    this.root.setAttribute("preserveAspectRatio", "none");
    this.root.append(this.line);
  }

  /** `total`: the steps that there will be. */
  show(losses: readonly (number | null)[], total: number): void {
    const most = Math.max(1e-9, ...losses.map((loss) => loss ?? 0));
    const points = losses.flatMap((loss, at) =>
      loss === null ? [] : [`${((at / Math.max(1, total - 1)) * WIDTH).toFixed(1)},${(HEIGHT - 4 - (loss / most) * (HEIGHT - 8)).toFixed(1)}`],
    );
    this.line.setAttribute("points", points.join(" "));
  }
}
