/**
 * The region canvas: a picture to point at, and the boxes of the answers on top of it.
 *
 * The SVG's user space is the image, so that all geometry is in its pixels whatever the layout, the zoom or the screen.
 * Drawing needs no server; each finished change is reported once, as the state `drawing`.
 */

import type { FrontendState } from "@streamlit/component-v2-lib"
import {
  Brush, Maximize, Minus, MousePointer2, Pentagon, Plus, Redo2, Square, Target, Trash2, Undo2, X,
} from "lucide"
import { component, type Report } from "./component"
import { html, icon, svg } from "./dom"
import { area, bounds, box, clamp, contains, distance, inside, move, reshape, simplify } from "./geometry"
import type { Kind, Point, Region, Size } from "./geometry"
import { History } from "./history"
import { page, type Phrase } from "./page"
import { grounded, handle, handles, label, outline } from "./shapes"
import { insertIntoQuestion, openPicture } from "./streamlit"
import { View } from "./view"

type Tool = "select" | Kind

interface Drawing {
  picture: string
  /** Of the regions that the server last handed out: what was drawn on others is not meant for these. */
  revision: number
  regions: readonly Region[]
}

interface Data extends Drawing {
  size: Size
  /** No region of this number or above has ever been drawn. */
  next: number
  /** Colours of regions 0, 1, ...; then they come again. */
  palette: string[]
  /** Most regions. */
  limit: number
}

interface State extends FrontendState {
  drawing: Drawing
}

type Gesture =
  | { type: "draw" }
  | { type: "edit"; region: Region; points: readonly Point[]; from: Point; handle: number }
  | { type: "pan"; from: Point }
  | { type: "pinch" }

const TOOLS = {
  select: { key: "v", icon: MousePointer2, hint: "Click a region to move, reshape or delete it." },
  point: { key: "p", icon: Target, hint: "Click what you mean." },
  box: { key: "b", icon: Square, hint: "Drag from one corner to the opposite one." },
  scribble: { key: "s", icon: Brush, hint: "Paint over what you mean; [ and ] change the brush." },
  polygon: { key: "g", icon: Pentagon, hint: "Click the corners; double-click or Enter closes." },
} as const satisfies Record<Tool, { key: string; icon: unknown; hint: string }>

const TOOL_NAMES = Object.keys(TOOLS) as Tool[]
const [THINNEST, THICKEST] = [2, 100] // brush, in pixels of the screen
const ZOOM_STEP = 1.5
const ARROWS: Record<string, Point> = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }

class Canvas {
  private report!: Report<State>
  private data!: Data
  private regions = new History<readonly Region[]>([])
  private next = 0
  private tool: Tool = "box"
  private brush = 16 // in pixels of the screen
  private selected: number | null = null
  private chosen: Phrase | null = null
  private gesture: Gesture | null = null
  private draft: Region | null = null // being drawn; a polygon through several gestures
  private readonly pointers = new Map<number, Point>() // on the screen
  private view = new View({ width: 1, height: 1 })

  private readonly image = svg("image", { preserveAspectRatio: "none" })
  private readonly phraseLayer = svg("g")
  private readonly regionLayer = svg("g")
  private readonly draftLayer = svg("g", { class: "draft" })
  private readonly stage = svg(
    "svg",
    { class: "stage", preserveAspectRatio: "none", tabindex: 0, role: "application" },
    this.image, this.phraseLayer, this.regionLayer, this.draftLayer,
  )
  private readonly hint = html("p", { class: "hint", role: "status" })
  private readonly chips = html("div", { class: "chips", role: "group", "aria-label": "Regions" })
  private readonly toolButtons = TOOL_NAMES.map(tool =>
    this.button(`${tool} (${TOOLS[tool].key.toUpperCase()})`, TOOLS[tool].icon, () => this.use(tool)),
  )
  private readonly brushSlider = html("input", {
    type: "range", min: THINNEST, max: THICKEST, "aria-label": "Brush width",
    oninput: () => this.setBrush(Number(this.brushSlider.value)),
  })
  private readonly undoButton = this.button("Undo (Ctrl+Z)", Undo2, () => this.undo())
  private readonly redoButton = this.button("Redo (Ctrl+Shift+Z)", Redo2, () => this.redo())
  private readonly clearButton = this.button("Delete all regions", Trash2, () => this.clear())
  private readonly zoomOutButton = this.button("Zoom out (-)", Minus, () => this.zoom(1 / ZOOM_STEP))
  private readonly fitButton = this.button("Whole picture (0)", Maximize, () => this.fit())
  private readonly toolbar = html(
    "div",
    { class: "toolbar", role: "toolbar", "aria-label": "Drawing tools" },
    ...this.toolButtons, this.brushSlider, html("span", { class: "gap" }),
    this.undoButton, this.redoButton, this.clearButton, html("span", { class: "gap" }),
    html("span", { class: "zoom" }, this.zoomOutButton, this.button("Zoom in (+)", Plus, () => this.zoom(ZOOM_STEP)), this.fitButton),
  )
  private readonly cleanUp: (() => void)[]

