import type {
  AttentionGradients,
  AttentionOperands,
  AttentionResults,
  Sequence,
  Sequences,
} from '@asa/core';
import { type Floats, floats } from './operands';

/** The key rows that some heads of a query see. */
export class VisibleKeys {
  rows = new Int32Array(64);
  count = 0;

  /** Adds the rows `[from, to)`; none where `to <= from`. */
  add(from: number, to: number): void {
    if (this.count + to - from > this.rows.length) this.grow(to - from);
    for (let row = from; row < to; row++) this.rows[this.count++] = row;
  }

  private grow(more: number): void {
    const rows = new Int32Array(2 * (this.count + more));
    rows.set(this.rows);
    this.rows = rows;
  }
}

/**
 * What tells one kind of attention from another: the keys of a query. Heads
 * fall into `groups` that see the same ones.
 */
export interface Visibility {
  readonly sequences: Sequences;
  readonly scale: number;
  readonly groups: number;
  /** Adds the rows that the query at `position` sees. */
  see(
    keys: VisibleKeys,
    sequence: Sequence,
    position: number,
    group: number,
  ): void;
}

/**
 * s[j] = (q . k_j + qR . kR_j) scale
 * lse  = log sum over j of exp(s[j])
 * o    = sum over j of exp(s[j] - lse) v_j
 */
export function attend(
  inputs: AttentionOperands,
  outputs: Pick<AttentionResults, 'o' | 'lse'>,
  visibility: Visibility,
): void {
  const operands = new Operands(inputs);
  const { v } = operands;
  const o = floats(outputs.o);
  const lse = floats(outputs.lse);
  o.fill(0);
  lse.fill(Number.NEGATIVE_INFINITY);
  const sum = new Float64Array(operands.valueWidth);
  forEachHead(operands.heads, visibility, (query, head, keys) => {
    const scores = operands.scores(query, head, keys, visibility.scale);
    const total = logSumExp(scores, keys.count);
    sum.fill(0);
    for (let j = 0; j < keys.count; j++) {
      const p = Math.exp((scores[j] as number) - total);
      addScaled(sum, 0, p, v, operands.value(keys, j, head), sum.length);
    }
    const row = query * operands.heads + head;
    lse[row] = total;
    o.set(sum, row * sum.length);
  });
}

/**
 * p[j]  = exp(s[j] - lse)
 * dV_j += p[j] dO
 * dS[j] = p[j] (dO . v_j - dO . o) scale
 * dQ    = sum over j of dS[j] k_j, and plus where there is one
 * dK_j += dS[j] q
 * dQR   = sum over j of dS[j] kR_j,   dKR_j += dS[j] qR
 */
export function attendBackward(
  inputs: AttentionOperands & AttentionResults,
  outputs: AttentionGradients,
  visibility: Visibility,
): void {
  const operands = new Operands(inputs);
  const { q, k, v, rotary, width, valueWidth } = operands;
  const o = floats(inputs.o);
  const dO = floats(inputs.dO);
  const lse = floats(inputs.lse);
  const known = inputs.delta && floats(inputs.delta);
  const dQ = new Float64Array(q.length);
  const dK = new Float64Array(k.length);
  const dV = new Float64Array(v.length);
  const dQRope = new Float64Array(rotary?.q.length ?? 0);
  const dKRope = new Float64Array(rotary?.k.length ?? 0);
  const { scale } = visibility;
  if (inputs.plus) dQ.set(floats(inputs.plus));
  forEachHead(operands.heads, visibility, (query, head, keys) => {
    const row = query * operands.heads + head;
    const output = row * valueWidth;
    const delta = known?.[row] ?? dot(dO, output, o, output, valueWidth);
    const scores = operands.scores(query, head, keys, scale);
    for (let j = 0; j < keys.count; j++) {
      const p = Math.exp((scores[j] as number) - (lse[row] as number));
      const value = operands.value(keys, j, head);
      const dP = dot(dO, output, v, value, valueWidth);
      addScaled(dV, value, p, dO, output, valueWidth);
      const dS = p * (dP - delta) * scale;
      const key = operands.key(keys, j, head);
      addScaled(dQ, row * width, dS, k, key, width);
      addScaled(dK, key, dS, q, row * width, width);
      if (rotary) {
        const turned = (keys.rows[j] as number) * rotary.width;
        const start = row * rotary.width;
        addScaled(dQRope, start, dS, rotary.k, turned, rotary.width);
        addScaled(dKRope, turned, dS, rotary.q, start, rotary.width);
      }
    }
  });
  floats(outputs.dQ).set(dQ);
  floats(outputs.dK).set(dK);
  floats(outputs.dV).set(dV);
  if (outputs.dQRope) floats(outputs.dQRope).set(dQRope);
  if (outputs.dKRope) floats(outputs.dKRope).set(dKRope);
}

