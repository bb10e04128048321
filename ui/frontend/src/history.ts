/** A value with undo and redo. */
export class History<T> {
  private past: T[] = []
  private future: T[] = []

  constructor(public now: T) {}

  commit(next: T): void {
    this.past.push(this.now)
    this.future = []
    this.now = next
  }

  get canUndo(): boolean {
    return this.past.length > 0
  }

  get canRedo(): boolean {
    return this.future.length > 0
  }

  undo(): boolean {
    return this.step(this.past, this.future)
  }

  redo(): boolean {
    return this.step(this.future, this.past)
  }

  private step(from: T[], to: T[]): boolean {
    const value = from.pop()
    if (value === undefined) return false
    to.push(this.now)
    this.now = value
    return true
  }
}