  constructor(root: HTMLElement) {
    root.replaceChildren(this.toolbar, this.stage, this.hint, this.chips)
    const resized = new ResizeObserver(() => this.data && this.draw())
    resized.observe(this.stage)
    const left = new AbortController()
    const listen = { signal: left.signal }
    this.stage.addEventListener("pointerdown", event => this.pointerDown(event), listen)
    this.stage.addEventListener("pointermove", event => this.pointerMove(event), listen)
    this.stage.addEventListener("pointerup", event => this.pointerUp(event), listen)
    this.stage.addEventListener("pointercancel", event => this.pointerCancel(event), listen)
    this.stage.addEventListener("pointerleave", () => page.hover(null), listen)
    this.stage.addEventListener("dblclick", () => this.closePolygon(), listen)
    this.stage.addEventListener("wheel", event => this.wheel(event), { ...listen, passive: false })
    root.addEventListener("keydown", event => this.keyDown(event), listen)
    document.addEventListener("paste", event => openPicture(event, event.clipboardData), listen)
    document.addEventListener("dragover", event => event.preventDefault(), listen)
    document.addEventListener("drop", event => openPicture(event, event.dataTransfer), listen)
    this.cleanUp = [
      () => resized.disconnect(),
      () => left.abort(),
      page.on("pictures", () => this.showPicture()),
      page.on("boxes", () => this.boxesChanged()),
      page.on("hover", () => this.draw()),
      page.on("choose", phrase => this.choose(phrase)),
    ]
    this.use("box")
  }

  close(): void {
    for (const clean of this.cleanUp) clean()
  }

  // ---- from and to the server ----

  /** Regions of the server replace what is drawn only if they are new: what people draw meanwhile is not lost. */
  update(data: Data, report: Report<State>): void {
    this.report = report
    const other = data.picture !== this.data?.picture
    const handedOut = data.revision !== this.data?.revision
    this.data = data
    if (other) {
      this.view = new View(data.size)
      this.image.setAttribute("width", String(data.size.width))
      this.image.setAttribute("height", String(data.size.height))
      this.stage.style.setProperty("--aspect", String(data.size.width / data.size.height))
      this.showPicture()
    }
    if (handedOut) {
      this.regions = new History(data.regions)
      this.next = data.next
      this.selected = this.chosen = this.gesture = this.draft = null
    }
    this.draw()
  }

  private showPicture(): void {
    const url = page.pictures.get(this.data?.picture ?? "")
    if (url) this.image.setAttribute("href", url)
    else this.image.removeAttribute("href")
  }

  private commit(regions: readonly Region[], done: string): void {
    this.regions.commit(regions)
    this.changed(done)
  }

  private changed(done: string): void {
    if (!this.regions.now.some(region => region.number === this.selected)) this.selected = null
    this.say(done)
    this.draw()
    this.report("drawing", { picture: this.data.picture, revision: this.data.revision, regions: this.regions.now })
  }

  // ---- what can be done ----

  private use(tool: Tool): void {
    this.tool = tool
    this.gesture = this.draft = null
    this.say(TOOLS[tool].hint)
    if (this.data) this.draw()
  }

  private undo(): void {
    if (this.draft?.kind === "polygon") this.removeVertex()
    else if (this.regions.undo()) this.changed("undone")
  }

  private redo(): void {
    if (this.regions.redo()) this.changed("redone")
  }

  private clear(): void {
    if (this.regions.now.length) this.commit([], "all regions deleted")
  }

  private remove(number: number): void {
    this.commit(this.regions.now.filter(region => region.number !== number), `[region${number}] deleted`)
    this.stage.focus({ preventScroll: true })
  }

