import type { Backend } from '../backend';
import { CheckpointError } from '../errors';
import { widened } from '../io/model-folder';
import type { Weights } from '../io/safetensors';
import type { OperatorName } from '../ops';
import { Sequences } from '../sequences';
import type { GoldenRow } from './golden-models';
import { runOperator, type ValuesByName } from './run-operator';
import { rootMeanSquare, type Values } from './values';

/** A reference file as read: inputs and results of one operator, f32. */
export interface GoldenFile {
  readonly path: string;
  readonly tensors: ReadonlyMap<string, Values>;
  /** Numbers as JSON text. */
  readonly metadata: ReadonlyMap<string, string>;
}

/** Largest RMS error over the reference's RMS, in f32. */
const ratio = 1e-5;
/** Importances closer than this share of the list's largest are a near tie. */
const nearTie = 1e-5;

/** Reads all tensors of an open file. */
export async function readGoldenFile(weights: Weights): Promise<GoldenFile> {
  const { path, metadata } = weights;
  const tensors = new Map<string, Values>();
  for (const name of weights.tensors.keys()) {
    const { shape, dtype, data } = await weights.read(name);
    const values =
      data instanceof Int32Array
        ? data
        : Float64Array.from(widened({ dtype, data }));
    tensors.set(name, { shape, dtype, data: values });
  }
  return { path, tensors, metadata };
}

/**
 * Runs what a reference file holds and compares all results in it. Which
 * operator that is follows from the tensors; sizes from their shapes.
 *
 * - compressed attention: `q [B, T, H, D]`, `k_cmp`, `v_cmp [B, NB, G, D]`,
 *   `o`, `lse`, and for `do` the gradients `dq`, `dk_cmp`, `dv_cmp`
 * - block selection: `q`, `k_cmp`, `block_indices [B, T, G, n]`
 * - selected attention: `q`, `k`, `v [B, T, G, D]`, `block_indices`, `o`, and
 *   for `do` the gradients `dq`, `dk`, `dv`
 * - overlapping compression, without a batch axis: `q`, `k`, `v`, `k_cmp`,
 *   `v_cmp`, `o` of compressed attention, `block_indices [G, T, n]`
 *
 * For block lists, `error` counts those that `agree` refuses.
 * @throws CheckpointError when the file holds none of these.
 */
export async function compareGoldenOperator(
  backend: Backend,
  file: GoldenFile,
): Promise<GoldenRow[]> {
  const { tensors } = file;
  const has = (...names: string[]) => names.every((name) => tensors.has(name));
  const run = new GoldenRun(backend, file);
  if (has('q', 'k', 'v', 'k_cmp', 'v_cmp', 'block_indices')) {
    return compareOverlapping(run);
  }
  if (has('q', 'k', 'v', 'block_indices')) return compareSelected(run);
  if (has('q', 'k_cmp', 'block_indices')) return compareSelection(run);
  if (has('q', 'k_cmp', 'v_cmp')) return compareCompressed(run);
  throw new CheckpointError(
    file.path,
    undefined,
    `must hold the tensors of an operator, got ${[...tensors.keys()].join(', ')}`,
  );
}

async function compareCompressed(run: GoldenRun): Promise<GoldenRow[]> {
  const names = { q: 'q', k: 'k_cmp', v: 'v_cmp' };
  return run.attention('compressedAttention', run.inputs(names), {
    ...names,
    attributes: run.compression(),
  });
}

async function compareSelected(run: GoldenRun): Promise<GoldenRow[]> {
  const names = { q: 'q', k: 'k', v: 'v' };
  const inputs = { ...run.inputs(names), indices: run.rows('block_indices') };
  const blockSize = run.number('block_size');
  const { sequences, scale } = run;
  return run.attention('selectedAttention', inputs, {
    ...names,
    attributes: { sequences, scale, blockSize, sharing: 1 },
  });
}

/** Selection blocks are compression blocks; 0, own and previous are forced. */
async function compareSelection(run: GoldenRun): Promise<GoldenRow[]> {
  const { lse } = await run.compressed('k_cmp');
  const blockSize = run.number('block_size');
  const row = await run.lists(lse, run.rows('block_indices'), {
    blockSize,
    initial: 1,
    local: 2,
  });
  return [row];
}

