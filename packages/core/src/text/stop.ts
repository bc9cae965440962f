import { ArgumentError } from '../errors';

/** A state of the automaton: one prefix of one or more stop strings. */
interface State {
  /** UTF-16 units of the prefix. */
  readonly depth: number;
  /** The next state, by UTF-16 unit. */
  readonly next: Map<number, State>;
  /** The state of the longest proper suffix that is also a prefix. */
  fallback: State | undefined;
  /** The longest stop string that the prefix ends with. */
  stop: string | undefined;
}

/**
 * Cuts a stream of text before the first stop string, wherever the pieces
 * break. The first stop string is the one that ends first; of those that end
 * together, the longest. Linear in the text, whatever the stops are.
 *
 * Source: Aho and Corasick 1975, "Efficient string matching".
 */
export class StopMatcher {
  #state: State;
  #held = '';
  #matched: string | undefined;
  readonly #root: State;

  /**
   * @param stops the stop strings; none lets all text pass.
   * @throws ArgumentError if one is empty or holds half of a surrogate pair.
   */
  constructor(stops: readonly string[]) {
    this.#root = buildAutomaton(stops);
    this.#state = this.#root;
  }

  /** The stop string that ended the text, if one has. */
  get matched(): string | undefined {
    return this.#matched;
  }

  /**
   * Takes the next piece of text and returns what can no longer be part of a
   * stop string. After a match it returns `''` for ever.
   */
  push(piece: string): string {
    if (this.#matched !== undefined) return '';
    const before = this.#held.length;
    const text = this.#held + piece;
    for (let i = before; i < text.length; i++) {
      this.#state = step(this.#root, this.#state, text.charCodeAt(i));
      const { stop } = this.#state;
      if (stop !== undefined) {
        this.#matched = stop;
        this.#held = '';
        return text.slice(0, i + 1 - stop.length);
      }
    }
    const safe = text.length - this.#state.depth;
    this.#held = text.slice(safe);
    return text.slice(0, safe);
  }

  /** The text is over: returns what was held back. */
  end(): string {
    const rest = this.#held;
    this.#held = '';
    this.#state = this.#root;
    return rest;
  }
}

function newState(depth: number): State {
  return { depth, next: new Map(), fallback: undefined, stop: undefined };
}

function buildAutomaton(stops: readonly string[]): State {
  const root = newState(0);
  for (const stop of stops) insert(root, stop);
  linkFallbacks(root);
  return root;
}

function insert(root: State, stop: string): void {
  if (stop === '' || /\p{Surrogate}/u.test(stop)) {
    throw new ArgumentError(
      `stop: must be well-formed text of at least one character, got ${JSON.stringify(stop)}`,
    );
  }
  let state = root;
  for (let i = 0; i < stop.length; i++) {
    const unit = stop.charCodeAt(i);
    const next = state.next.get(unit) ?? newState(state.depth + 1);
    state.next.set(unit, next);
    state = next;
  }
  state.stop = stop;
}

/** Breadth first: a fallback is shorter than its state, so it comes before. */
function linkFallbacks(root: State): void {
  const queue: State[] = [root];
  for (const state of queue) {
    for (const [unit, child] of state.next) {
      child.fallback =
        state === root ? root : step(root, state.fallback ?? root, unit);
      child.stop ??= child.fallback.stop;
      queue.push(child);
    }
  }
}

function step(root: State, from: State, unit: number): State {
  let state: State | undefined = from;
  while (state !== undefined) {
    const next = state.next.get(unit);
    if (next !== undefined) return next;
    state = state.fallback;
  }
  return root;
}