  private add(shapes: Omit<Region, "number">[]): void {
    if (this.regions.now.length + shapes.length > this.data.limit) {
      this.say(`At most ${this.data.limit} regions: delete one first.`)
      return this.draw()
    }
    const added = shapes.map(shape => ({ ...shape, number: this.next++ })) // numbers are never used again: texts mention them
    this.selected = added.at(-1)!.number
    this.commit([...this.regions.now, ...added], `[region${this.selected}] added: click its name to ask about it`)
  }

  private replace(region: Region, done: string): void {
    this.commit(this.regions.now.map(other => (other.number === region.number ? region : other)), done)
  }

  private setBrush(width: number): void {
    this.brush = clamp(width, THINNEST, THICKEST)
    this.say(`Brush: ${Math.round(this.brush * this.scale)} pixels of the picture.`)
    this.draw()
  }

  private choose(phrase: Phrase): void {
    this.chosen = phrase
    this.stage.scrollIntoView({ block: "nearest", behavior: "smooth" })
    this.draw()
  }

  private boxesChanged(): void {
    this.chosen = page.phrase(this.chosen?.id) // with its present boxes, if it is still there
    if (this.data) this.draw()
  }

  private promote(phrase: Phrase): void {
    this.chosen = null
    this.add(phrase.boxes.map(([x1, y1, x2, y2]) => ({ kind: "box", points: box([x1, y1], [x2, y2]) })))
  }

  private zoom(factor: number, place?: Point): void {
    this.view.zoomBy(factor, place)
    this.draw()
  }

  private fit(): void {
    this.view.fit()
    this.draw()
  }

  private say(words: string): void {
    this.hint.textContent = words
  }

  // ---- pointer: mouse, pen and fingers ----

  /** Pixels of the image for one of the screen. */
  private get scale(): number {
    return this.view.width / (this.stage.getBoundingClientRect().width || 1)
  }

  private place(screen: Point): Point {
    const { left, top, width, height } = this.stage.getBoundingClientRect()
    const { x, y, width: w, height: h } = this.view
    return inside([x + ((screen[0] - left) / width) * w, y + ((screen[1] - top) / height) * h], this.data.size)
  }

  private pointerDown(event: PointerEvent): void {
    const screen: Point = [event.clientX, event.clientY]
    this.pointers.set(event.pointerId, screen)
    this.stage.focus({ preventScroll: true })
    this.stage.setPointerCapture(event.pointerId)
    if (this.pointers.size === 2) this.beginPinch()
    else if (event.button === 1) this.gesture = { type: "pan", from: screen }
    else if (event.button === 0) this.begin(this.place(screen), screen, event.target as Element)
    if (event.pointerType !== "touch" || this.gesture) event.preventDefault()
    this.draw()
  }

  private begin(place: Point, screen: Point, target: Element): void {
    if (this.tool === "select") return this.grab(place, screen, target)
    if (this.tool === "polygon") return this.addVertex(place)
    const points = this.tool === "box" ? [place, place] : [place]
    this.gesture = { type: "draw" }
    this.draft = { number: this.next, kind: this.tool, points, width: this.brushWidth }
  }

  /** What the first of two fingers began was not meant. */
  private beginPinch(): void {
    if (this.draft?.kind === "polygon") this.removeVertex()
    else this.draft = null
    this.gesture = { type: "pinch" }
  }

  private get brushWidth(): number | undefined {
    return this.tool === "scribble" ? Math.max(1, Math.round(this.brush * this.scale * 10) / 10) : undefined
  }

  private grab(place: Point, screen: Point, target: Element): void {
    const number = target.closest("[data-region]")?.getAttribute("data-region")
    const region = this.regions.now.find(region => String(region.number) === number)
    if (region) {
      this.selected = region.number
      const handle = Number(target.getAttribute("data-handle") ?? -1)
      this.gesture = { type: "edit", region, points: region.points, from: place, handle }
      return
    }
    this.selected = null
    this.chosen = page.shown().find(phrase => phrase.id === this.under(place)) ?? null
    if (!this.chosen) this.gesture = { type: "pan", from: screen }
  }

  private addVertex(place: Point): void {
    const near = 14 * this.scale
    const points = this.draft?.points ?? []
    if (points.length > 2 && distance(place, points[0]!) < near) return this.closePolygon()
    this.draft = { number: this.next, kind: "polygon", points: [...points, place] }
  }

  private removeVertex(): void {
    const points = this.draft!.points.slice(0, -1)
    this.draft = points.length ? { ...this.draft!, points } : null
    this.draw()
  }

