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
import type { TableStaging, View } from './attention-view';
import { type KernelContext, unroll } from './context';
import type { UnitMatrices } from './unit-matrices';

/** Keys that rows are multiplied with at a time, or rows that keys are. */
export const STEP = 32;

/** Of a tile of rows, or of keys: dK and dV. */
export type Pass = 'forward' | 'backwardQ' | 'backwardKV';

export interface UnitTile {
  readonly pass: Pass;
  readonly unit: MatrixUnit;
  /** Of factors: the operands' type. */
  readonly element: 'f16' | 'f32';
  /** Subgroups down the tile's rows or keys, and side by side across sums. */
  readonly down: number;
  readonly across: number;
  /** Values are channels of the keys' tensor. */
  readonly isShared: boolean;
  /** Channels of keys and of values, up to whole matrices. */
  readonly keyWidth: number;
  readonly valueWidth: number;
}

/** Elements between lines: 16 bytes more, so that lines use other banks. */
const pitchOf = (width: number) => width + 8;

export const threadsOf = ({ unit, down, across }: UnitTile) =>
  down * across * unit.subgroupSize;

/** Rows of a tile of rows, keys of a tile of keys. */
export const extentOf = ({ unit, down }: UnitTile) => unit.m * down;

/** Lines and columns of the scores: rows by keys. */
export const scoresOf = (tile: UnitTile) =>
  tile.pass === 'backwardKV'
    ? { rows: STEP, keys: extentOf(tile) }
    : { rows: extentOf(tile), keys: STEP };

/** Threads of a row in softmax. */
export const perRow = (tile: UnitTile) => threadsOf(tile) / scoresOf(tile).rows;

/** Elements between two lines of each kind. */
export function pitchesOf(tile: UnitTile) {
  const { isShared, keyWidth, valueWidth, pass } = tile;
  const key = pitchOf(keyWidth);
  const isSame = isShared && pass !== 'backwardKV';
  return {
    key,
    value: isSame ? key : pitchOf(valueWidth),
    score: pitchOf(scoresOf(tile).keys),
  };
}

/**
 * Where all lies among the factors, and how many there are: keys from 0 on, in
 * two places where the old ones are still read when new ones come; values, or
 * dO in the pass over keys; probabilities, their gradients.
 */
export function layoutOf(tile: UnitTile) {
  const { isShared, pass } = tile;
  const pitch = pitchesOf(tile);
  const { rows } = scoresOf(tile);
  const places = pass === 'backwardQ' || (pass === 'forward' && isShared);
  const values = (places ? 2 : 1) * STEP * pitch.key;
  const hasValues = pass === 'backwardKV' || !isShared;
  const weights = values + (hasValues ? STEP * pitch.value : 0);
  const gradients = weights + (pass === 'backwardKV' ? rows * pitch.score : 0);
  const end = gradients + rows * pitch.score;
  // What stays in registers passes through the same memory before.
  const most = Math.max(pitch.key, pitch.value);
  return {
    keys: places ? 2 : 1,
    values,
    weights,
    gradients,
    size: Math.max(end, extentOf(tile) * most),
  };
}

/** Scores, and behind them their gradients. */
export const scoreElements = (tile: UnitTile) =>
  scoresOf(tile).rows * pitchesOf(tile).score;

/**
 * Of the tables: six of rows and two of keys, of four steps on the side that
 * passes; a word a thread; and a flag.
 */
function tableBytes(tile: UnitTile): number {
  const extent = extentOf(tile);
  const passing = 4 * STEP;
  const [rows, keys] =
    tile.pass === 'backwardKV' ? [passing, extent] : [extent, passing];
  return 4 * (6 * rows + 2 * keys + threadsOf(tile)) + 16;
}

/** Registers of a thread that factors and sums may take. */
const MOST_REGISTERS = 160;

function fits(tile: UnitTile): boolean {
  const { unit, element, across, keyWidth, valueWidth, pass } = tile;
  const { m, n, subgroupSize, workgroupBytes } = unit;
  const isForward = pass === 'forward';
  const factors = {
    forward: keyWidth,
    backwardQ: keyWidth + valueWidth,
    backwardKV: keyWidth + (tile.isShared ? 0 : valueWidth),
  };
  const sums = {
    forward: valueWidth,
    backwardQ: keyWidth,
    backwardKV: keyWidth + valueWidth,
  };
  const registers =
    (m * factors[pass]) / 2 / subgroupSize +
    (m * sums[pass]) / across / subgroupSize;
  const scores = 4 * scoreElements(tile) * (isForward ? 1 : 2);
  const bytes = bytesPerElement[element] * layoutOf(tile).size + scores;
  return (
    bytes + tableBytes(tile) <= workgroupBytes &&
    registers <= MOST_REGISTERS &&
    STEP % (n * across) === 0 &&
    (pass !== 'backwardKV' || m === n) &&
    scoresOf(tile).keys % (4 * perRow(tile)) === 0
  );
}

/** Matrix units multiply f16; plain code in their place multiplies anything. */
function elementOf(
  { isEmulated }: MatrixUnit,
  operands: AttentionOperands & { readonly dO?: Tensor },
): UnitTile['element'] | undefined {
  const { q, k, v, qRope, kRope, dO } = operands;
  const all: readonly (Tensor | undefined)[] = [q, k, v, qRope, kRope, dO];
  const have = (dtype: string) =>
    all.every((operand) => !operand || operand.dtype === dtype);
  if (have('f16')) return 'f16';
  return isEmulated && have('f32') ? 'f32' : undefined;
}

/** Subgroups of the tiles, largest first. */
const grids = {
  forward: [
    [4, 1],
    [2, 2],
    [1, 2],
  ],
  backwardQ: [
    [4, 1],
    [2, 2],
    [1, 2],
  ],
  backwardKV: [
    [4, 2],
    [2, 2],
    [1, 2],
  ],
} as const;

