/** Regions and grounded boxes as SVG. `scale` is pixels of the image for one pixel of the screen: lines and words keep their size. */

import { svg } from "./dom"
import { bounds, corners, type Bounds, type Point, type Region, type Size } from "./geometry"
import type { Phrase } from "./page"

const path = (points: readonly Point[]) => `M${points.map(([x, y]) => `${x} ${y}`).join("L")}`

/** A shape that only stands for itself: while it is drawn, and as part of a region. */
export function outline({ kind, points, width }: Region, color: string, scale: number): SVGElement {
  const [first] = points as [Point]
  switch (kind) {
    case "point":
      return svg("circle", { class: "dot", cx: first[0], cy: first[1], r: 7 * scale, fill: color, "stroke-width": 2 * scale })
    case "scribble":
      return svg("path", { class: "stroke", d: `${path(points)}h0`, stroke: color, "stroke-width": width ?? 1 })
    case "box":
      return svg("path", { class: "outline", d: `${path(corners(bounds(points)))}Z`, stroke: color, fill: color, "stroke-width": 2 * scale })
    case "polygon":
      return svg("path", { class: "outline", d: `${path(points)}Z`, stroke: color, fill: color, "stroke-width": 2 * scale })
  }
}

/** What a region can be dragged by: the corners of a box, the vertices of a polygon. */
export function handles({ kind, points }: Region): readonly Point[] {
  return kind === "box" ? corners(bounds(points)) : kind === "polygon" ? points : []
}

export function handle([x, y]: Point, index: number, color: string, scale: number): SVGElement {
  const square = (side: number) => ({ x: x - side / 2, y: y - side / 2, width: side, height: side })
  return svg(
    "g",
    { class: "handle" },
    svg("rect", { ...square(10 * scale), rx: 2 * scale, fill: "#fff", stroke: color, "stroke-width": 1.5 * scale }),
    svg("rect", { ...square(26 * scale), "data-handle": index, fill: "transparent" }), // for fingers
  )
}

export function grounded({ text, color, boxes }: Phrase, state: string, scale: number, size: Size): SVGElement {
  const rectangles = boxes.map(([x1, y1, x2, y2]) =>
    svg("rect", { x: x1, y: y1, width: x2 - x1, height: y2 - y1, rx: 3 * scale, stroke: color, fill: color, "stroke-width": 2.5 * scale }),
  )
  const labels = boxes.map(box => label(text, box, color, scale, size, true))
  return svg("g", { class: `phrase ${state}` }, ...rectangles, ...(text ? labels : []))
}

/** Words on a patch of colour, above or below a box, inside the image. */
export function label(text: string, [x1, y1, , y2]: Bounds, color: string, scale: number, size: Size, below = false): SVGElement {
  const font = 12 * scale
  const [width, height] = [text.length * font * 0.58 + 10 * scale, font * 1.5]
  const x = Math.max(0, Math.min(x1, size.width - width))
  const y = Math.max(0, Math.min(below ? y2 : y1 - height, size.height - height))
  return svg(
    "g",
    { class: "label" },
    svg("rect", { x, y, width, height, rx: 3 * scale, fill: color }),
    svg("text", { x: x + 5 * scale, y: y + font * 1.1, "font-size": font }, text),
  )
}