  private pointerMove(event: PointerEvent): void {
    const screen: Point = [event.clientX, event.clientY]
    const before = this.pointers.get(event.pointerId)
    const place = this.place(screen)
    const { gesture, draft } = this
    if (!gesture) {
      page.hover(this.under(place))
      if (draft) this.drawDraft(place)
      return
    }
    if (gesture.type === "pinch" && before) this.pinch(event.pointerId, before, screen)
    if (before) this.pointers.set(event.pointerId, screen)
    if (gesture.type === "pan") {
      this.view.pan((gesture.from[0] - screen[0]) * this.scale, (gesture.from[1] - screen[1]) * this.scale)
      gesture.from = screen
    } else if (gesture.type === "edit") {
      const { region, from, handle } = gesture
      const [dx, dy] = [place[0] - from[0], place[1] - from[1]]
      gesture.points = handle < 0 ? move(region.points, dx, dy, this.data.size) : reshape(region, handle, place)
      return this.drawRegions()
    } else if (gesture.type === "draw" && draft) {
      if (draft.kind === "point") draft.points = [place]
      else if (draft.kind === "box") draft.points = [draft.points[0]!, place]
      else {
        const passed = event.getCoalescedEvents?.() ?? [] // every place between two frames
        draft.points = [...draft.points, ...(passed.length ? passed : [event]).map(e => this.place([e.clientX, e.clientY]))]
      }
      return this.drawDraft()
    }
    this.draw()
  }

  private pinch(moved: number, before: Point, now: Point): void {
    const [, fixed] = [...this.pointers].find(([id]) => id !== moved) ?? []
    if (!fixed) return
    const middle: Point = [(now[0] + fixed[0]) / 2, (now[1] + fixed[1]) / 2]
    this.view.pan(((before[0] - now[0]) / 2) * this.scale, ((before[1] - now[1]) / 2) * this.scale)
    this.view.zoomBy(distance(now, fixed) / Math.max(distance(before, fixed), 1), this.place(middle))
  }

  private pointerUp(event: PointerEvent): void {
    this.pointers.delete(event.pointerId)
    const gesture = this.gesture
    if (gesture?.type === "pinch" && this.pointers.size) return
    this.gesture = null
    if (gesture?.type === "edit" && gesture.points !== gesture.region.points) {
      const { region, points, handle } = gesture
      if (region.kind === "box" && !area(bounds(points))) return this.draw()
      return this.replace({ ...region, points }, `[region${region.number}] ${handle < 0 ? "moved" : "reshaped"}`)
    }
    if (gesture?.type === "draw" && this.draft) this.finish(this.draft)
    this.draw()
  }

  private finish({ kind, points, width }: Region): void {
    this.draft = null
    if (kind === "box") {
      const [x1, y1, x2, y2] = bounds(points)
      if (Math.min(x2 - x1, y2 - y1) < 3 * this.scale) return this.say(TOOLS.box.hint)
      points = box(points[0]!, points[1]!)
    } else if (kind === "scribble") points = simplify(points, this.scale / 2)
    this.add([{ kind, points, width }])
  }

  private closePolygon(): void {
    if (this.draft?.kind !== "polygon") return
    const near = 3 * this.scale // a double click is two corners at one place
    const points = this.draft.points.filter((point, i, all) => !i || distance(point, all[i - 1]!) > near)
    this.draft = null
    if (points.length > 2) this.add([{ kind: "polygon", points }])
    else this.say("A polygon needs three corners.")
    this.draw()
  }

  private pointerCancel(event: PointerEvent): void {
    this.pointers.delete(event.pointerId)
    this.gesture = null
    if (this.draft?.kind !== "polygon") this.draft = null
    this.draw()
  }

  private wheel(event: WheelEvent): void {
    if (!event.ctrlKey && !event.metaKey) return // the page scrolls
    event.preventDefault()
    this.zoom(Math.exp(-event.deltaY / 200), this.place([event.clientX, event.clientY]))
  }

  /** The smallest thing at a place: the id of a phrase, or of a region. */
  private under(place: Point): string | null {
    const margin = 8 * this.scale
    const phrases = page.shown().flatMap(({ id, boxes }) => boxes.map(bounds => ({ id, bounds })))
    const regions = this.regions.now.map(({ number, points }) => {
      const [x1, y1, x2, y2] = bounds(points)
      return { id: `region${number}`, bounds: [x1 - margin, y1 - margin, x2 + margin, y2 + margin] as const }
    })
    const here = [...phrases, ...regions].filter(({ bounds }) => contains(bounds, place))
    return here.sort((a, b) => area(a.bounds) - area(b.bounds))[0]?.id ?? null
  }