/**
 * The largest tile that fits and is half filled by so many rows or keys; none where the device, the types or the widths call
 * for plain products.
 */
export function unitTileOf(
  { attentionUnit: unit }: KernelContext,
  operands: AttentionOperands & { readonly dO?: Tensor },
  { width, ropeWidth, valueWidth }: AttentionShape,
  pass: Pass,
  most: number,
): UnitTile | undefined {
  const element = unit && elementOf(unit, operands);
  if (!element) return undefined;
  const { k, v } = operands;
  const tileOf = ([down, across]: readonly [number, number]): UnitTile => {
    const keyColumns = pass === 'forward' ? 1 : across;
    const keyWidth = roundUp(width + ropeWidth, LARGEST * keyColumns);
    const valueColumns = pass === 'backwardQ' ? 1 : across;
    const values = roundUp(valueWidth, LARGEST * valueColumns);
    const isSame = k.storage === v.storage && width === valueWidth;
    return {
      pass,
      unit,
      element,
      down,
      across,
      isShared: isSame && values <= keyWidth,
      keyWidth,
      valueWidth: values,
    };
  };
  return grids[pass]
    .map(tileOf)
    .find(
      (tile) => fits(tile) && (tile.down === 1 || extentOf(tile) < 2 * most),
    );
}

/**
 * Sums of a subgroup, through workgroup memory: only there have elements names.
 * All subgroups do the same for one matrix after the other.
 */
function eachSum(
  tile: UnitTile,
  matrices: UnitMatrices,
  name: string,
  columns: number,
  text: (sum: string, column: number) => string,
): string {
  const { unit } = tile;
  return unroll(
    columns,
    (j) => `workgroupBarrier();
${matrices.store('scores', `subgroup * ${unit.m * unit.n}u`, `${name}${j}`, unit.n)}
workgroupBarrier();
${text(`${name}${j}`, j)}`,
  );
}

/** WGSL of the tile's line of element `e`, where all subgroups' matrices lie. */
function lineOf({ unit, across }: UnitTile): string {
  const elements = unit.m * unit.n;
  return `e / ${across * elements}u * ${unit.m}u + e % ${elements}u / ${unit.n}u`;
}

/** Multiplies sums; `factor` is WGSL of `line` in the tile. */
export function scaleSums(
  tile: UnitTile,
  matrices: UnitMatrices,
  name: string,
  columns: number,
  factor: string,
): string {
  const { unit, across, down } = tile;
  const elements = unit.m * unit.n;
  return eachSum(
    tile,
    matrices,
    name,
    columns,
    (
      sum,
    ) => `for (var e = tid; e < ${down * across * elements}u; e += ${threadsOf(tile)}u) {
  let line = ${lineOf(tile)};
  scores[e] *= ${factor};
}
workgroupBarrier();
${sum} = ${matrices.load('Sum', 'scores', `subgroup * ${elements}u`, false, unit.n)};`,
  );
}

/** Uses up sums; `text` is WGSL of `line`, the vector's place `c` and `value`. */
export function putSums(
  tile: UnitTile,
  matrices: UnitMatrices,
  name: string,
  columns: number,
  text: string,
): string {
  const { unit, across, down } = tile;
  const elements = unit.m * unit.n;
  return eachSum(
    tile,
    matrices,
    name,
    columns,
    (
      _,
      j,
    ) => `for (var e = 4u * tid; e < ${down * across * elements}u; e += ${4 * threadsOf(tile)}u) {
  let line = ${lineOf(tile)};
  let c = (e / ${elements}u % ${across}u * ${columns * unit.n}u + ${j * unit.n}u + e % ${unit.n}u) / 4u;
  let value = vec4f(${fourOf('scores', 'e')});
  ${text}
}`,
  );
}

/**
 * A flag of the workgroup, the first of an array. Matrices are loaded and stored
 * at multiples of 16 bytes, and a device may put them right behind what else is
 * in workgroup memory: NVIDIA's loads others in silence. So all sizes there are
 * such multiples.
 */
export const flag = (name: string) =>
  `var<workgroup> ${name}: array<atomic<u32>, 4>;`;

/** Four neighbours of an array, as arguments. */
export const fourOf = (array: string, place: string) =>
  [0, 1, 2, 3].map((e) => `${array}[${place} + ${e}u]`).join(', ');

/**
 * The scores that a thread has, four keys of a row at a time: `text` is WGSL
 * of `c`, the first one's column, and `place`, that among the scores.
 */
export function eachQuad(tile: UnitTile, text: string): string {
  const together = perRow(tile);
  return unroll(
    scoresOf(tile).keys / 4 / together,
    (i) => `{
  let c = 4u * (part + ${together * i}u);
  let place = row * ${pitchesOf(tile).score}u + c;
  ${text}
}`,
  );
}

/** Of N threads a key each: the slots from `base` on. */
export const keyStaging = (view: View, base: string): TableStaging => ({
  load: `
var nextPosition = -1;
if (tid < N) {
  let slot = ${base} + tid;
  if (slot < end) { nextPosition = ${view.forward.keyAt}; }
}`,
  put: (place) => `
if (tid < N) {
  keyPosition[${place}] = nextPosition;
  keyRow[${place}] = ${view.keyStart} + u32(max(nextPosition, 0));
}`,
});

/** Fills the first two of four tables: what goes before the loop over keys. */
export function firstKeyTables(view: View): string {
  const [now, next] = [
    keyStaging(view, 'first'),
    keyStaging(view, 'first + N'),
  ];
  return `{ ${now.load}\n${now.put('tid')} }
{ ${next.load}\n${next.put('N + tid')} }`;
}

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
