/** The part of the image that is seen: zoomed about a place, moved, and always inside the image. */

import { clamp, type Point, type Size } from "./geometry"

const MOST_ZOOM = 16

export class View {
  x = 0
  y = 0
  zoom = 1

  constructor(private readonly image: Size) {}

  get width(): number {
    return this.image.width / this.zoom
  }

  get height(): number {
    return this.image.height / this.zoom
  }

  get center(): Point {
    return [this.x + this.width / 2, this.y + this.height / 2]
  }

  /** As an SVG viewBox. */
  toString(): string {
    return `${this.x} ${this.y} ${this.width} ${this.height}`
  }

  /** Zooms by a factor; the place stays where it is on the screen. */
  zoomBy(factor: number, [x, y]: Point = this.center): void {
    const zoom = clamp(this.zoom * factor, 1, MOST_ZOOM)
    const shrink = this.zoom / zoom
    this.zoom = zoom
    this.moveTo(x - (x - this.x) * shrink, y - (y - this.y) * shrink)
  }

  /** Moves by pixels of the image. */
  pan(dx: number, dy: number): void {
    this.moveTo(this.x + dx, this.y + dy)
  }

  fit(): void {
    this.zoom = 1
    this.moveTo(0, 0)
  }

  private moveTo(x: number, y: number): void {
    this.x = clamp(x, 0, this.image.width - this.width)
    this.y = clamp(y, 0, this.image.height - this.height)
  }
}
