/** What Streamlit wants of a component, made of a class: one instance for each place where it is mounted. */

import type { FrontendRenderer, FrontendState } from "@streamlit/component-v2-lib"

/** Tells the server a new value of a state. */
export type Report<S> = (name: keyof S, value: S[keyof S]) => void

interface Component<S, D> {
  /** There is other data, or another theme. */
  update(data: D, report: Report<S>): void
  /** It has gone from the page. */
  close(): void
}

export function component<S extends FrontendState, D>(
  selector: string,
  create: (root: HTMLElement) => Component<S, D>,
): FrontendRenderer<S, D> {
  const instances = new WeakMap<object, Component<S, D>>()
  return ({ data, parentElement, setStateValue }) => {
    const instance = instances.get(parentElement) ?? create(parentElement.querySelector<HTMLElement>(selector)!)
    instances.set(parentElement, instance)
    instance.update(data, setStateValue)
    return () => {
      instances.delete(parentElement)
      instance.close()
    }
  }
}
