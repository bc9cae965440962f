/** A distinct pre-token: its tokens now, and how often it occurs. */
export interface Word {
  ids: number[];
  readonly count: number;
}

/** A pair of ids that becomes one token. */
export type Merge = readonly [left: number, right: number];

/** Merges between two reports of progress. */
const REPORT_EVERY = 64;

/**
 * Learns merges until there are `vocabularySize` tokens, or no pair is left.
 * New tokens are appended to `tokens`, the words are rewritten.
 *
 * Counts are kept up to date: a merge costs the words that hold its pair.
 */
export function learnMerges(
  words: readonly Word[],
  tokens: string[],
  vocabularySize: number,
  onProgress: (done: number, total: number) => void,
): Merge[] {
  const pairs = new PairCounts(words, vocabularySize);
  const known = new Set(tokens);
  const total = vocabularySize - tokens.length;
  const merges: Merge[] = [];
  while (merges.length < total) {
    const merge = pairs.pop();
    if (merge === undefined) break;
    const token = merge.map((id) => tokens[id]).join('');
    if (known.has(token)) continue;
    known.add(token);
    pairs.merge(merge, tokens.push(token) - 1);
    merges.push(merge);
    if (merges.length % REPORT_EVERY === 0 || merges.length === total) {
      onProgress(merges.length, total);
    }
  }
  return merges;
}

/** How often each pair of neighbours occurs, and in which words. */
class PairCounts {
  readonly #counts = new Map<number, number>();
  readonly #wordsOf = new Map<number, number[]>();
  readonly #queue = new PairQueue();
  readonly #words: readonly Word[];
  readonly #width: number;

  /** @param width more than any id; a pair's key is left * width + right. */
  constructor(words: readonly Word[], width: number) {
    this.#words = words;
    this.#width = width;
    for (const [index, word] of words.entries()) {
      this.#count(word, 1, this.#counts);
      for (const key of this.#keys(word)) this.#note(key, index);
    }
    for (const [key, count] of this.#counts) this.#queue.push(count, key);
  }

  /** Takes the pair that comes first, by its count at this time. */
  pop(): Merge | undefined {
    for (let top = this.#queue.pop(); top; top = this.#queue.pop()) {
      const count = this.#counts.get(top.key) ?? 0;
      if (count === top.count) {
        return [Math.floor(top.key / this.#width), top.key % this.#width];
      }
      // Counts that fell stay queued with the old count until they surface.
      if (count > 0 && count < top.count) this.#queue.push(count, top.key);
    }
    return undefined;
  }

  /** Makes `id` of the pair in every word. */
  merge([left, right]: Merge, id: number): void {
    const key = left * this.#width + right;
    const changes = new Map<number, number>();
    for (const index of this.#wordsOf.get(key) ?? []) {
      const word = this.#words[index];
      if (word === undefined) continue;
      const ids = mergePair(word.ids, left, right, id);
      if (ids.length === word.ids.length) continue;
      this.#count(word, -1, changes);
      word.ids = ids;
      this.#count(word, 1, changes);
      this.#noteNew(word, index, id);
    }
    this.#wordsOf.delete(key);
    for (const [pair, change] of changes) this.#change(pair, change);
  }

  #change(key: number, change: number): void {
    if (change === 0) return;
    const count = (this.#counts.get(key) ?? 0) + change;
    if (count === 0) this.#counts.delete(key);
    else this.#counts.set(key, count);
    if (change > 0) this.#queue.push(count, key);
  }

  #count(word: Word, sign: 1 | -1, into: Map<number, number>): void {
    for (const key of this.#keys(word)) {
      into.set(key, (into.get(key) ?? 0) + sign * word.count);
    }
  }

  #noteNew({ ids }: Word, index: number, id: number): void {
    for (let i = 1; i < ids.length; i++) {
      const left = ids[i - 1] ?? 0;
      const right = ids[i] ?? 0;
      if (left === id || right === id) {
        this.#note(left * this.#width + right, index);
      }
    }
  }

  #note(key: number, index: number): void {
    const words = this.#wordsOf.get(key);
    if (words === undefined) this.#wordsOf.set(key, [index]);
    else if (words[words.length - 1] !== index) words.push(index);
  }

  *#keys({ ids }: Word): Generator<number> {
    for (let i = 1; i < ids.length; i++) {
      yield (ids[i - 1] ?? 0) * this.#width + (ids[i] ?? 0);
    }
  }
}

/** `ids` with each `left, right`, from the left on, made one `id`. */
function mergePair(
  ids: readonly number[],
  left: number,
  right: number,
  id: number,
): number[] {
  const merged: number[] = [];
  for (let i = 0; i < ids.length; i++) {
    const here = ids[i] ?? 0;
    const match = here === left && ids[i + 1] === right;
    merged.push(match ? id : here);
    if (match) i++;
  }
  return merged;
}

interface Entry {
  readonly count: number;
  readonly key: number;
}

/** A binary heap: the largest count first, then the smallest key. */
class PairQueue {
  readonly #heap: Entry[] = [];

  push(count: number, key: number): void {
    const entry = { count, key };
    const heap = this.#heap;
    let at = heap.push(entry) - 1;
    while (at > 0) {
      const up = (at - 1) >> 1;
      const parent = heap[up];
      if (parent === undefined || !before(entry, parent)) break;
      heap[at] = parent;
      at = up;
    }
    heap[at] = entry;
  }

  pop(): Entry | undefined {
    const heap = this.#heap;
    const top = heap[0];
    const last = heap.pop();
    if (last === undefined || heap.length === 0) return top;
    let at = 0;
    for (;;) {
      let down = 2 * at + 1;
      let child = heap[down];
      const right = heap[down + 1];
      if (child && right && before(right, child)) {
        child = right;
        down++;
      }
      if (child === undefined || !before(child, last)) break;
      heap[at] = child;
      at = down;
    }
    heap[at] = last;
    return top;
  }
}

function before(a: Entry, b: Entry): boolean {
  return a.count === b.count ? a.key < b.key : a.count > b.count;
}
