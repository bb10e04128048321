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
  private readonly text = html("p", { class: "text" })
  private readonly footer = html("div", { class: "footer" })
  private readonly cleanUp = [page.on("hover", () => this.highlight()), page.on("boxes", () => this.drawFooter())]

  constructor(root: HTMLElement) {
    root.replaceChildren(this.text, this.footer)
  }

  update(data: Data): void {
    this.data = data
    const phrases: Phrase[] = []
    this.text.replaceChildren(
      ...data.parts.map(({ text, color = "", region, boxes }, i) => {
        if (region !== undefined) return this.chip(`region${region}`, text, color)
        if (!boxes) return text
        const phrase = { id: `${data.id}:${i}`, text, color, boxes }
        phrases.push(phrase)
        return this.chip(phrase.id, text || "box", color, phrase)
      }),
    )
    page.ground(data.id, phrases)
    this.drawFooter()
  }

  close(): void {
    for (const clean of this.cleanUp) clean()
    page.ground(this.data.id, null)
  }

  private chip(id: string, text: string, color: string, phrase?: Phrase): HTMLElement {
    return html(
      "button",
      {
        type: "button",
        class: `chip ${page.hovered === id ? "hot" : ""}`,
        "data-id": id,
        style: `--color:${color}`,
        title: phrase && phrase.boxes.map(box => box.map(Math.round).join(", ")).join("; "),
        onpointerenter: () => page.hover(id),
        onpointerleave: () => page.hover(null),
        onfocus: () => page.hover(id),
        onblur: () => page.hover(null),
        onclick: () => phrase && page.emit("choose", phrase),
      },
      text,
    )
  }

  private highlight(): void {
    for (const chip of this.text.querySelectorAll<HTMLElement>(".chip")) chip.classList.toggle("hot", chip.dataset.id === page.hovered)
  }

  private drawFooter(): void {
    const { id, parts, copy: text } = this.data
    const count = parts.reduce((sum, { boxes }) => sum + (boxes?.length ?? 0), 0)
    const shown = page.isShown(id)
    const words = `${count} ${count === 1 ? "box" : "boxes"}`
    const toggle = html(
      "button",
      { type: "button", "aria-pressed": String(shown), title: `${shown ? "Hide" : "Show"} ${words}`, onclick: () => page.show(id, !shown) },
      icon(shown ? Eye : EyeOff), words,
    )
    const copy = html("button", { type: "button", title: "Copy the answer", "aria-label": "Copy the answer", onclick: () => this.copy(copy) }, icon(Copy))
    this.footer.replaceChildren(...(text === null ? [] : count ? [toggle, copy] : [copy]))
  }

  private async copy(button: HTMLElement): Promise<void> {
    await navigator.clipboard.writeText(this.data.copy ?? "")
    button.append("copied")
    setTimeout(() => this.drawFooter(), 1500)
  }
}

export default component<FrontendState, Data>(".message", root => new Message(root))