/** Calls `body` for each query and head that sees anything. */
function forEachHead(
  heads: number,
  { sequences, groups, see }: Visibility,
  body: (query: number, head: number, keys: VisibleKeys) => void,
): void {
  const keys = new VisibleKeys();
  const headsPerGroup = heads / groups;
  for (const sequence of sequences.list) {
    const { queryStart, queryCount, keyCount } = sequence;
    for (let i = 0; i < queryCount; i++) {
      const position = keyCount - queryCount + i;
      for (let group = 0; group < groups; group++) {
        keys.count = 0;
        see(keys, sequence, position, group);
        if (keys.count === 0) continue;
        for (let member = 0; member < headsPerGroup; member++) {
          body(queryStart + i, group * headsPerGroup + member, keys);
        }
      }
    }
  }
}

/** The operands as arrays, and where a head's rows lie in them. */
export class Operands {
  readonly q: Floats;
  readonly k: Floats;
  readonly v: Floats;
  readonly rotary?: { readonly q: Floats; readonly k: Floats; width: number };
  readonly heads: number;
  readonly width: number;
  readonly valueWidth: number;
  private readonly groups: number;
  private scratch = new Float64Array(64);

  constructor({ q, k, v, qRope, kRope }: AttentionOperands) {
    this.q = floats(q);
    this.k = floats(k);
    this.v = floats(v);
    [, this.heads = 0, this.width = 0] = q.shape;
    [, this.groups = 1, this.valueWidth = 0] = v.shape;
    if (qRope && kRope) {
      const width = qRope.shape[2] ?? 0;
      this.rotary = { q: floats(qRope), k: floats(kRope), width };
    }
  }

  /** Where the j-th visible key of a head starts: head i reads floor(i G / H). */
  key(keys: VisibleKeys, j: number, head: number): number {
    return this.row(keys, j, head) * this.width;
  }

  value(keys: VisibleKeys, j: number, head: number): number {
    return this.row(keys, j, head) * this.valueWidth;
  }

  /** Scores of a query's head over the visible keys, in a reused array. */
  scores(
    query: number,
    head: number,
    keys: VisibleKeys,
    scale: number,
  ): Float64Array {
    const { q, k, width, rotary } = this;
    if (keys.count > this.scratch.length) {
      this.scratch = new Float64Array(2 * keys.count);
    }
    const row = query * this.heads + head;
    for (let j = 0; j < keys.count; j++) {
      let s = dot(q, row * width, k, this.key(keys, j, head), width);
      if (rotary) {
        const turned = (keys.rows[j] as number) * rotary.width;
        s += dot(rotary.q, row * rotary.width, rotary.k, turned, rotary.width);
      }
      this.scratch[j] = s * scale;
    }
    return this.scratch;
  }

  private row(keys: VisibleKeys, j: number, head: number): number {
    const group = Math.floor(head / (this.heads / this.groups));
    return (keys.rows[j] as number) * this.groups + group;
  }
}

function logSumExp(scores: Float64Array, count: number): number {
  let most = Number.NEGATIVE_INFINITY;
  for (let j = 0; j < count; j++) most = Math.max(most, scores[j] as number);
  let sum = 0;
  for (let j = 0; j < count; j++) sum += Math.exp((scores[j] as number) - most);
  return most + Math.log(sum);
}

/** Four sums at a time, so that four additions are under way. */
function dot(
  a: Floats,
  aStart: number,
  b: Floats,
  bStart: number,
  width: number,
): number {
  let s0 = 0;
  let s1 = 0;
  let s2 = 0;
  let s3 = 0;
  let c = 0;
  for (; c + 4 <= width; c += 4) {
    const p = aStart + c;
    const r = bStart + c;
    s0 += (a[p] as number) * (b[r] as number);
    s1 += (a[p + 1] as number) * (b[r + 1] as number);
    s2 += (a[p + 2] as number) * (b[r + 2] as number);
    s3 += (a[p + 3] as number) * (b[r + 3] as number);
  }
  for (; c < width; c++) {
    s0 += (a[aStart + c] as number) * (b[bStart + c] as number);
  }
  return s0 + s1 + (s2 + s3);
}

/** y[c] += factor x[c], four at a time */
function addScaled(
  y: Float64Array,
  yStart: number,
  factor: number,
  x: Floats,
  xStart: number,
  width: number,
): void {
  let c = 0;
  for (; c + 4 <= width; c += 4) {
    const p = yStart + c;
    const r = xStart + c;
    y[p] = (y[p] as number) + factor * (x[r] as number);
    y[p + 1] = (y[p + 1] as number) + factor * (x[r + 1] as number);
    y[p + 2] = (y[p + 2] as number) + factor * (x[r + 2] as number);
    y[p + 3] = (y[p + 3] as number) + factor * (x[r + 3] as number);
  }
  for (; c < width; c++) {
    y[yStart + c] =
      (y[yStart + c] as number) + factor * (x[xStart + c] as number);
  }
}
