/** Where the components of a page meet: pictures, grounded boxes, and what the pointer is over. No round trip to the server. */

import type { Bounds } from "./geometry"

/** A phrase of an answer and its boxes, in pixels of the image. */
export interface Phrase {
  /** Of this phrase in its message, unique on the page. */
  id: string
  text: string
  color: string
  boxes: Bounds[]
}

interface PageEvents {
  /** Another picture has arrived, or one has gone. */
  pictures: void
  /** The boxes to be shown have changed. */
  boxes: void
  /** The pointer is over something else: the id of a phrase, `region` and a number, or null. */
  hover: void
  /** Somebody chose a phrase. */
  choose: Phrase
}

class Page {
  /** URL by id. */
  readonly pictures = new Map<string, string>()
  hovered: string | null = null
  private readonly target = new EventTarget()
  private readonly messages = new Map<string, Phrase[]>()
  private readonly wanted = new Map<string, boolean>()

  on<K extends keyof PageEvents>(name: K, listener: (detail: PageEvents[K]) => void): () => void {
    const listen = (event: Event) => listener((event as CustomEvent<PageEvents[K]>).detail)
    this.target.addEventListener(name, listen)
    return () => this.target.removeEventListener(name, listen)
  }

  emit<K extends keyof PageEvents>(name: K, ...detail: PageEvents[K] extends void ? [] : [PageEvents[K]]): void {
    this.target.dispatchEvent(new CustomEvent(name, { detail: detail[0] }))
  }

  hover(id: string | null): void {
    if (id === this.hovered) return
    this.hovered = id
    this.emit("hover")
  }

  /** What a message grounds; nothing withdraws it. */
  ground(message: string, phrases: Phrase[]): void {
    if (JSON.stringify(phrases) === JSON.stringify(this.messages.get(message) ?? [])) return
    if (phrases.length) this.messages.set(message, phrases)
    else this.messages.delete(message)
    this.emit("boxes")
  }

  phrase(id: string | undefined): Phrase | null {
    return [...this.messages.values()].flat().find(phrase => phrase.id === id) ?? null
  }

  show(message: string, on: boolean): void {
    this.wanted.set(message, on)
    this.emit("boxes")
  }

  /** The newest message's boxes are shown, others if asked for. */
  isShown(message: string): boolean {
    return this.wanted.get(message) ?? message === [...this.messages.keys()].sort(byNumber).at(-1)
  }

  /** Phrases whose boxes belong on the picture, including the hovered one's. */
  shown(): Phrase[] {
    return [...this.messages].flatMap(([message, phrases]) =>
      this.isShown(message) ? phrases : phrases.filter(phrase => phrase.id === this.hovered),
    )
  }
}

const byNumber = new Intl.Collator("en", { numeric: true }).compare

/** One for the page, though each component is a bundle of its own. */
export const page: Page = ((globalThis as { ferretPage?: Page }).ferretPage ??= new Page())
