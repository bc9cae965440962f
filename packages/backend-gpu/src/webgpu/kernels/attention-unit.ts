/**
 * Tiles of attention whose products the subgroups' matrix units make: factors
 * lie in workgroup memory, in 16 bits, and sums in registers, f32.
 */
import {
  type AttentionOperands,
  bytesPerElement,
  type Tensor,
} from '@asa/core';
import { LARGEST, type MatrixUnit } from '../matrix-unit';
import {
  type AttentionShape,
  at,
  eachSlot,
  indexOf,
  isVector,
  type Source,
  widthOf,
} from './attention-products';
import { type KernelContext, unroll } from './context';

/** Keys of a tile. */
export const UNIT_KEYS = 32;

export interface UnitTile {
  readonly unit: MatrixUnit;
  /** Of factors: the operands' type. */
  readonly element: 'f16' | 'f32';
  /** Subgroups down the tile's rows, and side by side across its columns. */
  readonly down: number;
  readonly across: number;
  /** Values are channels of the keys' tensor. */
  readonly isShared: boolean;
  /** Channels of keys and of values, up to whole matrices. */
  readonly keyWidth: number;
  readonly valueWidth: number;
}

/** Elements between lines: 16 bytes more, so that lines use other banks. */
export const pitchOf = (width: number) => width + 8;

export const threadsOf = ({ unit, down, across }: UnitTile) =>
  down * across * unit.subgroupSize;

export const rowsOf = ({ unit, down }: UnitTile) => unit.m * down;

/** Where keys, values and probabilities lie among the factors, and the end. */
export function layoutOf(tile: UnitTile) {
  const { isShared, keyWidth, valueWidth } = tile;
  const pitch = pitchOf(keyWidth);
  const rows = rowsOf(tile);
  const values = (isShared ? 2 : 1) * UNIT_KEYS * pitch;
  const weights = values + (isShared ? 0 : UNIT_KEYS * pitchOf(valueWidth));
  // Queries lie in the same place before the first keys do.
  const size = Math.max(rows * pitch, weights + rows * pitchOf(UNIT_KEYS));
  return { values, weights, size };
}

/** Of tables and statistics. */
const OTHER_BYTES = 4096;
/** Registers of a thread that factors and sums may take. */
const MOST_REGISTERS = 160;

/**
 * The tile of as many rows as there are, or as fit; none where the device, the
 * types or the widths call for plain products.
 */
export function unitTileOf(
  { attentionUnit: unit }: KernelContext,
  operands: AttentionOperands,
  { width, ropeWidth, valueWidth }: AttentionShape,
  rows: number,
): UnitTile | undefined {
  const element = unit && elementOf(unit, operands);
  if (!element) return undefined;
  const { k, v } = operands;
  const tileOf = (down: number, across: number): UnitTile => {
    const keys = roundUp(width + ropeWidth, LARGEST);
    const values = roundUp(valueWidth, LARGEST * across);
    const isSame = k.storage === v.storage && width === valueWidth;
    return {
      unit,
      element,
      down,
      across,
      isShared: isSame && values <= keys,
      keyWidth: keys,
      valueWidth: values,
    };
  };
  const strips = Math.min(4, Math.ceil(rows / unit.m));
  const tiles = [tileOf(4, 1), tileOf(2, 2), tileOf(1, 2)];
  return tiles.find((tile) => tile.down < 2 * strips && fits(tile));
}

/** Matrix units multiply f16; plain code in their place multiplies anything. */
function elementOf(
  { isEmulated }: MatrixUnit,
  { q, k, v, qRope, kRope }: AttentionOperands,
): UnitTile['element'] | undefined {
  const all: readonly (Tensor | undefined)[] = [q, k, v, qRope, kRope];
  const have = (dtype: string) =>
    all.every((operand) => !operand || operand.dtype === dtype);
  if (have('f16')) return 'f16';
  return isEmulated && have('f32') ? 'f32' : undefined;
}

function fits(tile: UnitTile): boolean {
  const { unit, element, across, keyWidth, valueWidth } = tile;
  const { m, n, subgroupSize, workgroupBytes } = unit;
  const factors = (m * keyWidth) / 2 / subgroupSize;
  const sums = (m * valueWidth) / across / subgroupSize;
  const scores = 4 * rowsOf(tile) * pitchOf(UNIT_KEYS);
  const bytes = bytesPerElement[element] * layoutOf(tile).size + scores;
  return (
    bytes + OTHER_BYTES <= workgroupBytes &&
    factors + sums <= MOST_REGISTERS &&
    UNIT_KEYS % (n * across) === 0 &&
    UNIT_KEYS % (4 * perRow(tile)) === 0
  );
}

/** Threads of a row in softmax. */
export const perRow = (tile: UnitTile) => threadsOf(tile) / rowsOf(tile);

/**
 * Rows of a table on their way into the factors: `declare` names registers,
 * `load` reads them, `put` writes them to lines from `to` on.
 */
export interface Staging {
  readonly declare: string;
  readonly load: (table: string) => string;
  readonly put: (to: string) => string;
}

export function staging(
  shape: AttentionShape,
  tile: UnitTile,
  name: string,
  { table, parts }: Source,
  lines: number,
  pitch: number,
): Staging {
  const threads = threadsOf(tile);
  const step = isVector(shape) ? 4 : 1;
  const type = step === 4 ? `vec4<${tile.element}>` : tile.element;
  let start = 0;
  const places = parts.map((part, p) => {
    const width = shape[widthOf(part)];
    const place = { part, start, each: width / step, id: `${name}${p}_` };
    start += width;
    return place;
  });
  const slots = (
    text: (
      place: (typeof places)[number],
      register: string,
      line: string,
      c: string,
    ) => string,
  ) =>
    unroll(places.length, (p) => {
      const place = places[p];
      if (!place) return '';
      const { each, id } = place;
      return eachSlot(lines * each, threads, (i, x) =>
        text(place, `${id}${i}`, `${x} / ${each}u`, `${x} % ${each}u`),
      );
    });
  return {
    declare: unroll(places.length, (p) => {
      const { each = 0, id = '' } = places[p] ?? {};
      const count = Math.ceil((lines * each) / threads);
      return unroll(count, (i) => `var ${id}${i} = ${type}();`);
    }),
    load: (first) =>
      slots(
        ({ part }, register, line, c) =>
          `{ let row = ${indexOf[table]}[${first} + ${line}]; ${register} = ${at(part, part.row, c, step)}; }`,
      ),
    put: (to) =>
      slots(
        ({ start }, register, line, c) =>
          `{ let to = ${to} + (${line}) * ${pitch}u + ${start}u + (${c}) * ${step}u; ${unroll(
            step,
            (e) =>
              `factors[to + ${e}u] = ${step === 4 ? `${register}[${e}]` : register};`,
          )} }`,
      ),
  };
}

function roundUp(x: number, to: number): number {
  return Math.ceil(x / to) * to;
}
