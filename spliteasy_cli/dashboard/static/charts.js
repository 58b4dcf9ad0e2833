// Line charts in SVG: axes with round numbers, a legend, and the values under the pointer.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 190;
const EDGE = { top: 10, right: 12, bottom: 22, left: 46 };

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

export function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e4 || size < 1e-3) return value.toExponential(1);
  return String(Number(value.toPrecision(size >= 100 ? 4 : 3)));
}

function ticks(low, high, count) {
  const span = high - low || 1;
  const rough = span / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) found.push(Number(at.toPrecision(12)));
  return found;
}

function powers(low, high) {
  const found = [];
  for (let power = Math.ceil(Math.log10(low)); power <= Math.log10(high); power += 1) found.push(10 ** power);
  return found;
}

/** Draw `series`, [{name, color (0 to 7), points: [[x, y], …] by x}], into `box`.
 *  Values far apart are drawn on a logarithmic scale.
 *  `showX` and `showY` turn values into text; `what` names the chart for those who can't see it. */
export function draw(box, series, { what, showX = short, showY = short, none, fromZero = false }) {
  const shown = series.filter((each) => each.points.length > 1);
  if (!shown.length) {
    box.replaceChildren(element("p", { class: "none" }, none));
    return;
  }
  const width = Math.max(260, box.clientWidth);
  const xs = shown.flatMap((each) => [each.points[0][0], each.points.at(-1)[0]]);
  const ys = shown.flatMap((each) => each.points.map((point) => point[1]));
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  let [low, high] = [fromZero ? 0 : Math.min(...ys), Math.max(...ys)];
  const logarithmic = low > 0 && high / low > 50;
  const height = logarithmic ? Math.log10 : (y) => y;
  if (high === low) high = low + (Math.abs(low) || 1);
  if (!logarithmic) high += (high - low) * 0.05;
  const toX = (x) => EDGE.left + ((x - left) / (right - left || 1)) * (width - EDGE.left - EDGE.right);
  const share = (y) => (height(y) - height(low)) / (height(high) - height(low));
  const toY = (y) => HEIGHT - EDGE.bottom - share(y) * (HEIGHT - EDGE.top - EDGE.bottom);
  const last = shown.map((each) => `${each.name} ${showY(each.points.at(-1)[1])}`).join(", ");
  const svg = shape("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": `${what}. Now: ${last}` });
  for (const y of logarithmic ? powers(low, high) : ticks(low, high, 4)) {
    svg.append(shape("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: toY(y), y2: toY(y) }));
    svg.append(shape("text", { x: EDGE.left - 6, y: toY(y) + 4, "text-anchor": "end" }, showY(y)));
  }
  const across = Math.max(2, Math.floor(width / 110));
  for (const x of ticks(left, right, across)) {
    if (toX(x) > width - 24) continue;
    svg.append(shape("text", { x: toX(x), y: HEIGHT - 6, "text-anchor": toX(x) < EDGE.left + 12 ? "start" : "middle" }, showX(x)));
  }
  for (const each of shown) {
    const path = each.points.map(([x, y], at) => `${at ? "L" : "M"}${toX(x).toFixed(1)} ${toY(y).toFixed(1)}`).join("");
    svg.append(shape("path", { class: `line c${each.color}`, d: path }));
  }
  const readout = element("p", { class: "readout", "aria-hidden": "true" });
  const cross = shape("line", { class: "cross", y1: EDGE.top, y2: HEIGHT - EDGE.bottom, x1: -9, x2: -9 });
  svg.append(cross);
  svg.addEventListener("pointermove", (event) => {
    const at = svg.getBoundingClientRect();
    const x = left + (((event.clientX - at.left) / at.width) * width - EDGE.left) / (width - EDGE.left - EDGE.right) * (right - left);
    const near = shown.map((each) => [each.name, nearest(each.points, x)]);
    const first = near[0][1][0];
    cross.setAttribute("x1", toX(first));
    cross.setAttribute("x2", toX(first));
    readout.textContent = `${showX(first)}: ` + near.map(([name, [, y]]) => (shown.length > 1 ? `${name} ` : "") + showY(y)).join(", ");
  });
  svg.addEventListener("pointerleave", () => {
    readout.textContent = "";
    cross.setAttribute("x1", -9);
    cross.setAttribute("x2", -9);
  });
  const legend = element("ul", { class: "legend" });
  if (shown.length > 1 || shown[0].name) {
    for (const each of shown) legend.append(element("li", { class: `c${each.color}` }, `${each.name} ${showY(each.points.at(-1)[1])}`));
  }
  box.replaceChildren(svg, legend, readout);
}

function nearest(points, x) {
  let best = points[0];
  for (const point of points) if (Math.abs(point[0] - x) < Math.abs(best[0] - x)) best = point;
  return best;
}