  // ---- keyboard ----

  private keyDown(event: KeyboardEvent): void {
    const key = event.key.toLowerCase()
    const arrow = ARROWS[event.key]
    const slider = event.target === this.brushSlider
    const onStage = event.target === this.stage
    const tool = TOOL_NAMES.find(name => TOOLS[name].key === key)
    if (event.ctrlKey || event.metaKey) {
      if (key === "z") event.shiftKey ? this.redo() : this.undo()
      else if (key === "y") this.redo()
      else return
    } else if (slider && arrow) return
    else if (event.altKey && arrow && this.selected !== null) this.resize(arrow, event.shiftKey)
    else if (event.altKey) return
    else if (tool) this.use(tool)
    else if (arrow && this.selected !== null) this.nudge(arrow, event.shiftKey)
    else if (arrow && this.view.zoom > 1 && onStage) this.pan(arrow)
    else if (key === "backspace" && this.draft?.kind === "polygon") this.removeVertex()
    else if ((key === "delete" || key === "backspace") && this.selected !== null) this.remove(this.selected)
    else if (key === "escape") this.escape()
    else if (key === "enter" && onStage) this.enter()
    else if (key === "[" || key === "]") this.setBrush(this.brush + (key === "]" ? 4 : -4))
    else if (key === "+" || key === "=") this.zoom(ZOOM_STEP)
    else if (key === "-") this.zoom(1 / ZOOM_STEP)
    else if (key === "0") this.fit()
    else if (key !== "r" && key !== "c") return // Streamlit's own: rerun, clear the cache
    event.stopPropagation()
    event.preventDefault()
  }

  private nudge([dx, dy]: Point, far: boolean): void {
    const region = this.regions.now.find(region => region.number === this.selected)!
    const step = (far ? 10 : 1) * this.scale
    this.replace({ ...region, points: move(region.points, dx * step, dy * step, this.data.size) }, `[region${region.number}] moved`)
  }

  /** Moves the lower right corner of a box. */
  private resize([dx, dy]: Point, far: boolean): void {
    const region = this.regions.now.find(region => region.number === this.selected)!
    if (region.kind !== "box") return
    const step = (far ? 10 : 1) * this.scale
    const [x1, y1, x2, y2] = bounds(region.points)
    const corner = inside([Math.max(x2 + dx * step, x1 + 1), Math.max(y2 + dy * step, y1 + 1)], this.data.size)
    this.replace({ ...region, points: [[x1, y1], corner] }, `[region${region.number}] reshaped`)
  }

  private pan([dx, dy]: Point): void {
    this.view.pan(dx * 40 * this.scale, dy * 40 * this.scale)
    this.draw()
  }

  private escape(): void {
    this.gesture = this.draft = this.selected = this.chosen = null
    this.draw()
  }

  /** Closes a polygon; otherwise draws without a pointer: a shape in the middle, to be moved with the arrows. */
  private enter(): void {
    if (this.draft?.kind === "polygon") return this.closePolygon()
    if (this.tool === "select") return
    const [x, y] = this.view.center
    const [w, h] = [this.view.width / 6, this.view.height / 6]
    const points: Record<Kind, Point[]> = {
      point: [[x, y]],
      box: [[x - w, y - h], [x + w, y + h]],
      scribble: [[x - w, y], [x + w, y]],
      polygon: [[x, y - h], [x + w, y + h], [x - w, y + h]],
    }
    this.add([{ kind: this.tool, points: points[this.tool].map(point => inside(point, this.data.size)), width: this.brushWidth }])
  }

  // ---- drawing ----

  private color(number: number): string {
    return this.data.palette[number % this.data.palette.length]!
  }

  private isHot(number: number): boolean {
    return number === this.selected || page.hovered === `region${number}`
  }

  private draw(): void {
    if (!this.data) return
    this.stage.setAttribute("viewBox", String(this.view))
    this.stage.dataset.tool = this.tool
    this.stage.setAttribute("aria-label", `Picture, regions: ${this.regions.now.length}. Enter draws in the middle, arrow keys move.`)
    this.drawPhrases()
    this.drawRegions()
    this.drawDraft()
    this.drawToolbar()
    this.drawChips()
  }

