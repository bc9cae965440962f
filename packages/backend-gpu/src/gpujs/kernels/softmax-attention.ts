import type { Tensor } from '@asa/core';
import { Memory, type Place } from '../memory';
import { program, quotient } from '../program';
import { extent, type KernelContext } from './context';

/**
 * A query has `slots` places for keys. What stands in them differs between the
 * attentions: this text sets `key` to the row of the key in slot `j`, or to -1.
 * It reads the query's row of `table`, at `base`.
 */
interface Slots {
  readonly name: string;
  readonly arrays: readonly string[];
  readonly integers: readonly string[];
  readonly key: (j: string) => string;
}

/** Columns of `table`: query row, row of the LSE, and three of the slots. */
export const columns = 5;

/** Keys that lie side by side: columns first key row and count. */
const neighbours: Slots = {
  name: 'Neighbours',
  arrays: [],
  integers: [],
  key: (j) => `let key = -1;
  if (${j} < table[base + 3]) { key = table[base + 2] + ${j}; }`,
};

/** Tokens of listed blocks: columns key row 0, position, row of the list. */
const listed: Slots = {
  name: 'Listed',
  arrays: ['lists'],
  integers: ['listGroups', 'listLength', 'blockSize'],
  key: (j) => `const entry = ${quotient(j, 'blockSize')};
  const listGroup = ${quotient('this.thread.y', '(heads / listGroups)')};
  const list = table[base + 4] * listGroups + listGroup;
  const block = lists[Math.floor(list) * listLength + Math.floor(entry)];
  const token = block * blockSize + ${j} - entry * blockSize;
  let key = -1;
  if (block >= 0 && token <= table[base + 3]) {
    key = table[base + 2] + token;
  }`,
};

// Threads are slots or channels, heads, queries of the piece.
const base = `const base = this.thread.z * ${columns};
  const query = table[this.thread.z * ${columns}];`;

/** s[j] = (q . k_j + qR . kR_j) scale, 0 where there is no key. */
const scoresOf = ({ name, arrays, integers, key }: Slots) =>
  program(
    `scores${name}`,
    {
      arrays: ['q', 'k', 'qRope', 'kRope', 'table', ...arrays],
      integers: ['heads', 'groups', 'width', 'rotary', ...integers],
      reals: ['scale'],
    },
    `${base}
  if (query < 0) { return 0; }
  ${key('this.thread.x')}
  if (key < 0) { return 0; }
  const group = ${quotient('this.thread.y', '(heads / groups)')};
  let s = 0;
  for (let c = 0; c < width; c++) {
    s += q[(Math.floor(query) * heads + this.thread.y) * width + c]
      * k[(Math.floor(key) * groups + Math.floor(group)) * width + c];
  }
  for (let r = 0; r < rotary; r++) {
    s += qRope[(Math.floor(query) * heads + this.thread.y) * rotary + r]
      * kRope[Math.floor(key) * rotary + r];
  }
  return s * scale;`,
  );

/** lse = log sum over j of exp(s[j]), `none` where there is no key. */
const lseOf = ({ name, arrays, integers, key }: Slots) =>
  program(
    `lse${name}`,
    {
      arrays: ['s', 'table', ...arrays],
      integers: ['heads', 'slots', ...integers],
      reals: ['none'],
    },
    // Its threads are heads and queries: names as where they are slots.
    `const base = this.thread.y * ${columns};
  let most = 0;
  let count = 0;
  for (let i = 0; i < slots; i++) {
    ${headFirst(key('i'))}
    if (key >= 0) {
      const score = s[(this.thread.y * heads + this.thread.x) * slots + i];
      if (count === 0) { most = score; }
      most = Math.max(most, score);
      count += 1;
    }
  }
  if (count === 0) { return none; }
  let sum = 0;
  for (let j = 0; j < slots; j++) {
    ${headFirst(key('j'))}
    if (key >= 0) {
      sum += Math.exp(
        s[(this.thread.y * heads + this.thread.x) * slots + j] - most);
    }
  }
  return most + Math.log(sum);`,
  );

/** The same text where the head is the first thread. */
function headFirst(text: string): string {
  return text.replaceAll('this.thread.y', 'this.thread.x');
}

/** p[j] = exp(s[j] - lse), 0 where there is no key. */
const sharesOf = ({ name, arrays, integers, key }: Slots) =>
  program(
    `shares${name}`,
    {
      arrays: ['s', 'lse', 'table', ...arrays],
      integers: ['heads', 'slots', ...integers],
    },
    `${base}
  if (query < 0) { return 0; }
  ${key('this.thread.x')}
  if (key < 0) { return 0; }
  return Math.exp(
    s[(this.thread.z * heads + this.thread.y) * slots + this.thread.x]
      - lse[Math.floor(table[base + 1]) * heads + this.thread.y]);`,
  );

/** o = sum over j of p[j] v_j */
const outputOf = ({ name, arrays, integers, key }: Slots) =>
  program(
    `output${name}`,
    {
      arrays: ['p', 'v', 'table', ...arrays],
      integers: ['heads', 'groups', 'slots', 'width', ...integers],
    },
    `const base = this.thread.z * ${columns};
  const group = ${quotient('this.thread.y', '(heads / groups)')};
  let sum = 0;
  for (let j = 0; j < slots; j++) {
    ${key('j')}
    if (key >= 0) {
      sum += p[(this.thread.z * heads + this.thread.y) * slots + j]
        * v[(Math.floor(key) * groups + Math.floor(group)) * width
          + this.thread.x];
    }
  }
  return sum;`,
  );