async function compareOverlapping(run: GoldenRun): Promise<GoldenRow[]> {
  const { sequences, length, stride } = run.compression();
  const blocks = { sequences, length, stride };
  const pooled: GoldenRow[] = [];
  for (const name of ['k', 'v']) {
    const { y } = await run.call('compress', { x: run.rows(name) }, blocks);
    pooled.push(run.compare(`${name}_cmp`, y));
  }
  const { o, lse } = await run.compressed('v_cmp');
  const lists = await run.lists(lse, headsLast(run.tensor('block_indices')), {
    blockSize: run.number('selection_block'),
    initial: run.number('initial_blocks'),
    local: run.number('local_blocks'),
  });
  return [...pooled, run.compare('o', o), lists];
}

interface SelectionRule {
  readonly blockSize: number;
  readonly initial: number;
  readonly local: number;
}

/** One file on one backend. */
class GoldenRun {
  readonly scale: number;
  readonly sequences: Sequences;

  constructor(
    private readonly backend: Backend,
    private readonly file: GoldenFile,
  ) {
    this.scale = this.number('scale');
    this.sequences = this.layOut();
  }

  tensor(name: string): Values {
    const values = this.file.tensors.get(name);
    if (values) return values;
    throw new CheckpointError(this.file.path, name, 'is not there');
  }

  /** A number of the metadata. */
  number(name: string): number {
    const value = Number(this.file.metadata.get(name));
    if (Number.isFinite(value)) return value;
    throw new CheckpointError(
      this.file.path,
      undefined,
      `the metadata must have a number ${name}`,
    );
  }

  /** `[B, T, ...]` as `[B T, ...]`; three axes have no batch. */
  rows(name: string): Values {
    const { shape, ...rest } = this.tensor(name);
    const rows = shape.slice(0, -2).reduce((a, b) => a * b, 1);
    return { shape: [rows, ...shape.slice(-2)], ...rest };
  }

  inputs(names: Readonly<Record<string, string>>): ValuesByName {
    return Object.fromEntries(
      Object.entries(names).map(([operand, name]) => [
        operand,
        this.rows(name),
      ]),
    );
  }

  compression() {
    const { sequences, scale } = this;
    const length = this.number('block_size');
    return { sequences, scale, length, stride: this.number('stride') };
  }

  /** Compressed attention over `k_cmp`. */
  compressed(values: string): Promise<Record<string, Values>> {
    const inputs = this.inputs({ q: 'q', k: 'k_cmp', v: values });
    return this.call('compressedAttention', inputs, this.compression());
  }

  call(
    operator: OperatorName,
    inputs: ValuesByName,
    attributes: object,
  ): Promise<Record<string, Values>> {
    return runOperator(this.backend, operator, inputs, attributes);
  }

  compare(name: string, got: Values | undefined): GoldenRow {
    const want = this.tensor(name).data;
    return { name, error: rmsRatio(got?.data ?? [], want), allowance: ratio };
  }

  /** Results and gradients; `q`, `k`, `v` are the operands' names here. */
  async attention(
    operator: 'compressedAttention' | 'selectedAttention',
    inputs: ValuesByName,
    call: { q: string; k: string; v: string; attributes: object },
  ): Promise<GoldenRow[]> {
    const { o, lse } = await this.call(operator, inputs, call.attributes);
    const rows = [this.compare('o', o)];
    if (this.file.tensors.has('lse')) rows.push(this.compare('lse', lse));
    if (!this.file.tensors.has('do') || !o || !lse) return rows;
    const results = { o, lse, dO: this.rows('do') };
    const gradients = await this.call(
      `${operator}Backward`,
      { ...inputs, ...results },
      call.attributes,
    );
    return [
      ...rows,
      this.compare(`d${call.q}`, gradients.dQ),
      this.compare(`d${call.k}`, gradients.dK),
      this.compare(`d${call.v}`, gradients.dV),
    ];
  }

