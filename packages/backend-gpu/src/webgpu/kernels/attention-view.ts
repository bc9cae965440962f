/**
 * Which rows a tile has and which keys they see: all that differs between
 * attention, compressed attention and selected attention. Texts are WGSL; `s`
 * is the sequence.
 */
import type { AttentionOperands, Sequences } from '@asa/core';
import type { Binding, UniformValue } from '../launch';
import type { AttentionShape } from './attention-products';
import { extentOf, unitTileOf } from './attention-unit';
import type { KernelContext } from './context';

export interface View {
  readonly name: string;
  readonly sequences: Sequences;
  readonly scale: number;
  readonly constants: Readonly<Record<string, number>>;
  readonly uniforms: Readonly<Record<string, UniformValue>>;
  readonly bindings: Readonly<Record<string, Binding | undefined>>;
  /** Heads that share keys and lists: a unit. */
  readonly unitHeads: number;
  /** Functions that the texts below call. */
  readonly declarations: string;
  /** The row of `s` where key position 0 lies. */
  readonly keyStart: string;

  readonly forward: {
    /** Rows of a unit that share a walk over keys. */
    readonly rows: number;
    /** Workgroups on the x axis for tiles of so many rows. */
    tiles(rows: number): number;
    /** Defines `query` (within s), `member`, `isRow` from `tid`. */
    readonly row: string;
    /** Defines `first` and `end`, slots of keys that the tile walks over. */
    readonly range: string;
    /** `keyAt(slot) -> i32`: a position, -1 for none; expression of `slot`. */
    readonly keyAt: string;
  };
  /** First and last key position that the query at position `t` sees. */
  readonly sees: { readonly first: string; readonly last: string };
}

/** The same from the keys' side: which rows see a tile of keys. */
export interface KeyView {
  /** Keys of a tile. */
  readonly keys: number;
  /** Workgroups on the x axis. */
  readonly tiles: number;
  readonly bindings: Readonly<Record<string, Binding | undefined>>;
  readonly constants: Readonly<Record<string, number>>;
  readonly uniforms: Readonly<Record<string, UniformValue>>;
  readonly declarations: string;
  /** The sequences leave no row of the key axis out. */
  readonly coversKeys: boolean;
  /** Keys of the longest sequence; those of `s`, as WGSL. */
  readonly most: number;
  readonly extent: string;
  /**
   * Defines `firstKey`, `endKey`, positions of the tile's keys; `firstRow`,
   * `endRow`, rows `rho` that see them; and `slot` where there are `parts`.
   */
  readonly range: string;
  /** Defines `query`, `member`, `isRow` of row `rho`. */
  readonly row: string;
  /** Where several workgroups share the rows of a tile. */
  readonly parts?:
    | {
        /** Results of tiles that a unit has. */
        readonly slots: number;
        /**
         * Of key `position` and unit `unit`, defines the slots `firstSlot .. endSlot`
         * that hold its parts, and `n`, its place in the tile.
         */
        readonly find: string;
      }
    | undefined;
}

/** Whether the sequences leave no row of an axis out. */
export function covers(counts: readonly number[], rows: number): boolean {
  return counts.reduce((sum, count) => sum + count, 0) === rows;
}

export function greatestCommonDivisor(a: number, b: number): number {
  return b === 0 ? a : greatestCommonDivisor(b, a % b);
}

/** What the tables have of a row, on its way there. */
export interface TableStaging {
  /** Defines what `put` writes, threads beyond the table do nothing. */
  readonly load: string;
  /** Writes it, `place` is WGSL of the thread's place in the tables. */
  readonly put: (place: string) => string;
}

/** Of M threads a row each; `row` as in the views. */
export const rowStaging = (view: View, row: string): TableStaging => ({
  load: `
var nextRow = 0u;
var nextIsThere = false;
var nextFirst = 0;
var nextLast = -1;
if (tid < M) {
  ${row}
  // Rows that are not there are read like others, and masked.
  let t = s.keyCount - s.queryCount + query;
  nextRow = (s.queryStart + min(query, s.queryCount - 1u)) * H + head0 + member;
  nextIsThere = isRow;
  nextFirst = ${view.sees.first};
  nextLast = select(-1, ${view.sees.last}, isRow);
}`,
  put: (place) => `
if (tid < M) {
  rowIndex[${place}] = nextRow;
  rowIsThere[${place}] = select(0u, 1u, nextIsThere);
  rowFirst[${place}] = nextFirst;
  rowLast[${place}] = nextLast;
}`,
});

/** Fills the row tables, M threads; `row` as in the views. */
export function rowTable(view: View, row: string): string {
  const { load, put } = rowStaging(view, row);
  return `{ ${load}\n${put('tid')} }`;
}

/** Fills the key tables from slots, N threads. */
export const keyTable = (view: View) => `
workgroupBarrier();
if (tid < N) {
  let slot = base + tid;
  var position = -1;
  if (slot < end) { position = ${view.forward.keyAt}; }
  keyPosition[tid] = position;
  keyRow[tid] = ${view.keyStart} + u32(max(position, 0));
}
workgroupBarrier();`;

/** Keys of a tile of the pass over keys, where as many lie together. */
export function keysOfTile(
  context: KernelContext,
  operands: AttentionOperands,
  shape: AttentionShape,
  together: number,
): number {
  const tile = unitTileOf(context, operands, shape, 'backwardKV', together);
  if (tile) return extentOf(tile);
  const most = context.smallTiles ? 16 : 64;
  let keys = 16;
  while (keys < together && keys < most) keys *= 2;
  return keys;
}

/** Workgroups that keep a large device busy. */
const ENOUGH = 1024;

/** The rows of whole queries, from `firstQuery` to `endQuery` of the keys. */
interface QueryRange {
  readonly keys: number;
  /** Key positions of the longest sequence. */
  readonly most: number;
  readonly units: number;
  readonly sequences: number;
  /** Rows of the longest walk. */
  readonly rows: number;
  /** Defines `firstKey`, `endKey`, `firstQuery`, `endQuery` from `tile`. */
  readonly text: string;
}

/**
 * A view of keys that all queries of a range see. Where there are few tiles,
 * several workgroups share the rows of each.
 */
export function keysOfQueries(
  range: QueryRange,
): Pick<KeyView, 'keys' | 'tiles' | 'constants' | 'range' | 'row' | 'parts'> {
  const { keys, most, units, sequences, rows, text } = range;
  const tiles = Math.ceil(most / keys);
  const wanted = Math.ceil(ENOUGH / Math.max(1, tiles * units * sequences));
  const parts = Math.max(1, Math.min(wanted, Math.floor(rows / 256)));
  return {
    keys,
    tiles: tiles * parts,
    constants: { PARTS: parts },
    range: `let tile = group.x / PARTS;
${text}
// A multiple of the tile's rows for each workgroup.
let rowsOfTile = (max(endQuery, firstQuery) - firstQuery) * HT;
let share = (rowsOfTile + PARTS * M - 1u) / (PARTS * M) * M;
let firstRow = min(group.x % PARTS * share, rowsOfTile);
let endRow = min(firstRow + share, rowsOfTile);
let slot = group.z * groups.x + group.x;`,
    row: `let query = min(firstQuery + rho / HT, s.queryCount - 1u);
  let member = rho % HT;
  let isRow = rho < endRow;`,
    parts:
      parts === 1
        ? undefined
        : {
            slots: tiles * parts * sequences,
            find: `let firstSlot = (group.z * ${tiles}u + position / ${keys}u) * ${parts}u;
let endSlot = firstSlot + ${parts}u;
let n = position % ${keys}u;`,
          },
  };
}