  private drawPhrases(): void {
    const hot = page.hovered ?? this.chosen?.id
    const largest = ({ boxes }: Phrase) => Math.max(...boxes.map(area))
    const phrases = page.shown().sort((a, b) => largest(b) - largest(a)) // the smaller on top
    const state = ({ id }: Phrase) => (id === hot ? "hot" : hot && phrases.some(phrase => phrase.id === hot) ? "dim" : "")
    this.phraseLayer.replaceChildren(...phrases.map(phrase => grounded(phrase, state(phrase), this.scale, this.data.size)))
  }

  private drawRegions(): void {
    const { scale, gesture } = this
    const now = this.regions.now.map(region =>
      gesture?.type === "edit" && region === gesture.region ? { ...region, points: gesture.points } : region,
    )
    now.sort((a, b) => Number(a.number === this.selected) - Number(b.number === this.selected)) // its handles on top
    const drawn = now.map(region => {
      const color = this.color(region.number)
      const name = `region${region.number}`
      const hot = this.isHot(region.number)
      const held = region.number === this.selected && this.tool === "select" ? handles(region) : []
      return svg(
        "g",
        { class: `region${hot ? " hot" : ""}`, "data-region": region.number },
        outline(region, color, scale),
        label(name, bounds(region.points), color, scale, this.data.size),
        ...held.map((point, i) => handle(point, i, color, scale)),
      )
    })
    this.regionLayer.replaceChildren(...drawn)
  }

  private drawDraft(pointer?: Point): void {
    const { draft } = this
    if (!draft) return this.draftLayer.replaceChildren()
    const color = this.color(draft.number)
    if (draft.kind !== "polygon") return this.draftLayer.replaceChildren(outline(draft, color, this.scale))
    const rubber = { ...draft, points: pointer ? [...draft.points, pointer] : draft.points }
    const dots = draft.points.map(point => outline({ number: 0, kind: "point", points: [point] }, color, this.scale * 0.7))
    this.draftLayer.replaceChildren(outline(rubber, color, this.scale), ...dots)
  }

  private drawToolbar(): void {
    this.toolButtons.forEach((button, i) => button.setAttribute("aria-pressed", String(TOOL_NAMES[i] === this.tool)))
    this.brushSlider.hidden = this.tool !== "scribble"
    this.brushSlider.value = String(this.brush)
    this.undoButton.disabled = !this.regions.canUndo
    this.redoButton.disabled = !this.regions.canRedo
    this.clearButton.disabled = !this.regions.now.length
    this.zoomOutButton.disabled = this.fitButton.disabled = this.view.zoom === 1
  }

  /** Built anew only when there are others, so that the keyboard's focus stays where it is. */
  private drawChips(): void {
    const wanted = [...this.regions.now.map(region => region.number), this.chosen?.id ?? ""].join()
    if (this.chips.dataset.shows !== wanted) {
      this.chips.dataset.shows = wanted
      this.chips.replaceChildren(
        ...this.regions.now.map(({ number }) => this.chip(number)),
        this.chosen ? this.promotion(this.chosen) : "",
      )
    }
    for (const chip of this.chips.querySelectorAll<HTMLElement>("[data-region]")) {
      chip.classList.toggle("hot", this.isHot(Number(chip.dataset.region)))
    }
  }

  private chip(number: number): HTMLElement {
    const name = `[region${number}]`
    const select = () => {
      this.selected = number
      this.draw()
    }
    const insert = html("button", { type: "button", title: `Put ${name} into the question`, onclick: () => insertIntoQuestion(name), onfocus: select }, name)
    const remove = this.button(`Delete ${name}`, X, () => this.remove(number))
    const over = { onpointerenter: () => page.hover(`region${number}`), onpointerleave: () => page.hover(null) }
    return html("span", { class: "chip", "data-region": number, style: `--color:${this.color(number)}`, ...over }, insert, remove)
  }

  private promotion(phrase: Phrase): HTMLElement {
    const words = `Use ${phrase.text ? `“${phrase.text}”` : "this box"} as a region`
    return html("button", { type: "button", class: "promote", onclick: () => this.promote(phrase) }, `+ ${words}`)
  }

  private button(title: string, shape: Parameters<typeof icon>[0], onclick: () => void): HTMLButtonElement {
    return html("button", { type: "button", title, "aria-label": title, onclick }, icon(shape))
  }
}

export default component<State, Data>(".canvas", root => new Canvas(root))
