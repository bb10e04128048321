/** Regions as people draw them. All coordinates are pixels of the image. */

export type Point = readonly [x: number, y: number]
export type Bounds = readonly [x1: number, y1: number, x2: number, y2: number]
export type Kind = "point" | "box" | "scribble" | "polygon"

export interface Size {
  width: number
  height: number
}

export interface Region {
  /** The N of [regionN]. */
  number: number
  kind: Kind
  /** One for a point, two opposite corners for a box, the stroke or the vertices for the others. */
  points: readonly Point[]
  /** Of a scribble's brush. */
  width?: number
}

const MOST_POINTS = 1000

export const clamp = (value: number, low: number, high: number) => Math.min(Math.max(value, low), high)

/** Inside the image, to a tenth of a pixel. */
export function inside([x, y]: Point, size: Size): Point {
  return [Math.round(clamp(x, 0, size.width) * 10) / 10, Math.round(clamp(y, 0, size.height) * 10) / 10]
}

export const distance = (a: Point, b: Point) => Math.hypot(a[0] - b[0], a[1] - b[1])

export function bounds(points: readonly Point[]): Bounds {
  const xs = points.map(([x]) => x)
  const ys = points.map(([, y]) => y)
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)]
}

export const area = ([x1, y1, x2, y2]: Bounds) => (x2 - x1) * (y2 - y1)

export const contains = ([x1, y1, x2, y2]: Bounds, [x, y]: Point) => x1 <= x && x <= x2 && y1 <= y && y <= y2

export const corners = ([x1, y1, x2, y2]: Bounds): Point[] => [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]

/** Moved as far as the image allows. */
export function move(points: readonly Point[], dx: number, dy: number, size: Size): Point[] {
  const [x1, y1, x2, y2] = bounds(points)
  const [right, down] = [clamp(dx, -x1, size.width - x2), clamp(dy, -y1, size.height - y2)]
  return points.map(([x, y]) => inside([x + right, y + down], size))
}

/** With one handle dragged to a place: a corner of a box, numbered as `corners` does, or a vertex. */
export function reshape(region: Region, handle: number, to: Point): readonly Point[] {
  if (region.kind !== "box") return region.points.map((point, i) => (i === handle ? to : point))
  const opposite = corners(bounds(region.points))[(handle + 2) % 4]!
  return box(opposite, to)
}

export function box(a: Point, b: Point): Point[] {
  const [x1, y1, x2, y2] = bounds([a, b])
  return [[x1, y1], [x2, y2]]
}

/** Ramer-Douglas-Peucker: the fewest of the points that stay within `tolerance` of the stroke. */
export function simplify(points: readonly Point[], tolerance: number): readonly Point[] {
  const keep = new Set([0, points.length - 1])
  const open: [number, number][] = [[0, points.length - 1]]
  for (let range = open.pop(); range; range = open.pop()) {
    const [first, last] = range
    let farthest = 0
    let at = 0
    for (let i = first + 1; i < last; i++) {
      const d = distanceToSegment(points[i]!, points[first]!, points[last]!)
      if (d > farthest) [farthest, at] = [d, i]
    }
    if (farthest > tolerance) {
      keep.add(at)
      open.push([first, at], [at, last])
    }
  }
  const kept = points.filter((_, i) => keep.has(i))
  return kept.length > MOST_POINTS ? simplify(kept, tolerance * 2) : kept
}

function distanceToSegment(point: Point, a: Point, b: Point): number {
  const [dx, dy] = [b[0] - a[0], b[1] - a[1]]
  const t = dx || dy ? clamp(((point[0] - a[0]) * dx + (point[1] - a[1]) * dy) / (dx * dx + dy * dy), 0, 1) : 0
  return distance(point, [a[0] + t * dx, a[1] + t * dy])
}
