/** The two places of Streamlit's own page that the canvas reaches into. Their test ids are private: a browser test watches them. */

const find = <T extends Element>(id: string) => document.querySelector<T>(`[data-testid="${id}"]`)

/** Puts a word at the caret of the chat box, or on the clipboard if there is none. */
export function insertIntoQuestion(word: string): void {
  const input = find<HTMLTextAreaElement>("stChatInputTextArea")
  if (!input || input.disabled) return void copyText(word)
  const { value, selectionStart: start, selectionEnd: end } = input
  const before = value.slice(0, start)
  const after = value.slice(end)
  const text = `${before}${/\S$/.test(before) ? " " : ""}${word}${/^[\s.,;:?!]/.test(after) ? "" : " "}`
  // React listens to the element's own setter, not to ours.
  Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value")!.set!.call(input, text + after)
  input.dispatchEvent(new Event("input", { bubbles: true }))
  input.focus()
  input.setSelectionRange(text.length, text.length)
}

/** Also without the clipboard that browsers keep from pages on plain HTTP. */
export async function copyText(text: string): Promise<void> {
  if (navigator.clipboard) return navigator.clipboard.writeText(text)
  const area = document.body.appendChild(document.createElement("textarea"))
  area.value = text
  area.select()
  document.execCommand("copy")
  area.remove()
}

/** Hands a pasted or dropped image to the uploader, unless it falls on that itself, or comes with words it is a picture of. */
export function openPicture(event: Event, transfer: DataTransfer | null): void {
  const input = find<HTMLInputElement>("stFileUploaderDropzoneInput")
  const file = [...(transfer?.files ?? [])].find(file => file.type.startsWith("image/"))
  if (!input || !file || transfer?.types.includes("text/plain")) return
  if (event.composedPath().includes(input.closest("section") ?? input)) return
  const files = new DataTransfer()
  files.items.add(file)
  input.files = files.files
  input.dispatchEvent(new Event("change", { bubbles: true }))
  event.preventDefault()
}
