/** The bytes of a picture, once, for whatever shows it: its id, then the encoded image. */

import type { FrontendRenderer } from "@streamlit/component-v2-lib"
import { page } from "./page"

const ID_LENGTH = 71 // "sha256:" and the digest

const render: FrontendRenderer<Record<string, never>, Uint8Array<ArrayBuffer>> = ({ data }) => {
  const id = new TextDecoder().decode(data.subarray(0, ID_LENGTH))
  if (!page.pictures.has(id)) {
    page.pictures.set(id, URL.createObjectURL(new Blob([data.subarray(ID_LENGTH)])))
    page.emit("pictures")
  }
  return () => {
    URL.revokeObjectURL(page.pictures.get(id) ?? "")
    page.pictures.delete(id)
  }
}

export default render
