/**
 * What somebody said, with regions and grounded phrases as chips that light up with their places on the canvas.
 *
 * Whatever a model writes ends up in text nodes: Markdown and HTML are shown, not obeyed.
 */

import type { FrontendState } from "@streamlit/component-v2-lib"
import { Copy, Eye, EyeOff } from "lucide"
import { component } from "./component"
import { html, icon } from "./dom"
import type { Bounds } from "./geometry"
import { page, type Phrase } from "./page"
import { copyText, insertIntoQuestion } from "./streamlit"

interface Part {
  text: string
  /** Of a region or a phrase. */
  color?: string
  /** The number of the region that the text names. */
  region?: number
  /** Of the phrase, in pixels of the image. */
  boxes?: Bounds[]
}

interface Data {
  /** Unique on the page; the newest sorts last. */
  id: string
  parts: Part[]
  /** What the copy button copies; no footer without. */
  copy: string | null
}

class Message {
  private data!: Data
  private readonly text = html("p", { class: "text", "aria-live": "polite" })
  private readonly eye = html("button", {
    type: "button", title: "Show or hide the boxes", onclick: () => page.show(this.data.id, !page.isShown(this.data.id)),
  })
  private readonly copied = html("span", { role: "status" })
  private readonly footer = html(
    "div",
    { class: "footer" },
    this.eye,
    html("button", { type: "button", title: "Copy the answer", "aria-label": "Copy the answer", onclick: () => this.copy() }, icon(Copy)),
    this.copied,
  )
  private readonly cleanUp = [page.on("hover", () => this.highlight()), page.on("boxes", () => this.drawFooter())]

  constructor(root: HTMLElement) {
    root.replaceChildren(this.text, this.footer)
  }

  update(data: Data): void {
    const before = this.data?.parts ?? []
    const same = (part: Part, i: number) => JSON.stringify(part) === JSON.stringify(before[i])
    const kept = data.parts.findIndex((part, i) => !same(part, i))
    const from = kept < 0 ? data.parts.length : kept // what is there already stays, so that it can be clicked
    this.data = data
    while (this.text.childNodes.length > from) this.text.lastChild!.remove()
    this.text.append(...data.parts.slice(from).map((part, i) => this.draw(part, from + i)))
    page.ground(data.id, data.parts.flatMap((part, i) => this.phrase(part, i) ?? []))
    this.drawFooter()
  }

  close(): void {
    for (const clean of this.cleanUp) clean()
    page.ground(this.data.id, [])
  }

  private phrase({ text, color = "", boxes }: Part, i: number): Phrase | undefined {
    return boxes && { id: `${this.data.id}:${i}`, text, color, boxes }
  }

  private draw(part: Part, i: number): Node {
    const { text, color = "", region } = part
    const phrase = this.phrase(part, i)
    if (region !== undefined) return this.chip(`region${region}`, text, color, () => insertIntoQuestion(text))
    if (!phrase) return document.createTextNode(text)
    const title = phrase.boxes.map(box => box.map(Math.round).join(", ")).join("; ")
    return this.chip(phrase.id, text || "box", color, () => page.emit("choose", page.phrase(phrase.id) ?? phrase), title)
  }

  private chip(id: string, text: string, color: string, onclick: () => void, title?: string): HTMLElement {
    const enter = () => page.hover(id)
    const leave = () => page.hover(null)
    const over = { onpointerenter: enter, onpointerleave: leave, onfocus: enter, onblur: leave }
    const hot = page.hovered === id ? " hot" : ""
    return html("button", { type: "button", class: `chip${hot}`, "data-id": id, style: `--color:${color}`, title, onclick, ...over }, text)
  }

  private highlight(): void {
    for (const chip of this.text.querySelectorAll<HTMLElement>(".chip")) chip.classList.toggle("hot", chip.dataset.id === page.hovered)
  }

  /** Its buttons stay the same ones, so that they can be clicked and keep the keyboard's focus. */
  private drawFooter(): void {
    const { id, parts, copy } = this.data
    const count = parts.reduce((sum, { boxes }) => sum + (boxes?.length ?? 0), 0)
    const shown = page.isShown(id)
    this.eye.replaceChildren(icon(shown ? Eye : EyeOff), `${count} ${count === 1 ? "box" : "boxes"}`)
    this.eye.setAttribute("aria-pressed", String(shown))
    this.eye.hidden = !count
    this.footer.hidden = copy === null
  }

  private async copy(): Promise<void> {
    await copyText(this.data.copy ?? "")
    this.copied.textContent = "copied"
    setTimeout(() => (this.copied.textContent = ""), 1500)
  }
}

export default component<FrontendState, Data>(".message", root => new Message(root))
