/** Elements in one line. Functions among the attributes listen to events; undefined leaves an attribute out. */

type Attribute = string | number | undefined | ((event: never) => void)
type Child = Node | string

function fill<T extends Element>(element: T, attributes: Record<string, Attribute>, children: Child[]): T {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value as EventListener)
    else if (value !== undefined) element.setAttribute(name, String(value))
  }
  element.append(...children)
  return element
}

export function html<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Record<string, Attribute> = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  return fill(document.createElement(tag), attributes, children)
}

export function svg<K extends keyof SVGElementTagNameMap>(
  tag: K,
  attributes: Record<string, Attribute> = {},
  ...children: Child[]
): SVGElementTagNameMap[K] {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children)
}

/** A Lucide icon. */
export function icon(node: [tag: string, attributes: Record<string, Attribute>][]): SVGSVGElement {
  const shapes = node.map(([tag, attributes]) => svg(tag as "path", attributes))
  return svg("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, ...shapes)
}