  /** @param want `[B T, G, n]` */
  async lists(
    lse: Values | undefined,
    want: Values,
    rule: SelectionRule,
  ): Promise<GoldenRow> {
    if (!lse) throw new Error('internal: compressed attention gave no LSE');
    const [, groups = 0, listLength = 0] = want.shape;
    const count = this.number('block_count');
    const inputs = { ...this.inputs({ q: 'q', k: 'k_cmp' }), lse };
    const ranking = { ...this.compression(), groups, sharing: 1, ...rule };
    const { importance } = await this.call('blockImportance', inputs, ranking);
    const { indices } = await this.call('selectBlocks', inputs, {
      ...ranking,
      count,
    });
    const blocks = importance?.shape[2] ?? 0;
    const time = this.sequences.maxKeys;
    let error = 0;
    for (let row = 0; row < want.data.length / listLength; row++) {
      const t = Math.floor(row / groups) % time;
      const own = Math.floor(t / rule.blockSize);
      const isAgreed = agree(
        blocksOf(indices, row, count),
        blocksOf(want, row, listLength),
        forcedBlocks(own, rule),
        importance?.data.slice(row * blocks, (row + 1) * blocks) ?? [],
      );
      if (!isAgreed) error += 1;
    }
    return { name: 'block_indices', error, allowance: 0 };
  }

  /** Batch rows one behind the other; the block axis as long as the file's. */
  private layOut(): Sequences {
    const { shape } = this.tensor('q');
    const [time = 0] = shape.slice(-3);
    const batch = shape.length === 4 ? (shape[0] ?? 0) : 1;
    const blocks = this.file.tensors.get('k_cmp')?.shape.at(-3) ?? 0;
    return new Sequences(
      Array.from({ length: batch }, (_, b) => ({
        queryStart: b * time,
        queryCount: time,
        keyStart: b * time,
        keyCount: time,
        blockStart: b * blocks,
        leaderStart: b * time,
      })),
    );
  }
}

/**
 * The rule by which two block lists agree, their order and padding apart: both
 * hold the forced blocks, and the blocks that only one of them holds, ranked by
 * importance, differ pair by pair by at most 1e-5 of the list's largest
 * importance. Where `want` is shorter, it lacks a block of importance 0: some
 * implementations rank before they drop future blocks, whose importance is 0.
 */
export function agree(
  got: readonly number[],
  want: readonly number[],
  forced: readonly number[],
  importance: ArrayLike<number>,
): boolean {
  if (got.length < want.length) return false;
  if (!forced.every((b) => got.includes(b) && want.includes(b))) return false;
  const most = Math.max(0, ...Array.from(importance));
  const alone = (list: readonly number[], other: readonly number[]) =>
    list
      .filter((block) => !other.includes(block))
      .map((block) => importance[block] ?? Number.POSITIVE_INFINITY)
      .sort((a, b) => b - a);
  const ours = alone(got, want);
  const theirs = alone(want, got);
  const pairs = Math.max(ours.length, theirs.length);
  return Array.from({ length: pairs }, (_, i) =>
    Math.abs((ours[i] ?? 0) - (theirs[i] ?? 0)),
  ).every((difference) => difference <= nearTie * most);
}

function forcedBlocks(own: number, { initial, local }: SelectionRule) {
  return Array.from({ length: own + 1 }, (_, block) => block).filter(
    (block) => block < initial || block > own - local,
  );
}

/** A row of block lists without its padding. */
function blocksOf(lists: Values | undefined, row: number, length: number) {
  const list = lists?.data.slice(row * length, (row + 1) * length) ?? [];
  return [...list].filter((block) => block !== -1);
}

/** `[G, T, n]` to `[T, G, n]`. */
function headsLast({ shape, dtype, data }: Values): Values {
  const [groups = 0, time = 0, count = 0] = shape;
  const turned = new Int32Array(data.length);
  for (let g = 0; g < groups; g++) {
    for (let t = 0; t < time; t++) {
      const from = (g * time + t) * count;
      turned.set(data.slice(from, from + count), (t * groups + g) * count);
    }
  }
  return { shape: [time, groups, count], dtype, data: turned };
}

/** Equal infinities are no error, unequal ones an infinite one. */
function rmsRatio(got: ArrayLike<number>, want: ArrayLike<number>): number {
  if (got.length !== want.length) return Number.POSITIVE_INFINITY;
  let sum = 0;
  let finite = 0;
  for (let i = 0; i < want.length; i++) {
    const [a, b] = [got[i] ?? 0, want[i] ?? 0];
    if (a !== b) sum += (a - b) ** 2;
    if (Number.isFinite(b)) finite += 1;
  }
  if (sum === 0) return 0;
  return Math.sqrt(sum / finite) / rootMeanSquare(want);
}