const programsOf = (slots: Slots) => ({
  scores: scoresOf(slots),
  lse: lseOf(slots),
  shares: sharesOf(slots),
  output: outputOf(slots),
});

const kinds = {
  neighbours: programsOf(neighbours),
  listed: programsOf(listed),
} as const;

/** What tells one attention from another. */
export interface Visibility {
  readonly kind: keyof typeof kinds;
  /** What the kind's programs read beyond the operands. */
  readonly values: Readonly<Record<string, Place | number>>;
  /** Places for keys that any query needs. */
  readonly slots: number;
  readonly scale: number;
  /** The three last columns of `table` for every row, `[rows, 3]`. */
  readonly rows: Int32Array;
}

export interface ScoreOperands {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly qRope?: Tensor | undefined;
  readonly kRope?: Tensor | undefined;
}

/** Most elements of the scores that are there at a time. */
const most = 2 ** 24;
/** Most of a launch's third axis. */
const mostQueries = 65_535;

/** Some queries at a time, so that scores take no more than their share. */
export function forEachPiece(
  rows: number,
  width: number,
  visit: (from: number, count: number) => void,
): void {
  const fit = Math.max(1, Math.floor(most / Math.max(1, width)));
  const step = Math.min(fit, mostQueries);
  for (let from = 0; from < rows; from += step) {
    visit(from, Math.min(step, rows - from));
  }
}

/** A power of two, so that WebAssembly, where sizes are constants, finds it. */
export function room(slots: number): number {
  return Math.max(4, 2 ** Math.ceil(Math.log2(Math.max(1, slots))));
}

/** Scores of the queries of a table with `rows` rows, `[rows, H, slots]`. */
export function scores(
  context: KernelContext,
  { q, k, qRope = q, kRope = k }: ScoreOperands,
  { kind, values, scale, slots }: Omit<Visibility, 'rows'>,
  table: Memory,
): Memory {
  const [, heads = 0, width = 0] = q.shape;
  const rotary = qRope === q ? 0 : extent(qRope, 2);
  const rows = table.elements / columns;
  const s = context.scratch(rows * heads * slots);
  context.run(
    kinds[kind].scores,
    {
      ...values,
      ...{ q, k, qRope, kRope, table, scale },
      ...{ heads, groups: extent(k, 1), width, rotary },
    },
    s,
    [slots, heads, rows],
  );
  return s;
}

/** Softmax of scores with this LSE; the scores are released. */
export function shares(
  context: KernelContext,
  s: Memory,
  lse: Place,
  heads: number,
  { kind, values, slots }: Omit<Visibility, 'rows'>,
  table: Memory,
): Memory {
  const rows = table.elements / columns;
  const p = context.scratch(s.elements);
  const all = { ...values, s, lse, table, heads, slots };
  context.run(kinds[kind].shares, all, p, [slots, heads, rows]);
  context.release(s);
  return p;
}

/**
 * s[j] = (q . k_j + qR . kR_j) scale
 * lse  = log sum over j of exp(s[j])
 * o    = sum over j of exp(s[j] - lse) v_j
 */
export function attend(
  context: KernelContext,
  operands: ScoreOperands & { readonly v: Tensor },
  outputs: { readonly o: Tensor; readonly lse: Tensor },
  visibility: Visibility,
): void {
  const { o, lse } = outputs;
  const [rows = 0, heads = 0, width = 0] = o.shape;
  const { slots, kind, values } = visibility;
  const groups = extent(operands.v, 1);
  forEachPiece(rows, heads * slots, (from, count) => {
    const isAll = count === rows;
    const table = context.table(tableOf(visibility.rows, from, count));
    const all = { ...values, table, heads, slots };
    const s = scores(context, operands, visibility, table);
    const partLse = isAll ? lse : context.scratch(count * heads);
    const none = Number.NEGATIVE_INFINITY;
    context.run(kinds[kind].lse, { ...all, s, none }, partLse, [heads, count]);
    const p = shares(context, s, partLse, heads, visibility, table);
    const part = isAll ? o : context.scratch(count * heads * width);
    const output = { ...all, p, v: operands.v, groups, width };
    context.run(kinds[kind].output, output, part, [width, heads, count]);
    context.release(table);
    context.release(p);
    put(context, partLse, lse, from * heads);
    put(context, part, o, from * heads * width);
  });
}

/** A piece into its place, and out of the way; nothing where it is the whole. */
function put(
  context: KernelContext,
  part: Place,
  whole: Tensor,
  start: number,
): void {
  if (!(part instanceof Memory)) return;
  context.copyElements(part, 0, whole, start, part.elements);
  context.release(part);
}

/** Queries `[from, from + count)`, whose LSE are numbered from 0. */
function tableOf(rows: Int32Array, from: number, count: number): Int32Array {
  const table = new Int32Array(count * columns);
  for (let i = 0; i < count; i++) {
    table.set([from + i, i], i * columns);
    table.set(
      rows.subarray((from + i) * 3, (from + i + 1) * 3),
      i * columns + 2,
    );
  }
  return table;
}
